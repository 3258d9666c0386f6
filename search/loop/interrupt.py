"""Ctrl-C that is not lost.

Python ignores errors in callbacks of weak references and in `__del__`: a KeyboardInterrupt that is raised there ends
nothing.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def remembered_interrupt() -> Iterator[Callable[[], None]]:
    """Give a function that raises KeyboardInterrupt again where Ctrl-C was pressed and nothing ended by it."""
    pressed, before = False, signal.getsignal(signal.SIGINT)
    handled = callable(before) and threading.current_thread() is threading.main_thread()

    def handle(number: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        before(number, frame)  # type: ignore[operator, misc]

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    if handled:
        signal.signal(signal.SIGINT, handle)
    try:
        yield check
    finally:
        if handled:
            signal.signal(signal.SIGINT, before)
