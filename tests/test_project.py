"""The project's own files agree: dependencies, pins, conda, make, nbgrader, who imports whom."""

import ast
import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from nbgrader.converters import Autograde
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from traitlets.config import PyFileConfigLoader

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {
    name: [Requirement(line) for line in lines]
    for name, lines in PROJECT["optional-dependencies"].items()
}
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(
        r"^([\w.-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
}


# Of what the course needs, what Colab had in June 2026, says googlecolab/backend-info. There, pip
# installs the course without its dependencies, and gguf: the first cell of a notebook does that.
COLAB = {
    "ipython": "7.34.0",
    "ipywidgets": "7.7.1",
    "jinja2": "3.1.6",
    "matplotlib": "3.10.0",
    "nbformat": "5.10.4",
    "numpy": "2.0.2",
    "pip": "24.1.2",
    "platformdirs": "4.10.0",
    "regex": "2025.11.3",
    "rich": "13.9.4",
    "safetensors": "0.7.0",
    "tokenizers": "0.22.2",
    "torch": "2.11.0",
    "tqdm": "4.67.3",
    "typer": "0.25.1",
}


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def closure(requirements: list[Requirement], environment: dict[str, str]) -> set[str]:
    """Names of all that pip installs for `requirements` on a system with these markers."""
    todo, seen = [(requirement, "") for requirement in requirements], set()
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        if name.startswith(("nvidia-", "cuda-", "triton")):  # only in torch's CUDA build
            continue
        if requirement.marker and not requirement.marker.evaluate(environment | {"extra": extra}):
            continue
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                todo += [(inner, wanted) for inner in requirements_of(name)]
    return {name for name, _ in seen}


@cache
def requirements_of(name: str) -> list[Requirement]:
    """What a package asks for; nothing is known of one that only other systems install."""
    with suppress(metadata.PackageNotFoundError):
        return [Requirement(line) for line in metadata.requires(name) or []]
    return []


# Dependencies


def test_every_version_is_pinned_and_no_other():
    systems = [
        ("linux", "Linux", "posix"),
        ("darwin", "Darwin", "posix"),
        ("win32", "Windows", "nt"),
    ]
    needed = set()
    for (platform, system, name), minor in itertools.product(systems, range(11, 15)):
        markers = {"sys_platform": platform, "platform_system": system, "os_name": name}
        python = {"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.1"}
        environment = default_environment() | markers | python
        needed |= closure([*BASE, *itertools.chain(*EXTRAS.values())], environment)
    assert needed == PINS.keys() - {"cuda-bindings", "cuda-pathfinder"}


def test_the_ranges_admit_the_pins():
    for requirement in itertools.chain(BASE, *EXTRAS.values()):
        assert requirement.specifier, f"{requirement.name} has no lower bound"
        assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_colab_has_all_but_gguf_and_a_jupyterlab():
    assert names(BASE) - COLAB.keys() == {"gguf", "jupyterlab"}
    for requirement in BASE:
        if version := COLAB.get(canonicalize_name(requirement.name)):
            assert requirement.specifier.contains(version), requirement


