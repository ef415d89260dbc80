"""A function of the course as the source of a notebook cell that needs nothing but itself.

    source_of(losses.cross_entropy, "cross_entropy")

gives the function's own text with what it uses of its module, inside a function of the cell. So a
cell leaves one name behind, and an error in one exercise cannot reach another.
"""

import ast
import functools
import inspect
import math
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from symtable import SymbolTable, symtable
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import torch

from autograder.course import CHAPTERS, allowed_modules

Import = ast.Import | ast.ImportFrom


@dataclass(frozen=True)
class _Statement:
    """One statement of a module, the names that it binds and those that it takes from around it."""

    node: ast.stmt
    source: str
    binds: list[str]
    needs: list[str]


def source_of(function: Callable, name: str) -> str:
    """A cell that binds `name` to what `function` is, in readable Python.

    function:  a function, a lambda, a class, a partial of one, or a function of torch

    What the sandbox of the function's chapter can import stays an import; all else of the course
    is written out. Raises TypeError for what has no source.
    """
    statements, expression = _written(function)
    cell = f"def _build():\n{_body(statements, expression)}\n\n\n{name} = _build()"
    if isinstance(function, FunctionType | type) and function.__name__ != name:
        cell += f'\n{name}.__name__ = "{name}"  # check(...) in a notebook goes by it'
    return cell


def _written(value: Any) -> tuple[list[str], str]:
    """The statements that `value` needs before it, and an expression for it."""
    if isinstance(value, functools.partial):
        parts = [_written(v) for v in (value.func, *value.args, *value.keywords.values())]
        names = [""] * (1 + len(value.args)) + [f"{key}=" for key in value.keywords]
        arguments = ", ".join(n + e for n, (_, e) in zip(names, parts, strict=True))
        needed = [line for statements, _ in parts for line in statements]
        return ["import functools", *needed], f"functools.partial({arguments})"
    if isinstance(value, torch.dtype):
        return ["import torch"], repr(value)
    if not callable(value):
        return [], literal(value)
    if isinstance(value, BuiltinFunctionType) or value.__module__.split(".")[0] == "torch":
        return _of_torch(value)

    module = sys.modules[value.__module__]
    if vars(module).get(value.__name__) is value:
        return _of_module(module, {value.__name__}), value.__name__
    source, name = _inner_source(module, value.__code__)
    statements = _of_module(module, set(_names(source)))
    for variable, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
        if cell.cell_contents is not value:  # which calls itself
            needed, expression = _written(cell.cell_contents)
            statements += [*needed, f"{variable} = {expression}"]
    return (statements, source) if name == "<lambda>" else ([*statements, source], name)


