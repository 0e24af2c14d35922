"""A headless Chromium, spoken to over its DevTools pipe; no package is needed for that."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-dev-shm-usage",
    "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE = 60.0


def find() -> str:
    """The browser. Without one the test is skipped, but fails where `CI` is set."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None and os.environ.get("CI"):
        pytest.fail("there is no chromium to look at the page with; .ci/run installs it")
    if found is None:
        pytest.skip("there is no chromium to look at the page with; `apt-get install chromium`")
    return found


class Browser:
    """One page.

    Attributes:
        events: everything the browser told of: requests, console messages, exceptions.
    """

    def __init__(self) -> None:
        program = find()
        self.events: list[dict[str, Any]] = []
        self._profile = tempfile.mkdtemp(prefix="flowhooks-chromium-")
        self._buffer, self._number, self._session = b"", 0, None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()

        def wire() -> None:
            # The browser reads 3 and writes 4. By way of high numbers, as either pipe may have one of the two already.
            reading, writing = (fcntl.fcntl(each, fcntl.F_DUPFD, 100) for each in (theirs_in, theirs_out))
            os.dup2(reading, 3)
            os.dup2(writing, 4)

        command = [program, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False, preexec_fn=wire
        )
        os.close(theirs_in)
        os.close(theirs_out)
        pages = self.call("Target.getTargets")["targetInfos"]
        target = next(each["targetId"] for each in pages if each["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One DevTools command and its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def open(self, page: Path, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Load a file, and wait until it stands."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.open_address(page.resolve().as_uri())

    def open_address(self, url: str) -> None:
        """Load an address, and wait until it stands."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.wait("Page.loadEventFired")

    def wait(self, method: str) -> None:
        """Wait for an event since the last call of this, or of those that open a page."""
        while not any(each.get("method") == method for each in self.events):
            self.events.append(self._read())

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def requests(self) -> list[str]:
        """Addresses asked for, `data:` and the page itself aside."""
        asked = [each["params"]["request"]["url"] for each in self._told("Network.requestWillBeSent")]
        return [url for url in asked if not url.startswith("data:")][1:]

    def complaints(self) -> list[dict[str, Any]]:
        """Errors, and all that was said on the console."""
        return [
            *self._told("Runtime.exceptionThrown"),
            *self._told("Runtime.consoleAPICalled"),
            *self._told("Log.entryAdded"),
        ]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self._profile, ignore_errors=True)

    def _told(self, method: str) -> list[dict[str, Any]]:
        return [each for each in self.events if each.get("method") == method]

    def _read(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"the browser said nothing for {PATIENCE:.0f} s"
            more = os.read(self._in, 1 << 20)
            assert more, "the browser has gone"
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)