def test_conda_make_and_pip_install_the_same():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    everything = f".[{','.join(EXTRAS)}]"
    assert f"python{PROJECT['requires-python']}" in conda and "pip" in conda
    assert conda[-1]["pip"] == [
        "--constraint constraints.txt",
        f"torch=={PINS['torch']}",
        f"--editable {everything}",
    ]
    make = subprocess.run(
        ["make", "-n", "-W", "pyproject.toml", ".venv/installed"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert f"-c constraints.txt torch=={PINS['torch']} -e '{everything}'" in make.stdout
    assert f"({PROJECT['requires-python'].lstrip('>=').replace('.', ', ')})" in make.stdout


def test_what_is_imported_is_named():
    base, grader = names(BASE), names(BASE) | names(EXTRAS["grader"])
    cluster = grader | names(EXTRAS["cluster"])
    allowed = {
        "llmkit": base,
        "autograder": cluster,
        "benchmarks": grader | names(EXTRAS["bench"]),
        "tests": cluster | names(EXTRAS["test"]),
    }
    distributions = metadata.packages_distributions()
    for room, dependencies in allowed.items():
        for path, module in imports(ROOT / room):
            package = module.partition(".")[0]
            if package in sys.stdlib_module_names | allowed.keys():
                continue
            owners = {canonicalize_name(name) for name in distributions.get(package, [package])}
            assert owners & dependencies, f"{path} imports {package}: name it in pyproject.toml"


def test_a_student_needs_no_extra():
    """Every module a notebook imports loads where the packages of the extras are missing."""
    distributions = metadata.packages_distributions()
    extras = names(list(itertools.chain(*EXTRAS.values()))) - closure(BASE, default_environment())
    missing = {
        package
        for package, owners in distributions.items()
        if extras & {canonicalize_name(owner) for owner in owners}
    }
    assert {"nbgrader", "jupytext", "pytest", "transformers"} <= missing
    modules = [f"llmkit.{path.stem}" for path in (ROOT / "llmkit").glob("[!_]*.py")]
    modules += [
        f"autograder.checks.{path.stem}" for path in (ROOT / "autograder/checks").glob("*.py")
    ]
    code = f"""
import importlib, sys
sys.modules |= dict.fromkeys({sorted(missing)})
from autograder import check, check_answer
for module in {modules}:
    importlib.import_module(module)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_first_import_is_light():
    code = "import llmkit, sys; assert not {'torch', 'numpy', 'matplotlib'} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# Who may import whom


def imports(*folders: Path) -> Iterator[tuple[Path, str]]:
    """(file, dotted name) of every import below the folders; `from a import b` counts as a.b."""
    for path in itertools.chain(*(folder.rglob("*.py") for folder in folders)):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                here = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
                package = ".".join([*here, node.module] if node.module else here)
                yield from ((path, f"{package}.{alias.name}") for alias in node.names)


def test_llmkit_never_imports_the_autograder():
    assert not [(path, name) for path, name in imports(ROOT / "llmkit") if "autograder" in name]


def test_the_room_inside_the_sandbox_stands_alone():
    for _, name in imports(ROOT / "autograder" / "inside"):
        assert name.startswith("autograder.inside.") or not name.startswith(
            ("autograder", "llmkit")
        )


# nbgrader, the command line, CI


def test_nbgrader_judges_where_it_would_sanitize_and_execute():
    config = PyFileConfigLoader("nbgrader_config.py", path=str(ROOT)).load_config()
    (judge,) = config.Autograde.sanitize_preprocessors
    assert judge == "autograder.nbgrader_plugin.Judge"
    others = config.Autograde.autograde_preprocessors
    stock = [step.__name__ for step in Autograde().autograde_preprocessors]
    kept = [name.split(".")[-1] for name in others]
    assert "Execute" not in kept and kept == [name for name in stock if name in kept]
    for name in (judge, *others):
        module, _, step = name.rpartition(".")
        assert hasattr(__import__(module, fromlist=[step]), step)
    assert (ROOT / config.CourseDirectory.source_directory).is_dir()
    assert (ROOT / config.CourseDirectory.release_directory).is_dir()


def test_the_commands_exist():
    for target in PROJECT["scripts"].values():
        module, _, attribute = target.partition(":")
        assert callable(getattr(__import__(module, fromlist=[attribute]), attribute))


@pytest.mark.parametrize("target", ["demo", "lab", "pictures", "test", "notebooks", "bench"])
def test_make_has_the_target(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ".venv/bin/python -m" in done.stdout


def test_the_readme_shows_and_links_what_is_there():
    text = (ROOT / PROJECT["readme"]).read_text(encoding="utf-8")
    paths = re.findall(r'\]\(([\w./-]+)\)|src="([^"]+)"', text)
    assert len(paths) >= 6 and all((ROOT / "".join(path)).is_file() for path in paths)


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111 and "exec make test" in script.read_text()
    assert (ROOT / PROJECT["readme"]).is_file() and (ROOT / "LICENSE").is_file()