def literal(value: Any) -> str:
    """`value` as Python writes it: numbers, strings, None, lists, tuples, dicts of them."""
    text = repr(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{text}")'  # Python has no literal for these
    try:
        ast.literal_eval(text)
    except ValueError:
        raise TypeError(f"A cell cannot hold {text:.80}: write it as a number or text.") from None
    return text


def _of_torch(function: Callable) -> tuple[list[str], str]:
    for module in (torch, torch.nn.functional, torch.special, torch.nn):
        if getattr(module, function.__name__, None) is function:
            return [f"import {module.__name__}"], f"{module.__name__}.{function.__name__}"
    raise TypeError(f"{function!r} has no source: write it as a function of the checks.")


def _of_module(module: ModuleType, names: set[str]) -> list[str]:
    """The statements of a module that bind `names`, and all that those need, in their order."""
    statements = _statements(module)
    binding = {name: statement for statement in statements for name in statement.binds}
    chosen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in binding and name not in chosen:
            chosen.add(name)
            waiting += binding[name].needs
    sources = [binding[name].source for name in chosen]
    written: list[str] = []
    for statement in statements:
        needed = [name for name in statement.binds if binding[name] is statement and name in chosen]
        if needed and isinstance(statement.node, Import):
            written += _imports(statement.node, needed, sources, module)
        elif needed:
            written.append(statement.source)
    return written


def _imports(
    statement: Import, needed: list[str], sources: list[str], into: ModuleType
) -> Iterator[str]:
    """An import's needed names, one a line; what cannot be imported in grading is written out."""
    for alias in statement.names:
        bound = alias.asname or alias.name.split(".")[0]
        if bound not in needed:
            continue
        as_bound = f" as {alias.asname}" if alias.asname else ""
        if isinstance(statement, ast.Import):
            yield f"import {alias.name}{as_bound}"
            continue
        full = f"{statement.module}.{alias.name}"
        if not _is_ours(full) or {full, statement.module} & _importable(into):
            yield f"from {statement.module} import {alias.name}{as_bound}"
        elif full in sys.modules:  # a module: what is used of it becomes a namespace
            module = sys.modules[full]
            used = sorted(_attributes(bound, sources) & vars(module).keys())
            namespace = ", ".join(f"{name}={name}" for name in used)
            yield from _inlined(module, used, bound, f"SimpleNamespace({namespace})")
        else:
            yield from _inlined(sys.modules[statement.module], [alias.name], bound, alias.name)


def _inlined(module: ModuleType, names: list[str], bound: str, result: str) -> Iterator[str]:
    if names:
        if result.startswith("SimpleNamespace"):
            yield "from types import SimpleNamespace"
        yield f"def _{bound}():\n{_body(_of_module(module, set(names)), result)}"
        yield f"{bound} = _{bound}()"


def _is_ours(name: str) -> bool:
    return name.split(".")[0] in ("llmkit", "autograder")


@functools.cache
def _importable(module: ModuleType) -> set[str]:
    """The modules of llmkit that the sandbox offers in the chapter to which `module` belongs."""
    last = module.__name__.rsplit(".")[-1]
    for chapter in CHAPTERS:
        if _is_ours(module.__name__) and last in (chapter.topic, *chapter.modules):
            files = allowed_modules(chapter.slug)
            names = {file.removesuffix(".py").removesuffix("/__init__") for file in files}
            return {name.replace("/", ".") for name in names} - {"llmkit"}
    return set()


@functools.cache
def _statements(module: ModuleType) -> list[_Statement]:
    text = inspect.getsource(module)
    lines, statements = text.splitlines(), []
    for node in ast.parse(text).body:
        source = _source(lines, node)
        symbols = symtable(source, "<statement>", "exec").get_symbols()
        binds = [s.get_name() for s in symbols if s.is_assigned() or s.is_imported()]
        statements.append(_Statement(node, source, binds, list(_names(source))))
    return statements


def _names(source: str) -> Iterator[str]:
    """The names that a statement or an expression takes from around it."""
    tables: list[SymbolTable] = [symtable(source, "<statement>", "exec")]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_global() or (table.get_type() == "module" and symbol.is_referenced()):
                yield symbol.get_name()


def _attributes(name: str, sources: list[str]) -> set[str]:
    """What the sources take from the module that they call `name`."""
    nodes = (node for source in sources for node in ast.walk(ast.parse(source)))
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == name
    }


def _inner_source(module: ModuleType, code: CodeType) -> tuple[str, str]:
    """The source of a lambda, or of a function inside another one, and its name."""
    text = inspect.getsource(module)
    kind = ast.Lambda if code.co_name == "<lambda>" else ast.FunctionDef
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kind)]
    found = [node for node in nodes if _is_code_of(node, code)]
    if not found:
        raise TypeError(f"{module.__name__}:{code.co_firstlineno}: {code.co_name} has no source.")
    if kind is ast.Lambda:  # the walk goes inwards, so the last is the innermost
        return f"({ast.get_source_segment(text, found[-1])})", code.co_name
    return textwrap.dedent(_source(text.splitlines(), found[-1])), code.co_name


def _is_code_of(node: ast.Lambda | ast.FunctionDef, code: CodeType) -> bool:
    """Whether the code stands where the node does: columns tell two lambdas of a line apart."""
    body = node.body if isinstance(node, ast.Lambda) else node
    first, last = (body.lineno, body.col_offset), (body.end_lineno, body.end_col_offset)
    entry = (code.co_firstlineno, 0)  # where Python puts what belongs to no expression
    places = {(line, column) for line, _, column, _ in code.co_positions() if column is not None}
    return all(first <= place <= last for place in places - {entry})


def _source(lines: list[str], node: ast.stmt) -> str:
    """The whole lines of a statement, decorators too."""
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
    return "\n".join(lines[first - 1 : node.end_lineno])


def _body(statements: list[str], result: str) -> str:
    spaced = [f"\n{s}\n" if "\n" in s else s for s in [*statements, f"return {result}"]]
    return textwrap.indent("\n".join(spaced).replace("\n\n\n", "\n\n").strip("\n"), "    ")
