"""Headless Chromium over its DevTools protocol: enough to use a page as a person does."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from websockets.sync.client import connect

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-port=0", "about:blank",
)  # fmt: skip


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """One page; `faults` collects what its console or its scripts complain about, but for complaints with a
    text of `provoked`: the console may tell of an answer after the page shows it."""

    def __init__(self, profile: Path, width: int = 1200, height: int = 1000):
        program = chromium()
        assert program is not None
        command = [program, *FLAGS[:-1], f"--user-data-dir={profile}", FLAGS[-1]]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = self._wait(lambda: (profile / "DevToolsActivePort").read_text().split()[0])
        targets = self._wait(lambda: httpx.get(f"http://127.0.0.1:{port}/json", trust_env=False).json())
        address = next(one["webSocketDebuggerUrl"] for one in targets if one["type"] == "page")
        self._socket = connect(address, max_size=None, proxy=None).__enter__()
        self._next = 0
        self.faults: list[str] = []
        self.provoked: set[str] = set()
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(10)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._next += 1
        self._socket.send(json.dumps({"id": self._next, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=20))
            if message.get("method") == "Runtime.exceptionThrown":
                self._complain(message["params"]["exceptionDetails"]["text"])
            if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self._complain(message["params"]["entry"]["text"])
            if message.get("id") == self._next:
                assert "error" not in message, message
                return message["result"]

    def _complain(self, text: str) -> None:
        if not any(one in text for one in self.provoked):
            self.faults.append(text)

    def forget(self) -> None:
        """Forget all faults, and what was provoked."""
        self.faults.clear()
        self.provoked.clear()

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str, limit_s: float = 15.0) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + limit_s
        while not self.run(f"!!({script})"):
            assert time.monotonic() < end, (
                f"never true: {script}; the page: {self.run('document.body.innerText')}"
            )
            time.sleep(0.05)

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def press(self, key: str) -> None:
        code = {"Enter": 13, "ArrowDown": 40, "Tab": 9, "Escape": 27}[key]
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    @staticmethod
    def _wait(look: Any, limit_s: float = 20.0) -> Any:
        end = time.monotonic() + limit_s
        while True:
            try:
                if found := look():
                    return found
            except (OSError, IndexError, httpx.HTTPError):
                pass
            assert time.monotonic() < end, "Chromium did not start"
            time.sleep(0.05)
