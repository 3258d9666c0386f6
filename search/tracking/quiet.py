"""Keeps MLflow and the libraries below it from writing on the terminal; what went wrong is said in one line of ours."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = ("alembic", "databricks", "mlflow", "sqlalchemy", "urllib3")
SILENT = logging.CRITICAL + 1

_lock = threading.Lock()
_levels: dict[str, int] = {}  # of the loggers as they were before
_blocks = 0  # that are open, in any thread


@contextmanager
def silent_libraries() -> Iterator[None]:
    """No log lines of these libraries while a block is open in any thread; after it their loggers are as before."""
    global _blocks
    with _lock:
        _blocks += 1
        _silence()
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if not _blocks:
                for name, level in _levels.items():
                    logging.getLogger(name).setLevel(level)
                _levels.clear()


def silence_imported_library() -> None:
    """To be called after an import within a block: a library sets up its loggers when it is imported."""
    with _lock:
        if _blocks:
            _silence()


def _silence() -> None:
    existing = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in LIBRARIES]
    for name in {*LIBRARIES, *existing}:
        logger = logging.getLogger(name)
        if logger.level != SILENT:
            _levels[name] = logger.level
            logger.setLevel(SILENT)
