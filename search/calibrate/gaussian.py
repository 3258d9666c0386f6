"""The Gaussian of a model: the mean and the largest principal components of its own final latents."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from search.config.settings import Prompts
from search.files import read_regular_file, write_atomically
from search.models.base import Model
from search.schedule.apply.gaussian import Gaussian
from search.schedule.tensors import MAX_TENSOR_BYTES, serialise

LETTER = "G"
FILE = "gaussian.safetensors"
RUNS = 64
SEED = 30_000  # added to seeds: no other run of a search has this noise


def fit_gaussian(model: Model, rank: int, prompts: Sequence[str], seed: int, batch: int) -> Gaussian:
    """The distribution of the final latents that the model itself gives, guidance included: no data set is needed.

    Args:
        model: The model, which runs as without a schedule.
        rank: In so many directions the latents vary.
        prompts: They are taken in turn, each with new noise, RUNS runs in all.
        seed: Of the first prompt in the search; the noise here is other.
        batch: So many runs are made together.

    Returns:
        The Gaussian: arXiv:2412.09726 has it from training data.
    """
    every = [prompts[i % len(prompts)] for i in range(RUNS)]
    seeds = [SEED + seed + i for i in range(RUNS)]
    parts = [slice(i, i + batch) for i in range(0, RUNS, batch)]
    return Gaussian.of(torch.cat([model.sample(every[part], seeds[part]).cpu() for part in parts]), rank)


def add_gaussian(model: Model, rank: int, prompts: Sequence[str], settings: Prompts, folder: Path) -> None:
    """Let a model have its Gaussian as another denoiser; of rank 0 it gets none.

    A file in the folder keeps it for a search that goes on.
    """
    if not rank:
        return
    if (file := folder / FILE).exists():
        gaussian = _read(file)
    else:
        gaussian = fit_gaussian(model, rank, prompts, settings.seed, settings.batch)
        write_atomically(file, serialise(gaussian.tensors(LETTER)))
    model.add_gaussian(LETTER, gaussian)


def _read(file: Path) -> Gaussian:
    try:
        gaussian = Gaussian.read(LETTER, load(read_regular_file(file, MAX_TENSOR_BYTES)))
    except SafetensorError:
        gaussian = None
    if gaussian is None:
        raise ValueError(f"{file} is damaged; remove it, and the Gaussian is fitted again")
    return gaussian
