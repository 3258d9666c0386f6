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

    `reference` is the truth. `compiled` is torch.compile of it where nothing else is given. Triton's form has the
    name of the reference in the module `triton`.
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
    """The name asked for, else that in SEARCH_KERNELS, else `triton` on CUDA where it is installed or `reference`.

    `compiled` is never a default: README.md beside this file says why. ValueError on an unknown name, and on `triton`
    where it cannot run.
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
