"""The forms of a kernel that a test compares with its reference; see kernels/README.md for how to run all of them."""

import os

import pytest
import torch

from search.kernels.dispatch import has_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNS = has_triton() and (DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")
TRITON = pytest.param("triton", marks=pytest.mark.skipif(not RUNS, reason="needs CUDA, or TRITON_INTERPRET=1"))
FORMS = ["reference", TRITON]
ALL = [*FORMS, pytest.param("compiled", marks=pytest.mark.slow)]  # seconds of a C++ compiler for each size and type
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
