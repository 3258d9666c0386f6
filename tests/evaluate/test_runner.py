"""A population's runs: bit for bit those of each schedule alone, every distinct beginning executed once."""

from functools import cache
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search import Schedule
from search.evaluate.execute.jobs import Batch, Job
from search.evaluate.execute.partial import RunState
from search.evaluate.execute.prefix import prefix_ids, step_keys
from search.evaluate.execute.runner import Runner
from search.evaluate.execute.states import StateCache
from search.evaluate.fit.solver import Fitter
from search.models.base import to_schedule
from search.spaces.cache import CacheSpace
from search.spaces.joint import JointSpace
from search.spaces.timesteps import TimestepsSpace
from search.testing.models import lively, tiny_model
from tests.helpers.population import latents, outcomes

STEPS = 6
BATCH = Batch(("red apple", "blue boat, flat style"), (0, 1))
SPACE = JointSpace([TimestepsSpace(), CacheSpace()])


@cache
def parts() -> tuple:
    """The tiny model with weights under which every action shows in the latents, and its costs."""
    model = lively(tiny_model(STEPS))
    return model, model.costs()


def runner(near: int = 2**30) -> Runner:
    return Runner(*parts(), StateCache(near))


def planned(text: str, node: str = "denoiser") -> Schedule:
    return to_schedule(parts()[0], {"plan": {"rules": [[node, text]]}})


def whole(schedule: Schedule) -> torch.Tensor:
    model, _ = parts()
    with schedule.apply(model.pipe):
        return model.sample(BATCH.prompts, BATCH.seeds)


TEXTS = ["CCCCCC", "CRCCCC", "CRCCRC", "CCCCCC", "CRCCRR", "CCCCCR"]
DISTINCT = 6 + 1 + 5 + 2 + 1  # C; then C CCCC|R (4 + 1 + 1) and R CCCC (5), R from the fifth on (2), R at the sixth (1)


def test_each_beginning_is_executed_once():
    schedules = [planned(text) for text in TEXTS]
    run = runner()
    for each, found in zip(schedules, latents(run, BATCH, schedules), strict=True):
        assert torch.equal(found, whole(each))
    assert run.steps == DISTINCT
    assert latents(run, BATCH, []) == [] and run.steps == DISTINCT


def test_a_later_population_goes_on_from_an_earlier_one():
    run = runner()
    latents(run, BATCH, [planned("CRCCCC")])
    (found,) = latents(run, BATCH, [planned("CRCCRC")])
    assert run.steps == 6 + 2 and torch.equal(found, whole(planned("CRCCRC")))
    other = Batch(("red apple",), (0,))
    latents(run, other, [planned("CRCCRC")])
    assert run.steps == 6 + 2 + 6  # other noise, another tree


def test_what_was_dropped_is_run_again():
    run = runner(near=0)
    schedules = [planned(text) for text in TEXTS]
    for each, found in zip(schedules, latents(run, BATCH, schedules), strict=True):
        assert torch.equal(found, whole(each))
    assert run.steps == DISTINCT and not run.memory.bytes  # within a population nothing is dropped on the way
    latents(run, BATCH, [planned("CRCCCC")])
    assert run.steps == DISTINCT + 6


def test_values_that_no_schedule_read_before_are_kept_from_then_on():
    run = runner()
    latents(run, BATCH, [planned("CRCCCC")])
    later = planned("CCCRCC", "transformer_blocks.*:ff")
    (found,) = latents(run, BATCH, [later])
    assert torch.equal(found, whole(later))
    forecast = planned("CRCCF1C")
    (found,) = latents(run, BATCH, [forecast])
    assert torch.equal(found, whole(forecast))


rows = st.lists(st.integers(0, 10**6), min_size=4, max_size=4)


@settings(max_examples=4, deadline=None)
@given(seeds=rows, fit=st.booleans(), near=st.sampled_from([0, 20_000, 2**30]))
def test_populations_are_bit_identical_to_runs_one_by_one(seeds, fit, near):
    """Timesteps that move, caches of every granularity, solvers that are fitted on the way, any bound on memory."""
    model, _ = parts()
    genes = SPACE.genes(model.target)
    first = np.array([np.random.default_rng(seeds[0]).integers(gene.levels) for gene in genes])
    schedules = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        row = np.where(rng.random(len(genes)) < 0.1, [rng.integers(gene.levels) for gene in genes], first)
        schedules.append(to_schedule(model, SPACE.decode(row, model.target)))
    run, fitter = runner(near), Fitter(model, BATCH.prompts, BATCH.seeds)
    for _ in range(2):
        for schedule, outcome in zip(schedules, outcomes(run, BATCH, schedules, fit), strict=True):
            expected = fitter.fit(schedule) if fit else schedule
            assert outcome.schedule == expected
            assert torch.equal(outcome.latents, whole(expected))


