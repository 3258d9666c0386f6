"""An MLflow server of its own for a test: started, waited for, ended."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def served(words: list[str], folder: Path) -> Iterator[str]:
    """The address of `mlflow …`, run in the folder; it ends with the block."""
    port, log = free_port(), folder / "server.log"
    program = Path(sys.executable).with_name(words[0])
    command = [program, *words[1:], "--port", str(port), "--workers", "1"]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 240
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.5)
    raise TimeoutError(log.read_text())
