import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmkit.__main__ import app
from llmkit.quantization import Int8Linear
from tests.llmkit.test_checkpoints import hf_directory, oracle
from tests.llmkit.test_tokenization import TEMPLATE

ROOT = Path(__file__).parents[2]


def llmkit(*arguments: str, code: str = "", cache: str = "") -> subprocess.CompletedProcess:
    """Run `python -m llmkit` after `code`, in a process of its own."""
    start = f"import runpy, sys; sys.argv = {['llmkit', *arguments]}; {code}\n"
    start += "runpy.run_module('llmkit', run_name='__main__', alter_sys=True)"
    environment = os.environ | ({"LLMKIT_CACHE": cache} if cache else {})
    return subprocess.run(
        [sys.executable, "-c", start], cwd=ROOT, capture_output=True, text=True, env=environment
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    directory = hf_directory(tmp_path_factory.mktemp("model"), oracle())
    (directory / "chat_template.jinja").write_text(TEMPLATE.replace("eos_token", "'<|im_end|>'"))
    return str(directory)


LOADS_NOTHING = """
import builtins, importlib.abc
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in {'llmkit.assets', 'llmkit.checkpoints', 'gguf', 'transformers'}:
            raise AssertionError(name + ' was imported')
sys.meta_path.insert(0, Refuse())
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "--temperature"),
        (["--temperature", "inf"], "temperature must be 0 or a positive number, not inf"),
        (["--temperature", "warm"], "--temperature"),
        (["--top-k", "0"], "--top-k"),
        (["--top-p", "0"], "p must be above 0 and at most 1, not 0.0"),
        (["--top-p", "1.1"], "p must be above 0 and at most 1, not 1.1"),
        (["--min-p", "0"], "min_p must be above 0 and at most 1, not 0.0"),
        (["--repetition-penalty", "0"], "repetition_penalty must be a positive number, not 0.0"),
        (["--stop", ""], "stop holds an empty string"),
        (["--beams", "0"], "--beams"),
        (["--beams", "2", "--lookup"], "a search takes neither sampling options nor --lookup"),
        (["--beams", "2", "--temperature", "1"], "a search takes neither sampling options"),
        (["--max-tokens", "0"], "--max-tokens"),
        (["--seed", "-1"], "--seed"),
        (["--device", "gpu"], "'gpu' is not a device: use auto, cpu, cuda, cuda:N or mps."),
        (["--device", "cuda:999"], "This machine has no device 'cuda:999'; it has"),
        (["--dtype", "int4"], "'int4' is not a number format: use float32, bfloat16, float16."),
        (["--model", "smollm3"], "there is no file or directory 'smollm3'"),
        (["--raw", "--system", "Be brief."], "--raw has no place for a system prompt"),
        (["--tempurature", "1"], "--tempurature"),
    ],
)
def test_bad_arguments_get_one_sentence_before_anything_is_loaded(arguments, message):
    done = llmkit("generate", "Hello", *arguments, code=LOADS_NOTHING_IN_ONE_LINE)
    assert done.returncode == 2
    assert done.stdout == ""
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("Error: ") and message in error
    assert "Traceback" not in done.stderr


LOADS_NOTHING_IN_ONE_LINE = f"exec({LOADS_NOTHING!r})"


def test_empty_prompt():
    done = llmkit("generate", "", code=LOADS_NOTHING_IN_ONE_LINE)
    assert done.returncode == 2 and "the prompt is empty" in done.stderr


def test_help_is_quick_to_import():
    code = "import atexit; atexit.register(lambda: print('torch' in sys.modules))"
    done = llmkit("generate", "--help", code=code)
    assert done.returncode == 0
    assert "--max-tokens" in done.stdout and done.stdout.endswith("False\n")


def test_answer_goes_to_stdout_and_speed_to_stderr(checkpoint):
    code = "import atexit; atexit.register(lambda: print('transformers' in sys.modules))"
    done = llmkit("generate", "hello", "--model", checkpoint, "--max-tokens", "9", code=code)
    assert done.returncode == 0
    assert done.stdout.endswith("\nFalse\n")
    assert done.stderr.startswith("9 tokens, the first after ")
    assert done.stderr.endswith(" tokens per second\n")


def test_seeds_reproduce(checkpoint):
    def answer(*arguments: str) -> str:
        options = ["--model", checkpoint, "--max-tokens", "12", "--raw", "--device", "cpu"]
        done = llmkit("generate", "hello", *options, *arguments)
        assert done.returncode == 0
        return done.stdout

    hot = ["--temperature", "2", "--top-k", "200", "--top-p", "0.99"]
    assert answer(*hot, "--seed", "1") == answer(*hot, "--seed", "1") != answer(*hot, "--seed", "2")


def test_int8_runs_the_quantized_model(checkpoint, monkeypatch):
    ran = []
    forward = Int8Linear.forward
    monkeypatch.setattr(Int8Linear, "forward", lambda *args: ran.append(1) or forward(*args))
    options = ["--model", checkpoint, "--max-tokens", "3", "--device", "cpu", "--dtype", "int8"]
    done = CliRunner().invoke(app, ["generate", "hello", *options])
    assert done.exit_code == 0, done.output
    assert ran


def test_strategies_and_stop_strings(checkpoint):
    def answer(*arguments: str) -> str:
        options = ["--model", checkpoint, "--max-tokens", "12", "--raw", "--device", "cpu"]
        done = CliRunner().invoke(app, ["generate", "hello", *options, *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout.removesuffix("\n")

    plain = answer()
    assert answer("--lookup") == plain
    assert answer("--beams", "4") != plain
    assert answer("--repetition-penalty", "5") != plain
    assert answer("--temperature", "9", "--min-p", "1") == plain  # the likeliest only
    stop = plain[len(plain) // 2 :][:2]
    assert answer("--stop", stop, "--stop", "not this") == plain[: plain.index(stop)] != ""


def test_broken_checkpoint_gets_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    done = llmkit("generate", "hello", "--model", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {tmp_path} cannot be loaded: config lacks vocab_size")
    assert done.stderr.count("\n") == 1


def test_too_long_prompt_gets_one_sentence(checkpoint):
    done = llmkit("generate", "w" * 200, "--model", checkpoint, "--raw")
    assert done.returncode == 1
    assert done.stderr == "Error: The prompt must be one sequence of 1 to 128 tokens, not (200,).\n"


def test_interrupt_keeps_what_was_written(checkpoint):
    code = (
        "import time; from llmkit.tokenization import Tokenizer as T; real = T.decode_stream; "
        "T.decode_stream = lambda s, ids: (time.sleep(0.05) or x for x in real(s, ids))"
    )
    start = f"import runpy, sys; sys.argv = {['llmkit', 'generate', 'he', '--model', checkpoint]}; "
    start += f"{code}; runpy.run_module('llmkit', run_name='__main__', alter_sys=True)"
    process = subprocess.Popen(
        [sys.executable, "-uc", start], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert first and rest.endswith(b"\n")
    assert b" tokens" in error and b"Traceback" not in error
