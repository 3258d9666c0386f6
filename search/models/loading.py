"""Loading pipelines: what ships with the project, folders and hub ids, with errors that say what to type."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from search.profile.bundled import bundled_model

# Which model= a pipeline of each class is for, at the size in which most people have it.
CHOICES = {
    "PixArtAlphaPipeline": "pixart_alpha_1024",
    "PixArtSigmaPipeline": "pixart_sigma_1024",
    "DiTPipeline": "dit_xl_256",
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3_medium",
    "FluxPipeline": "flux_dev",
    "WanPipeline": "wan21_1_3b",
}


def load(
    path: str | Path,
    name: str,
    classes: Sequence[str],
    dtype: torch.dtype | Mapping[str, torch.dtype],
    **components: Any,
) -> Any:
    """The pipeline of a folder, a hub id or a bundled model's name.

    `name` is the model's and `classes` are the pipelines that it takes. ValueError says what to type where a
    pipeline cannot be had, or is of another class; that is found out before its weights are read. `components` take
    the place of its own.
    """
    from diffusers import DiffusionPipeline

    folder = path
    if Path(path).is_dir():
        folder = Path(path)
    elif "/" not in str(path) and (bundled := bundled_model(str(path))).is_dir():
        folder = bundled
    try:
        with quiet():
            found = str(DiffusionPipeline.load_config(folder)["_class_name"])
            load_pipeline = partial(DiffusionPipeline.from_pretrained, folder, torch_dtype=dtype)
            pipe = load_pipeline(**components) if found in classes else None
    except Exception as error:  # hub, file and config errors of many kinds; all mean: not there
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"model.path={str(path)!r} cannot be loaded: {reason}. Type model.path=<folder with "
            "model_index.json>, or a hub id while the network is there, or model=pixart for a bundled model"
        ) from None
    if pipe is None:
        other = CHOICES.get(found)
        hint = f"type model={other} model.path={path}" if other else f"there are adapters for {', '.join(CHOICES)}"
        raise ValueError(f"model.path={str(path)!r} is a {found}; model={name} takes {' and '.join(classes)}; {hint}")
    return pipe


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and hints of the libraries while they load; our own bar says what goes on."""
    import diffusers
    import transformers

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    kept = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for library, verbosity in zip(libraries, kept, strict=True):
            library.set_verbosity(verbosity)
            library.enable_progress_bar()