def test_a_fit_shares_what_grids_of_any_length_begin_with():
    """A fitted row follows from what was done before, so dropping a later step changes no earlier one."""
    model, _ = parts()
    space = TimestepsSpace()
    genes = space.genes(model.target)
    row = np.zeros(len(genes), dtype=np.int64)
    dropped = []
    for gene in [i for i, g in enumerate(genes) if g.levels == 2][-2:]:
        one = row.copy()
        one[gene] = 1
        dropped.append(to_schedule(model, space.decode(one, model.target)))
    assert len({schedule.steps for schedule in dropped}) == 1 and dropped[0].steps == STEPS - 1
    jobs = [Job(schedule, fit=True) for schedule in [to_schedule(model, {}), *dropped]]
    shared = [
        sum(a == b for a, b in zip(jobs[0].prefix_ids(BATCH), job.prefix_ids(BATCH), strict=False)) for job in jobs[1:]
    ]
    assert min(shared) > 0
    plain = [Job(job.schedule).prefix_ids(BATCH) for job in jobs]  # diffusers' own scheduler may look at the whole grid
    assert plain[0][0] != plain[1][0]


def test_gates_and_steps_ahead_run_as_a_whole():
    model, _ = parts()
    gate = {"group": "transformer_blocks.[1-2]", "actions": "C G*5", "signal": "first_block_residual"}
    gated = to_schedule(model, {"gates": [gate | {"threshold": 0.3, "value": "residual"}]})
    (outcome,) = outcomes(runner(), BATCH, [gated])
    expected = []
    for prompt, seed in zip(BATCH.prompts, BATCH.seeds, strict=True):
        with gated.apply(model.pipe):
            expected.append(model.sample([prompt], [seed]))
    assert torch.equal(outcome.latents, torch.cat(expected)) and len(outcome.decided) == 1


def test_numbers_of_beginnings_tell_batches_and_steps_apart():
    keys = step_keys(planned("CRCCCC"))
    own = prefix_ids(keys, "a")
    assert len(set(own)) == STEPS and own == prefix_ids(keys, "a") and not set(own) & set(prefix_ids(keys, "b"))
    other = prefix_ids(step_keys(planned("CRCCRC")), "a")
    assert own[:4] == other[:4] and not set(own[4:]) & set(other[4:])


# States


def state(*tensors: torch.Tensor, **snapshot: Any) -> RunState:
    return RunState(1, tensors[0], {"values": {"a": list(tensors)}, **snapshot}, ("key",), 0.0)


def test_tensors_that_states_share_are_held_once():
    shared, own = torch.zeros(100), torch.ones(50)
    states = StateCache(10_000)
    states.put(1, state(shared))
    states.put(2, state(shared, own, nested=({"x": own},), other=3))
    assert states.bytes == 600
    found = states.get(2)
    assert found is not None and found.latents is shared and found.snapshot["nested"][0]["x"] is own
    assert found.snapshot["other"] == 3 and states.get(3) is None


def test_the_states_used_least_lately_go_first():
    states = StateCache(1000)
    for number in range(3):
        states.put(number, state(torch.full((75,), float(number))))
    assert states.get(0) is not None
    states.put(3, state(torch.zeros(75)))
    assert [number in states for number in range(4)] == [True, False, True, True]
    assert states.bytes == 900
    states.put(0, state(torch.ones(75)))  # known already: used, not replaced
    found = states.get(0)
    assert found is not None and float(found.latents[0]) == 0


class Far(StateCache):
    """As on a device that is not the host."""

    def _cell(self, tensor: torch.Tensor, found: dict) -> Any:
        cell = super()._cell(tensor, found)
        cell.device = torch.device("meta")
        return cell


def test_states_are_spilled_to_the_host_and_dropped_from_there():
    states = Far(near=700, far=600)
    shared = torch.zeros(50)
    for number in range(3):
        states.put(number, state(torch.full((100,), float(number)), shared))
    assert list(states.near) == [2] and list(states.far) == [1]  # 0 was spilled, then dropped: 600 bytes are one state
    assert states.bytes == 600 and states.far_bytes == 400  # what 1 shares with 2 is still near
    found = states.get(1)
    assert found is not None and found.latents.device.type == "meta"  # brought back to where it came from
    assert 1 in states.near and 2 in states.far
