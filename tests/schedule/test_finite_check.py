"""A run whose latents stop being finite says at which step."""

import copy
import logging
from typing import Any

import pytest
import torch

from tests.helpers import pipelines


@pytest.fixture
def pipe() -> Any:
    return pipelines.pixart(blocks=2)


def spoil(step: int, value: float) -> Any:
    """A callback after whose `step`, from 0, one number of the latents has this value."""

    def callback(at: int, timestep: Any, latents: torch.Tensor) -> None:
        if at == step:
            latents[0, 0, 0, 0] = value

    return callback


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", [{}, {"plan": {"rules": [["transformer_blocks.*:ff", "CRCRCR"]]}}])
def test_a_run_that_turns_non_finite_says_after_which_step(pipe: Any, caplog: Any, value: float, part: dict) -> None:
    with pipelines.schedule(pipe, steps=6, **part).apply(pipe) as handle:
        pipelines.run(pipe, steps=6)
        assert not caplog.records and handle.clock.finite_check.step is None
        pipelines.run(pipe, steps=6, callback=spoil(2, value))
        (record,) = caplog.records
        assert record.levelno == logging.WARNING and "the latents are not finite after step 4 of 6" in record.message
        assert "run the pipeline without the schedule" in record.message and handle.clock.finite_check.step == 4
        caplog.clear()
        pipelines.run(pipe, steps=6)
        assert not caplog.records and handle.clock.finite_check.step is None


def test_it_is_read_once_when_the_run_has_ended(pipe: Any, monkeypatch: Any) -> None:
    """On a GPU each reading waits until everything before it is computed."""
    read, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: (read.append(self.dtype), tolist(self))[1])
    with pipelines.schedule(pipe, steps=6).apply(pipe):
        pipelines.run(pipe, steps=6)
    assert read.count(torch.bool) == 1


def test_a_copied_scheduler_checks_its_own_run(pipe: Any, caplog: Any) -> None:
    """Some pipelines copy their scheduler within the call."""
    with pipelines.schedule(pipe, steps=3).apply(pipe):
        pipe.scheduler.set_timesteps(3)
        copied = copy.deepcopy(pipe.scheduler)
        for t in copied.timesteps:
            copied.step(torch.zeros(1, 4, 2, 2), t, torch.full((1, 4, 2, 2), torch.nan))
        assert "after step 1 of 3" in caplog.text
        caplog.clear()
        for t in pipe.scheduler.timesteps:
            pipe.scheduler.step(torch.zeros(1, 4, 2, 2), t, torch.zeros(1, 4, 2, 2))
        assert not caplog.records
