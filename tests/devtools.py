"""A headless Chromium that tests drive by the DevTools protocol, over a pair of pipes."""

import json
import os
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from browser import require

_SECONDS = 60

# Chromium reads commands from descriptor 3 and writes to 4; ours are moved out of the way first.
_LAUNCHER = """
import fcntl, os, sys
ours = [fcntl.fcntl(int(one), fcntl.F_DUPFD, 10) for one in sys.argv[1:3]]
for number, one in enumerate(ours, 3):
    os.dup2(one, number)
os.execv(sys.argv[3], sys.argv[3:])
"""

# Names of keys that are no characters, with their codes for Windows, by which Chromium knows them.
_KEYS = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "Tab": 9}
_CTRL, _SHIFT = 2, 8


class Page:
    """A tab. requests: all addresses that it has asked for. complaints: what it has thrown, and
    what it or the browser has written to its console as an error."""

    def __init__(self, commands: int, events: int) -> None:
        self._commands, self._events = commands, events
        self._read = b""
        self._number = 0
        self._session = ""
        self.requests: list[str] = []
        self.complaints: list[Any] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        return self._call(method, **parameters)

    def _call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        sent = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            sent["sessionId"] = self._session
        os.write(self._commands, json.dumps(sent).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _next(self) -> Any:
        while b"\0" not in self._read:
            data = os.read(self._events, 1 << 16)
            assert data, "chromium has ended"
            self._read += data
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)

    def _note(self, event: Any) -> None:
        method, told = event["method"], event["params"]
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif (
            method == "Runtime.exceptionThrown"
            or (method == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"))
            or (method == "Log.entryAdded" and told["entry"]["level"] == "error")
        ):
            self.complaints.append(told)

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, script: str) -> Any:
        """Of an expression in JavaScript, or of what it promises."""
        done = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, (script, done["exceptionDetails"])
        return done["result"].get("value")

    def wait(self, script: str) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + _SECONDS
        while not self.value(f"Boolean({script})"):
            assert time.monotonic() < end, (script, self.value("document.body.innerText"))
            time.sleep(0.02)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, ctrl: bool = False, shift: bool = False) -> None:
        """A key, with what it does in the page and in the browser."""
        name: dict[str, Any] = {"key": key, "modifiers": ctrl * _CTRL + shift * _SHIFT}
        if key in _KEYS:
            name |= {"code": key, "windowsVirtualKeyCode": _KEYS[key]}
        text = {"Enter": "\r"}.get(key, "" if key in _KEYS else key)
        down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        self.call("Input.dispatchKeyEvent", **name, **down)
        self.call("Input.dispatchKeyEvent", **name, type="keyUp")

    def picture(self, path: Path) -> None:
        path.write_bytes(b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def page(profile: Path, width: int = 1280, height: int = 800) -> Iterator[Page]:
    """A tab of a new browser. The test is skipped where there is none."""
    chromium = require()
    commands_in, commands = os.pipe()
    events, events_out = os.pipe()
    options = ["--headless", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
    options += [f"--user-data-dir={profile}", f"--window-size={width},{height}"]
    options += ["--no-first-run", "--disable-background-networking", "--disable-extensions"]
    if os.geteuid() == 0:
        options.append("--no-sandbox")  # as root it has none
    command = [sys.executable, "-c", _LAUNCHER, str(commands_in), str(events_out), chromium]
    process = subprocess.Popen(
        [*command, *options],
        pass_fds=(commands_in, events_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands_in)
    os.close(events_out)
    try:
        yield Page(commands, events)
    finally:
        os.close(commands)  # which ends it
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(events)
