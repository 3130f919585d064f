"""A headless Chromium spoken to over its DevTools protocol through two named pipes: no driver to install."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
LIMIT = 90
"""Seconds until a browser that hangs is ended, by `timeout`; and until what is awaited in a page must have come."""


def find() -> str | None:
    """The browser on this machine, None where there is none or where `timeout` and named pipes are missing."""
    known = hasattr(os, "mkfifo") and shutil.which("timeout")
    return next(filter(None, map(shutil.which, NAMES)), None) if known else None


@dataclass
class Browser:
    """One tab. `events` are all that it told unasked: console messages, exceptions, requests."""

    orders: IO[bytes]
    answers: IO[bytes]
    session: str = ""
    asked: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a protocol method, https://chromedevtools.github.io/devtools-protocol/."""
        self.asked += 1
        order = {"id": self.asked, "method": method, "params": params}
        self.orders.write(json.dumps(order | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        self.orders.flush()
        while (said := self._next()).get("id") != self.asked:
            self.events.append(said)
        assert "error" not in said, said
        return said["result"]

    def wait(self, event: str) -> None:
        """Until `event` has come, which may have been before."""
        while all(said.get("method") != event for said in self.events):
            self.events.append(self._next())

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; a promise is awaited."""
        said = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def until(self, condition: str) -> None:
        """Until a JavaScript condition holds in the page."""
        end = time.monotonic() + LIMIT
        while not self.evaluate(condition):
            assert time.monotonic() < end, f"never came: {condition}"
            time.sleep(0.05)

    def choose(self, selector: str, files: Sequence[Path]) -> None:
        """Hand files to the page's <input type=file>, as if a person had chosen them."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file.resolve()) for file in files])

    def screenshot(self) -> bytes:
        """PNG of the whole page, also what is below the window."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def told(self, *methods: str) -> list[dict[str, Any]]:
        """What came with the events of these names."""
        return [said["params"] for said in self.events if said.get("method") in methods]

    def _next(self) -> dict[str, Any]:
        message = bytearray()
        while (letter := self.answers.read(1)) != b"\0":
            assert letter, "the browser is gone"
            message += letter
        return json.loads(message)


@contextmanager
def browse(command: str, folder: Path, *more: str, limit: int = LIMIT) -> Iterator[Browser]:
    """A fresh browser with a profile in `folder` (and `more` flags), ended with the block, or after `limit` seconds."""
    pipes = [str(folder / name) for name in ("orders", "answers")]
    for pipe in pipes:
        os.mkfifo(pipe)
    flags = (*FLAGS, "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}", *more, "about:blank")
    shell = ["sh", "-c", 'in=$1; out=$2; shift 2; exec "$@" 3<"$in" 4>"$out"', "sh", *pipes]
    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen([*shell, "timeout", str(limit), command, *flags], stdout=log, stderr=log)
    try:
        with Path(pipes[0]).open("wb") as orders, Path(pipes[1]).open("rb") as answers:
            browser = Browser(orders, answers)
            target = browser.call("Target.createTarget", url="about:blank")["targetId"]
            browser.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                browser.call(f"{domain}.enable")
            yield browser
            browser.session = ""
            browser.call("Browser.close")
    finally:
        process.terminate()
        process.wait()


def open_page(browser: Browser, page: Path | str, width: int, height: int = 800, dark: bool = False) -> None:
    """Load the file or address in a window of this size, CSS pixels, and wait until its pictures are decoded."""
    phone = width < 600
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1 + phone, mobile=phone
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.call("Emulation.setEmulatedMedia", features=[scheme])
    browser.events.clear()
    browser.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
    browser.wait("Page.loadEventFired")
    browser.evaluate("Promise.all([...document.images].map(image => image.decode())).then(() => null)")
