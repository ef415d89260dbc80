"""What a student uses, where neither Linux nor the grader's packages are: on Windows, in Colab."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from autograder import first_cell

ROOT = Path(__file__).parents[2]
ABSENT = (
    *("fcntl", "resource", "pwd", "grp", "termios"),  # not on Windows
    *("nbgrader", "sqlalchemy", "alembic", "jupytext", "copydetect", "distributed"),  # extras
)
ELSEWHERE = f"""
import sys
for name in {ABSENT}:
    sys.modules[name] = None
import os, signal
for name in ("fork", "setsid", "getuid", "geteuid", "sched_getaffinity", "pidfd_open"):
    if hasattr(os, name):
        delattr(os, name)
del signal.SIGALRM
"""


def run(program: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", ELSEWHERE + program], cwd=ROOT, capture_output=True, text=True
    )


def autograder(*arguments: str) -> subprocess.CompletedProcess:
    program = f"sys.argv[1:] = {arguments}\nfrom autograder.__main__ import main\nmain()"
    return run(program)


def test_a_check_answers():
    done = run("from autograder import check\nfrom llmkit.losses import one_hot\ncheck(one_hot)")
    assert done.stdout.startswith("✓ one_hot"), done.stderr


def test_a_whole_notebook_is_scored(tmp_path):
    source = ROOT / "notebooks" / "02-losses" / "02-losses.ipynb"
    text = source.read_text("utf-8")
    blank = "cherry_bits = None"
    assert blank in text
    (tmp_path / source.name).write_text(text.replace(blank, "cherry_bits = 2.3219"), "utf-8")
    done = autograder("check", str(tmp_path / source.name), "--no-sandbox")
    assert done.stdout.splitlines()[-1].startswith("1 of "), done.stderr
    assert "✓ cherry_bits" in done.stdout


def test_progress_is_shown():
    done = autograder("progress")
    assert "Next: count_bigram in 01-ngrams" in done.stdout, done.stderr


@pytest.mark.parametrize("command", ["grade", "build"])
def test_what_needs_more_says_so(command):
    done = autograder(command, "-C", str(ROOT))
    assert done.returncode == 1
    assert "pip install" in done.stderr
    assert "Traceback" not in done.stderr


# Another kernel, an old version, Colab


@pytest.fixture
def packages(tmp_path) -> Path:
    """A folder with all packages of this Python but the course."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "llmkit" not in entry.name and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    return folder


def run_with(packages: Path, program: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-S", "-c", program],  # -S: without this Python's own packages
        cwd=packages.parent,
        env=os.environ | {"PYTHONPATH": str(packages), "HOME": str(packages.parent)},
        capture_output=True,
        text=True,
    )


def told(packages: Path, cell: str, colab: bool = False) -> str:
    """What a cell says in a kernel that has these packages. It fails if it says something."""
    program = "import sys\nfrom IPython.core.interactiveshell import InteractiveShell\n"
    if colab:
        program += "sys.modules['google.colab'] = sys\n"
    program += f"sys.exit(not InteractiveShell.instance().run_cell({cell!r}).success)"
    done = run_with(packages, program)
    assert done.returncode == bool(done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def add_course(packages: Path, version: str) -> None:
    folder = packages / "llmkit_course.dist-info"
    folder.mkdir()
    text = f"Metadata-Version: 2.1\nName: llmkit-course\nVersion: {version}\n"
    (folder / "METADATA").write_text(text)


def replace_pip(packages: Path, program: str) -> None:
    (packages / "pip").unlink()
    (packages / "pip").mkdir()
    (packages / "pip" / "__init__.py").touch()
    (packages / "pip" / "__main__.py").write_text(program)


@pytest.fixture
def cell(monkeypatch):
    """A function that gives the first cell, as version 0.9.0 with this address builds it."""

    def built(address: str = "") -> str:
        monkeypatch.setattr(first_cell, "version", lambda name: "0.9.0")
        monkeypatch.setattr(first_cell, "ADDRESS", address)
        return first_cell.first_cell()

    return built


@pytest.mark.parametrize("version", ["0.9.0", "0.10.0", "1.0"])
def test_the_first_cell_is_silent_where_all_is_well(packages, cell, version):
    add_course(packages, version)
    assert told(packages, cell()) == ""


def test_the_wrong_kernel_is_told_so(packages, cell):
    said = told(packages, cell())
    assert f"The Python of this kernel does not have the course: {sys.executable}\n" in said
    assert "Kernel > Change Kernel" in said and "make lab" in said
    assert "%pip install ADDRESS in a new cell (your instructor knows" in said


@pytest.mark.parametrize("version", ["0.8.9", "0.0.10"])
def test_an_old_version_is_told_so(packages, cell, version):
    add_course(packages, version)
    said = told(packages, cell("git+https://example.org/course"))
    assert f"version 0.9.0 of the course, and version {version} is here" in said
    assert "git pull and make lab" in said
    assert "%pip install git+https://example.org/course in a new cell.\n" in said


INSTALLING = """
import sys
from pathlib import Path
Path("asked").write_text(" ".join(sys.argv[1:]))
folder = Path("packages", "llmkit_course.dist-info")
folder.mkdir()
(folder / "METADATA").write_text("Name: llmkit-course\\nVersion: 0.9.0\\n")
"""


def test_colab_installs_the_course_and_changes_nothing_else(packages, cell):
    replace_pip(packages, INSTALLING)
    assert told(packages, cell("git+https://example.org/course"), colab=True) == ""
    asked = (packages.parent / "asked").read_text()
    assert asked == "install --no-deps gguf git+https://example.org/course"


@pytest.mark.parametrize("address", ["", "git+https://example.org/course"])
def test_colab_without_the_course_says_what_to_do(packages, cell, address):
    replace_pip(packages, "import sys; sys.exit('there is no network')")
    said = told(packages, cell(address), colab=True)
    assert "Colab does not have the course." in said
    assert f"%pip install --no-deps gguf {address or 'ADDRESS'} in a new cell" in said
    assert ("your instructor" in said) == (not address)


def test_the_installed_package_holds_every_file_and_answers_anywhere(packages, tmp_path):
    source = tmp_path / "course"
    for name in ("llmkit", "autograder"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    files = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    pip += ["--no-build-isolation", "--no-compile", "--target", packages, source]
    subprocess.run(pip, check=True, capture_output=True)
    assert [file for file in files if not (packages / file).is_file()] == []
    program = "from autograder import check\nfrom llmkit.losses import one_hot\ncheck(one_hot)"
    done = run_with(packages, program)
    assert done.stdout.startswith("✓ one_hot"), done.stderr
