"""Search how a diffusion model is run; what is found is a `Schedule`, a file for any stock pipeline."""

from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.schedule import Schedule, ScheduleError

__all__ = ["Schedule", "ScheduleError"]
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


def __getattr__(name: str) -> Any:
    """Load the public names on first use: torch and diffusers take seconds, `import search` takes none."""
    if name in __all__:
        from search import schedule

        return getattr(schedule, name)
    raise AttributeError(f"module 'search' has no attribute {name!r}; public names are {__all__}")
