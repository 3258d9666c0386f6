"""Search how a diffusion model is run; the result is a `Schedule`, a file for any stock pipeline."""

import sys as _sys
from pathlib import Path as _Path
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.api import (
        best_within,
        contract,
        explain,
        export,
        generate,
        load_model,
        promote,
        report,
        search,
        transfer,
        verify,
    )
    from search.schedule import Schedule, ScheduleError

__all__ = [
    "Schedule",
    "ScheduleError",
    "best_within",
    "contract",
    "explain",
    "export",
    "generate",
    "load_model",
    "promote",
    "report",
    "search",
    "transfer",
    "verify",
]
__version__ = "0.1.0"

if __name__ != "search":
    # The repository root is on __path__ below, so `search.search.search...` would otherwise never end.
    raise ImportError(f"import 'search', not {__name__!r}")

# spaces/, objectives/, kernels/ and conf/ stand at the root of the repository but are imported as
# search.spaces and so on: Hugging Face publishes packages that are imported as `kernels` and `spaces`.
# A wheel has them inside this folder already; in a checkout this line makes them visible.
_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "spaces").is_dir():
    __path__.append(str(_root))


class _Package(_ModuleType):
    """The package itself: importing the command `search.verify` must not hide the function of the same name."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, _ModuleType)):
            super().__setattr__(name, value)


_sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """Load the public names on first use: torch and diffusers take seconds, `import search` takes none."""
    if name not in __all__:
        raise AttributeError(f"module 'search' has no attribute {name!r}; public names are {', '.join(__all__)}")
    if name.startswith("Schedule"):
        from search import schedule as home
    else:
        from search import api as home  # type: ignore[no-redef]
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
