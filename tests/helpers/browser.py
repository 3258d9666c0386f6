"""A page in headless Chromium, spoken to over a pipe: open, wait for something, look."""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
# Nothing but the page that is asked for; no sandbox, because tests may run as root in a container.
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-pipe",
    "--window-size=1700,1100",
]


class Page:
    """One tab. DevTools messages are JSON, each ended by a zero byte, on file descriptors 3 and 4.

    `events` are those that came with the answers, of domains that were enabled: `call("Network.enable")`.
    """

    def __init__(self, send: Any, receive: Any, url: str) -> None:
        self.send, self.receive, self.count, self.session = send, receive, 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url=url)["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        self.send.write(json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        self.send.flush()
        while True:
            answer = json.loads(self._message())
            if "method" in answer:
                self.events.append(answer)
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _message(self) -> bytes:
        parts = []
        while (byte := self.receive.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("Chromium ended")
            parts.append(byte)
        return b"".join(parts)

    def value(self, javascript: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=javascript, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value")

    def wait(self, javascript: str, seconds: float = 60) -> Any:
        """The expression's value as soon as it is truthy."""
        end = time.monotonic() + seconds
        while not (found := self.value(javascript)):
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{javascript} stayed {found!r}; the page says: {self.value('document.body.innerText')}"
                )
            time.sleep(0.25)
        return found

    def screenshot(self, path: Path) -> Path:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
        return path


@contextlib.contextmanager
def opened(url: str, profile: Path) -> Iterator[Page]:
    """A page at `url`, in a browser of its own that ends with the block."""
    there, back = os.pipe(), os.pipe()
    # above 4, so that neither is overwritten when they are put where Chromium expects them
    ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (there[0], back[1])]
    process = subprocess.Popen(
        [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}"],
        close_fds=False,  # Python's own are not inherited anyway
        preexec_fn=lambda: (os.dup2(ends[0], 3), os.dup2(ends[1], 4)),
        stderr=subprocess.DEVNULL,
    )
    for fd in (*ends, there[0], back[1]):
        os.close(fd)
    try:
        with os.fdopen(there[1], "wb") as send, os.fdopen(back[0], "rb") as receive:
            yield Page(send, receive, url)
    finally:
        process.terminate()
        process.wait(20)
