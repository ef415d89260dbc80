"""A headless Chromium, spoken to in its own protocol over a pipe: no driver, package or port."""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PROGRAM = next(filter(None, map(shutil.which, PROGRAMS)), None)
OPTIONS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu"),
    *("--no-sandbox", "--disable-dev-shm-usage", "--disable-extensions", "--no-proxy-server"),
    *("--disable-background-networking", "--disable-component-update"),
)
# The pipe's ends must be the numbers 3 and 4 in the browser, whatever they are here. A third copy
# is neither of them, so that no end is overwritten before it is in its place.
START = """
import os, sys
ends = [os.dup(os.dup(os.dup(int(end)))) for end in sys.argv[1:3]]
for end, number in zip(ends, (3, 4)):
    os.dup2(end, number)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
    """One tab. `console` holds the errors that the browser told of, and `asked` all URLs."""

    def __init__(self, send: int, receive: int):
        self.send, self.receive, self.buffer, self.number = send, receive, b"", 0
        self.console: list[str] = []
        self.asked: list[str] = []
        self.loaded = False
        self.session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Log", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def open(
        self, address: Path | str, width: int = 1200, height: int = 900, dark: bool = False
    ) -> None:
        """Show a file or a URL in a window of this many CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.loaded = False
        url = address if isinstance(address, str) else address.resolve().as_uri()
        self.call("Page.navigate", url=url)
        while not self.loaded:
            self._read()

    def evaluate(self, expression: str) -> object:
        """The value of a JavaScript expression in the page, or what it promises."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        done = self.call("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, expression: str, seconds: float = 120) -> object:
        """What the expression gives when it first gives something true."""
        deadline = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, f"{expression} stays {value!r}"
            time.sleep(0.1)
        return value

    def press(self, key: str, code: int, modifiers: int = 0) -> None:
        """Press a key by its name and number in DOM; modifiers: 2 is Ctrl, 8 is Shift."""
        text = {"text": "\r"} if key == "Enter" and not modifiers else {}
        for kind in ("keyDown", "keyUp"):
            named = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
            self.call("Input.dispatchKeyEvent", type=kind, **named, **text)

    def barriers(self) -> list[str]:
        """What axe finds that keeps people out: serious or critical, and where."""
        script = resources.files("axe_playwright_python") / "axe.min.js"
        self.evaluate(f"{script.read_text(encoding='utf-8')}; null")
        options = "{resultTypes: ['violations'], preload: false}"
        found = self.evaluate(f"axe.run({options}).then(r => r.violations)")
        return [
            f"{one['impact']} {one['id']}: {node['target']} {node['html'][:200]}"
            for one in found
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]

    def screenshot(self, path: Path) -> Path:
        """Write what the window shows, as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
        return path

    def call(self, method: str, **params: object) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == message["id"]:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> dict:
        while b"\0" not in self.buffer:
            data = os.read(self.receive, 1 << 20)
            if not data:
                raise RuntimeError("Chromium ended.")
            self.buffer += data
        text, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(text)
        params = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self.loaded = True
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                entry = params["entry"]
                self.console.append(f"{entry['text']} {entry.get('url', '')}".strip())
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "assert"):
                self.console.append(str([each.get("value") for each in params["args"]]))
            case "Runtime.exceptionThrown":
                self.console.append(params["exceptionDetails"]["text"])
            case "Network.requestWillBeSent":
                self.asked.append(params["request"]["url"])
        return message


@contextmanager
def chromium() -> Iterator[Page]:
    """Start the browser with a profile of its own, and end it."""
    assert PROGRAM, "no Chromium is installed"
    theirs, send = os.pipe()
    receive, back = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [PROGRAM, *OPTIONS, f"--user-data-dir={profile}"]
        browser = subprocess.Popen(
            [sys.executable, "-c", START, str(theirs), str(back), *command],
            pass_fds=(theirs, back),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(back)
        try:
            page = Page(send, receive)
            yield page
            page.session = ""
            page.call("Browser.close")
        finally:
            deadline = time.monotonic() + 10
            while browser.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            browser.kill()
            browser.wait()
            os.close(send)
            os.close(receive)


@contextmanager
def serving(module: list[str], url: str, folder: Path, variables: dict[str, str]) -> Iterator[None]:
    """`python -m MODULE …`, run in a folder, from when it answers at this URL until the end."""
    server = subprocess.Popen(
        [sys.executable, "-m", *module],
        cwd=folder,
        env=os.environ | variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(url, server)
        yield
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(url: str, server: subprocess.Popen, seconds: float = 120) -> None:
    """Until the server answers at this URL."""
    deadline = time.monotonic() + seconds
    while True:
        assert server.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.2)
