"""Load pipelines from folders, hub ids and the bundled models, with errors that say what to type."""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from search.profile.bundled import bundled_model


def load_any(path: str | Path, dtype: torch.dtype | Mapping[str, torch.dtype], **components: Any) -> Any:
    """The pipeline of a folder, a hub id or a bundled model's name, of whatever class.

    Args:
        path: The folder, hub id or name.
        dtype: Type of the weights, or types by component.
        **components: Components that replace the pipeline's.

    Raises:
        ValueError: It cannot be loaded.
    """
    return _load(path, _find(path), dtype, **components)


def _find(path: str | Path) -> str | Path:
    """Where a pipeline lies; its index is read before its weights."""
    from diffusers import DiffusionPipeline

    folder = path
    if Path(path).is_dir():
        folder = Path(path)
    elif "/" not in str(path) and (bundled := bundled_model(str(path))).is_dir():
        folder = bundled
    try:
        if not isinstance(folder, Path) and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(folder)):
            raise ValueError("there is no such folder, and it is not a hub id")
        with quiet():
            DiffusionPipeline.load_config(folder)
            return folder
    except Exception as error:  # hub, file and config errors are of many kinds
        raise _not_loaded(path, error) from None


def _load(path: str | Path, folder: str | Path, dtype: Any, **components: Any) -> Any:
    from diffusers import DiffusionPipeline

    try:
        with quiet():
            return DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, **components)
    except Exception as error:
        raise _not_loaded(path, error) from None


def _not_loaded(path: str | Path, error: Exception) -> ValueError:
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return ValueError(
        f"model.path={str(path)!r} cannot be loaded: {reason}. Type model.path=<folder with model_index.json>, or a "
        "hub id with access to the internet, or model=pixart for a bundled model"
    )


@contextmanager
def without_downloads() -> Iterator[None]:
    """Hub ids are looked up on this machine only: a search that goes on names what it ran with here before."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and hints of the libraries while they load; the search has a bar of its own."""
    import diffusers
    import transformers

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    verbosities = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for library, verbosity in zip(libraries, verbosities, strict=True):
            library.set_verbosity(verbosity)
            library.enable_progress_bar()
