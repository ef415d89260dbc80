"""A PostgreSQL server of a test's own, from Debian's package `postgresql`."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

USER, PASSWORD = "grader", "opensesame"
START_SECONDS = 30


class Server:
    """A server on a port of this machine, with its data in `folder`; it asks for a password."""

    def __init__(self, programs: Path, folder: Path, account: str | None):
        self._programs, self._folder, self._account = programs, folder, account
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "password").write_text(PASSWORD)
        if account:
            shutil.chown(folder, account)
            shutil.chown(folder / "password", account)
        options = ["--no-sync", "--encoding=UTF8", "--locale=C.UTF-8", "--auth=scram-sha-256"]
        options += [f"--username={USER}", f"--pwfile={folder / 'password'}"]
        self._run("initdb", *options, "-D", str(folder / "data")).wait()

    def _run(self, program: str, *arguments: str) -> subprocess.Popen:
        with open(self._folder / "log", "ab") as log:
            return subprocess.Popen(
                [self._programs / program, *arguments],
                cwd=self._folder,
                user=self._account,  # PostgreSQL refuses to run as root
                group=self._account,
                extra_groups=[] if self._account else None,
                env={"PATH": os.environ["PATH"], "HOME": str(self._folder)},
                stdout=log,
                stderr=log,
            )

    def start(self) -> None:
        """Start it and wait until it answers. What a killed one left may delay it."""
        deadline = time.monotonic() + START_SECONDS
        options = ["-p", str(self.port), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        options += ["-k", str(self._folder), "-D", str(self._folder / "data")]
        self.process = self._run("postgres", *options)
        while True:
            try:
                return psycopg.connect(self.conninfo("postgres")).close()
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise RuntimeError((self._folder / "log").read_text()) from None
                if self.process.poll() is not None:
                    self.process = self._run("postgres", *options)
                time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL, with no word to anybody."""
        self.process.kill()
        self.process.wait()

    def conninfo(self, database: str) -> str:
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The SQLAlchemy URL of an empty database."""
        name = f"class_{secrets.token_hex(4)}"
        with psycopg.connect(self.conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f"create database {name}")
        return self.conninfo(name).replace("postgresql:", "postgresql+psycopg:")


@contextmanager
def running_server() -> Iterator[Server]:
    """A server until the end; skips the test where the package cannot be installed."""
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))  # not pytest's: those are root's alone
    server = Server(programs, folder, "postgres" if os.geteuid() == 0 else None)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    """Where initdb and postgres are; Debian keeps them off the PATH."""
    find = lambda: sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_version)
    if not find():
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for step in (["update"], ["install", "-y", "--no-install-recommends", "postgresql"]):
            done = subprocess.run(
                ["apt-get", *step], env=environment, capture_output=True, text=True
            )
        if not find():
            pytest.skip(f"PostgreSQL cannot be installed: {done.stderr.strip()[-200:]}")
    return find()[-1].parent


def _version(path: Path) -> int:
    return int(path.parts[-3])
