"""Steps are watched from outside, on the scheduler's class or on its own step, and nothing stays."""

import copy

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from search.models.watch import RunEnded, replaced_step, watch_steps


class Inherits(DDIMScheduler):
    """Its step is of the class above."""


def run(scheduler, steps=3, first=0, **given):
    scheduler.set_timesteps(steps)
    latents = torch.ones(1, 2)
    for t in scheduler.timesteps[first:]:
        latents = scheduler.step(latents / 2, t, latents, **given)[0]
    return latents


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, Inherits])
@pytest.mark.parametrize("given", [{}, {"return_dict": False}])
def test_each_step_is_seen_with_what_it_was_given_and_returned(kind, given):
    scheduler, steps, before = kind(), [], dict(vars(kind))
    with watch_steps(scheduler, steps.append):
        found = run(scheduler, **given)
        run(kind())  # another scheduler of the class is not watched
    assert [step.number for step in steps] == [0, 1, 2] and torch.equal(steps[-1].latents, found)
    assert all(torch.equal(step.output, step.sample / 2) for step in steps)
    assert all(torch.equal(a.latents, b.sample) for a, b in zip(steps, steps[1:], strict=False))
    assert dict(vars(kind)) == before and torch.equal(run(scheduler), found) and len(steps) == 3


def test_a_run_that_begins_later_says_where():
    scheduler, steps = DDIMScheduler(), []
    with watch_steps(scheduler, steps.append):
        run(scheduler, first=1)
    assert [(step.number, step.first) for step in steps] == [(0, 1), (1, 1)]


@pytest.mark.parametrize("error", [RunEnded, ZeroDivisionError])
def test_nothing_stays_after_an_exception(error):
    scheduler, before = DDIMScheduler(), dict(vars(DDIMScheduler))

    def stop(step):
        if step.number == 1:
            raise error

    with pytest.raises(error), watch_steps(scheduler, stop):
        run(scheduler)
    assert dict(vars(DDIMScheduler)) == before and "step" not in vars(scheduler)


def test_a_schedulers_own_step_is_put_back():
    scheduler, steps = DDIMScheduler(), []
    own = scheduler.step = copy.copy(scheduler.step)
    with watch_steps(scheduler, steps.append):
        run(scheduler)
    assert len(steps) == 3 and vars(scheduler)["step"] is own


def test_a_step_can_be_replaced():
    scheduler = DDIMScheduler()
    with replaced_step(scheduler, lambda original, args, kwargs: (args[2] + 1,)):
        assert torch.equal(run(scheduler), torch.full((1, 2), 4.0))


def test_no_pipeline_takes_the_end_of_a_run_for_an_error():
    assert not issubclass(RunEnded, Exception)
