"""Look at pages with a headless Chromium, through its debugging protocol.

Needs a ``chromium`` on the path. The web socket is tornado's, which Jupyter needs anyway.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import WebSocketClientConnection, websocket_connect

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)
DRAWN = """document.readyState === "complete"
    && !document.querySelector("meta[http-equiv=refresh i]")
    && (window.MathJax?.startup?.promise?.then(() => true) ?? true)"""
# What the protocol answers where a page goes while a command waits for it, by a redirect or a link.
GONE = re.compile("navigated or closed|context was destroyed|Cannot find context|context with specified id")


class PageChanged(RuntimeError):
    """The page that a command was meant for has given way to another."""


@dataclass
class Browser:
    """One tab. ``complaints`` collects console errors and failed requests, ``requests`` what it fetched."""

    loop: asyncio.AbstractEventLoop
    socket: WebSocketClientConnection
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    _calls: int = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its result; events that arrive meanwhile are noted."""
        return self.loop.run_until_complete(self._call(method, parameters))

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._calls += 1
        await self.socket.write_message(json.dumps({"id": self._calls, "method": method, "params": parameters}))
        while True:
            message = json.loads(await self.socket.read_message())
            if message.get("id") == self._calls:
                if "error" in message:
                    text = message["error"]["message"]
                    raise (PageChanged if GONE.search(text) else RuntimeError)(f"{method}: {text}")
                return message["result"]
            self._note(message["method"], message.get("params", {}))

    def _note(self, event: str, details: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.complaints.append(details["exceptionDetails"]["exception"].get("description", "exception"))
        elif event == "Log.entryAdded" and details["entry"]["level"] == "error":
            self.complaints.append(details["entry"]["text"])
        elif event == "Runtime.consoleAPICalled" and details["type"] in ("error", "assert"):
            self.complaints.append(str([argument.get("value") for argument in details["args"]]))
        elif event == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])

    def open(
        self, page: str, *, width: int = 1440, theme: str = "light", scripts: bool = True, touch: bool = False
    ) -> None:
        """Open an address and wait until its scripts have run and its formulas are drawn. touch: as on a telephone."""
        self.complaints.clear()
        self.requests.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=touch)
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch, maxTouchPoints=1)
        scheme = {"name": "prefers-color-scheme", "value": theme}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.call("Page.navigate", url=page)
        for _ in range(600):  # a busy machine draws a page of formulas in many seconds
            self.loop.run_until_complete(asyncio.sleep(0.1))
            if self._holds(f"location.href !== 'about:blank' && {DRAWN}"):
                return
        raise TimeoutError(page)

    def _holds(self, condition: str) -> bool:
        """Whether a JavaScript expression is true; not yet, where the page goes meanwhile."""
        try:
            return bool(self.evaluate(condition))
        except PageChanged:
            return False

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page; a promise is awaited."""
        result = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description") or details["text"])
        return result["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until a JavaScript expression is true, for up to a minute, on a busy machine."""
        for _ in range(1200):
            if self._holds(condition):
                return
            self.loop.run_until_complete(asyncio.sleep(0.05))
        raise TimeoutError(f"{condition}; complaints: {self.complaints}")

    def tap(self, element: str, *, across: float = 0.5) -> None:
        """Touch the element that a JavaScript expression gives; across: where, as a share of its width."""
        x, y = self.evaluate(
            f"""(() => {{
                const element = {element};
                element.scrollIntoView({{behavior: "instant", block: "center"}});
                const {{left, top, width, height}} = element.getBoundingClientRect();
                return [left + {across} * width, top + height / 2];
            }})()"""
        )
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, key: str) -> None:
        """Press a key: " " or a name such as "Tab" or "ArrowDown"."""
        codes = {" ": 32, "Tab": 9, "ArrowDown": 40, "Enter": 13}
        text = {"text": " "} if key == " " else {}
        code = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": codes[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **code)


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A running browser with an empty profile."""
    assert PROGRAM is not None
    process = subprocess.Popen(
        [PROGRAM, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    loop = asyncio.new_event_loop()
    try:
        assert process.stderr is not None
        found = (re.search(r"ws://(\S+?)/", line) for line in process.stderr)
        host = next(match[1] for match in found if match)
        targets = json.loads(loop.run_until_complete(_get(f"http://{host}/json")))
        address = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
        socket = loop.run_until_complete(_connect(address))
        browser = Browser(loop, socket)
        for domain in ("Page", "Runtime", "Log", "Network"):
            browser.call(f"{domain}.enable")
        yield browser
    finally:
        process.kill()
        process.wait()
        loop.close()


async def _get(address: str) -> bytes:
    return (await AsyncHTTPClient().fetch(address)).body


async def _connect(address: str) -> WebSocketClientConnection:
    return await websocket_connect(address, max_message_size=2**26)
