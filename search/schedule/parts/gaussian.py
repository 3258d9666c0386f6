"""The part of the file for the denoiser of a Gaussian, whose numbers are in the tensors file."""

from collections.abc import Mapping

import torch
from torch import Tensor

from search.schedule.errors import ScheduleError
from search.schedule.tensors import TensorGroup

GAUSSIAN = "GaussianDenoiser"  # the class of such an entry of `models.names`
MEAN, BASIS, VALUES = "mean", "basis", "values"


def gaussian_tensors(letter: str, digest: str) -> TensorGroup:
    """What the entry of a letter has in the tensors file."""
    prefix = f"models/{letter}."
    names = frozenset(prefix + key for key in (MEAN, BASIS, VALUES))

    def check(tensors: Mapping[str, Tensor]) -> None:
        mean, basis, values = (tensors[prefix + key] for key in (MEAN, BASIS, VALUES))
        fits = basis.shape == (len(values), mean.numel()) and values.dim() == 1 and mean.dim() >= 1 and mean.numel()
        dtypes = (mean.dtype, basis.dtype, values.dtype) == (torch.float32, torch.float16, torch.float32)
        if not fits or not dtypes or bool((values < 0).any()):
            shapes = ", ".join(f"{key} {list(tensors[prefix + key].shape)}" for key in (MEAN, BASIS, VALUES))
            raise ScheduleError(
                f"models.names.{letter} has {shapes}; a Gaussian has mean [...] and values [rank], not negative, in "
                "float32, and basis [rank, numbers of mean] in float16"
            )

    return TensorGroup(f"models.names.{letter}.fingerprint", digest, names, check)
