"""What all tests share. No test uses the network; slow ones load models, build packages or run searches."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.repository import ROOT

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: a second thread only waits, and costs when cores are busy


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`device` is the CPU always, and the GPU where there is one."""
    if "device" in metafunc.fixturenames:
        import torch

        found = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        metafunc.parametrize("device", [torch.device(name) for name in found], ids=found)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture
def short_report() -> Iterator[None]:
    """Searches of this test report few schedules."""
    from tests.helpers.short_report import short_report

    with short_report():
        yield
