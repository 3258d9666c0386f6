"""Which form of a kernel runs: its plain reference, torch.compile of that, or Triton's on a GPU."""

import os
from collections.abc import Callable
from functools import cache, cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

FORMS = ("reference", "compiled", "triton")
VARIABLE = "SEARCH_KERNELS"
Function = Callable[..., Any]
SUMMED = (torch.float32, torch.bfloat16, torch.float16)  # in fp32 by Triton's forms; float64 is for the reference


class Kernel:
    """One operation in three forms that take the same arguments; each is loaded when it first runs.

    Args:
        reference: The form in plain torch, which the others are tested against.
        triton: The module of Triton's form, a function of the same name as the reference.
        compiled: A form for torch.compile; by default the reference compiled as it is.
    """

    def __init__(self, reference: Function, triton: str, compiled: Function | None = None) -> None:
        self.reference, self._module, self._compiled = reference, triton, compiled

    @cached_property
    def compiled(self) -> Function:
        return self._compiled or torch.compile(self.reference)

    @cached_property
    def triton(self) -> Function:
        function: Function = getattr(import_module(self._module), self.reference.__name__)
        return function

    def of(self, value: Tensor, implementation: str | None = None) -> Function:
        """The form for a value, or the one that is asked for."""
        function: Function = getattr(self, choose(value, implementation))
        return function


def choose(value: Tensor, implementation: str | None = None) -> str:
    """The form of a kernel for a value: the one asked for, else that of the variable SEARCH_KERNELS, else the default.

    The default is `triton` for float32, bfloat16 and float16 on CUDA where it is installed, and `reference` otherwise.
    `compiled` is never a default; README.md in this folder says why.

    Args:
        value: The first tensor that the kernel is given.
        implementation: `reference`, `compiled` or `triton`; None for no choice.

    Returns:
        One of these names.

    Raises:
        ValueError: The name is unknown, or `triton` cannot run here.

    Example:
        >>> import torch
        >>> from search.kernels.dispatch import choose
        >>> choose(torch.zeros(2), "compiled")
        'compiled'
    """
    name = implementation or os.environ.get(VARIABLE)
    if name is None:
        return "triton" if value.is_cuda and value.dtype in SUMMED and has_triton() else "reference"
    if name not in FORMS:
        raise ValueError(f"kernel implementation {name!r} is unknown; use {', '.join(FORMS)} (or {VARIABLE}=reference)")
    if name == "triton" and not has_triton():
        raise ValueError(
            "implementation='triton' needs triton; type: pip install \"diffusion-schedule-search[triton]\""
        )
    if name == "triton" and value.dtype not in SUMMED:
        raise ValueError(f"implementation='triton' sums in fp32, and the values are {value.dtype}; use 'reference'")
    if name == "triton" and not value.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"implementation='triton' runs on cuda, not on {value.device.type}; use 'reference', or set "
            "TRITON_INTERPRET=1 before Python starts for Triton's interpreter"
        )
    return name


@cache
def has_triton() -> bool:
    return find_spec("triton") is not None
