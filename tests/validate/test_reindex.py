"""Another grid for a schedule: the nearest step in log-SNR, and nothing read that was not computed."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search import Schedule
from search.schedule.errors import ScheduleError
from search.schedule.noise import Noise
from search.spaces.cache import CacheSpace
from search.spaces.gates import GatesSpace
from search.spaces.guidance import GuidanceSpace
from search.spaces.joint import JointSpace
from search.spaces.skip import SkipSpace
from search.spaces.solver import SolverSpace
from search.testing.models import tiny_model
from search.validate.reindex import nearest_steps, reindex, saving_steps, with_steps_computed

MODEL = tiny_model()
TARGET = MODEL.target
PROMPTS = ["red apple", "blue boat"]
SPACES = {
    "cache": CacheSpace(axis="logsnr"),
    "cache+guidance": JointSpace([CacheSpace(), GuidanceSpace()]),
    "gates+guidance": JointSpace([GatesSpace(), GuidanceSpace()]),
    "all": JointSpace([SolverSpace(fit=False), CacheSpace(), SkipSpace(), GuidanceSpace()]),
}
BLOCKS = "transformer_blocks.*"


def made(rules=(), **parts) -> Schedule:
    plan = {"plan": {"rules": [list(rule) for rule in rules]}} if rules else {}
    return Schedule.from_dict(TARGET.schedule(plan | parts))


def moved(schedule: Schedule, steps: int, **given):
    old = schedule.sampler if schedule.sampler and schedule.sampler.get("timesteps") else MODEL.shorter(schedule.steps)
    return reindex(schedule, old, MODEL.shorter(steps), **given)


def drawn(space, seed: int) -> Schedule:
    rng = np.random.default_rng(seed)
    levels = np.array([gene.levels for gene in space.genes(TARGET)])
    x = np.where(rng.random(len(levels)) < rng.random(), rng.integers(0, levels), 0)
    return Schedule.from_dict(TARGET.schedule(space.decode(x, TARGET)))


def test_the_step_nearest_in_log_snr_by_hand():
    """Flow matching: log((1 - sigma) / sigma), for loops and math.log."""
    for steps in (2, 5, 9, 17):
        old, new = TARGET.sampler["sigmas"][:-1], MODEL.shorter(steps)["sigmas"][:-1]
        wanted = []
        for sigma in new:
            best, least = 0, math.inf
            for i, other in enumerate(old):
                distance = abs(math.log((1 - sigma) / sigma) - math.log((1 - other) / other))
                if distance < least:
                    best, least = i, distance
            wanted.append(best)
        assert moved(made([(f"{BLOCKS}:attn1", "CRCRCR")]), steps).at == tuple(wanted)


def test_where_the_variance_is_preserved_it_is_alpha_over_sigma():
    sampler = {"class": "DDIMScheduler", "config": {"num_train_timesteps": 1000}}
    old, new = [900.0, 600.0, 300.0, 0.0], [950.0, 800.0, 640.0, 420.0, 10.0]
    kept = torch.cumprod(1 - torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64), 0).tolist()

    def place(t: float) -> float:
        return math.log(math.sqrt(kept[int(t)]) / math.sqrt(1 - kept[int(t)]))

    wanted = [min(range(4), key=lambda i: abs(place(old[i]) - place(t))) for t in new]
    noise = Noise.of(sampler)
    places = [noise.grid_logsnr(sampler | {"timesteps": grid}) for grid in (old, new)]
    assert list(nearest_steps(*places)) == wanted


def test_of_two_as_near_the_earlier():
    assert nearest_steps([0.0, 2.0, 4.0], [1.0, 3.0, 9.0]) == (0, 1, 2)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("seed", range(4))
def test_on_its_own_grid_a_schedule_stays_what_it_is(name, seed):
    schedule = drawn(SPACES[name], seed)
    found = reindex(schedule, schedule.sampler, schedule.sampler, TARGET.guidance, TARGET.model)
    assert found.schedule is schedule and found.at == tuple(range(schedule.steps)) and not found.lost


def test_table_and_corrections_stay_on_their_grid_and_go_with_it():
    rules = [(f"{BLOCKS}:attn1", "CRCRCR")]
    table = {"state": [1.0] * 6, "outputs": [[0.1] * (i + 1) for i in range(6)]}
    fitted = made(rules, sampler=TARGET.sampler | {"coefficients": table})
    name = "transformer_blocks.0:attn1"
    tensors = {f"{name}.scale": torch.ones(3, 16), f"{name}.shift": torch.zeros(3, 16)}
    corrected = fitted.with_corrections(tensors, {name: [1, 3, 5]})
    assert moved(corrected, 6).schedule.digest == corrected.digest
    found = moved(corrected, 9)
    assert "coefficients" not in found.schedule.sampler and "corrections" not in found.schedule.to_dict()
    assert [text.partition(":")[0] for text in found.lost] == ["the fitted solver", "corrections of reused values"]


def test_off_stays_off():
    assert moved(made(), 11).schedule == Schedule.from_dict(
        TARGET.schedule({"steps": 11, "sampler": MODEL.shorter(11)})
    )
    off = Schedule.off(MODEL.pipe)
    assert reindex(off, TARGET.sampler, MODEL.shorter(11)).schedule is off


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 40), call=st.sampled_from([None, 1.0, 2.0, 7.5]))
def test_every_schedule_carries_over_to_every_number_of_steps(name, seed, steps, call):
    schedule = drawn(SPACES[name], seed)
    carried = moved(schedule, steps, guidance=call)
    found = carried.schedule
    assert Schedule.from_dict(found.to_dict()) == found and found.steps == steps
    assert len(found.sampler["timesteps"]) == steps
    assert found.bits == schedule.bits and not found.scores
    for node, tokens in found.plan.tokens.items():  # an action is the old one, or lowered to what was there
        computed = 0
        for at, token in zip(carried.at, tokens, strict=True):
            assert token in ("-", "C", schedule.plan.tokens[node][at], "R") or token[0] == "F"
            assert token[0] != "F" or computed >= int(token[1]) + 1
            assert token != "R" or computed >= 1
            computed += token == "C"


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name in SPACES for seed in (0, 1)])
def test_what_was_carried_over_runs(name, seed):
    model = tiny_model(steps=9)
    found = moved(drawn(SPACES[name], seed), 9).schedule
    with model.apply(found):
        assert torch.isfinite(model.sample(PROMPTS, [0, 1])).all()


def test_a_plan_by_hand():
    """Nearest columns, then what reads more than there is lowered, with plain loops."""
    actions = ["C", "C", "F1", "R", "C", "F1"]
    schedule = made([(f"{BLOCKS}:ff", " ".join(actions))])
    for steps in (3, 4, 8, 13):
        found = moved(schedule, steps)
        wanted, computed = [], 0
        for at in found.at:
            token = actions[at]
            if token == "F1" and computed < 2:
                token = "R"
            if token == "R" and computed < 1:
                token = "C"
            computed += token == "C"
            wanted.append(token)
        assert list(found.schedule.plan.tokens["transformer_blocks.1:ff"]) == wanted


def test_guidance_keeps_its_place_between_none_and_the_calls():
    part = {"call": 4.0, "scale": [4.0, 1.0, 2.5, 4.0, 7.0, 4.0], "branch": "CRCOCR"}
    found = moved(made(guidance=part), 6, guidance=2.0).schedule.guidance
    assert found.call == 2.0
    assert found.scale == pytest.approx([2.0, 1.0, 1.5, 2.0, 3.0, 2.0]) and found.branch == "CRCOCR"
    plain = moved(made([(f"{BLOCKS}:ff", "CRCRCR")], guidance=part), 6, guidance=1.0)
    assert plain.schedule == made([(f"{BLOCKS}:ff", "CRCRCR")])
    assert plain.lost == ("the guidance part: the pipeline runs without guidance",)


def test_a_branch_reads_what_both_halves_have_computed():
    schedule = made([("denoiser", "CCRCRC")], guidance={"call": 4.0, "branch": "OCRRRR"})
    for steps in range(1, 20):
        found = moved(schedule, steps).schedule
        branch = found.guidance.branch if found.guidance else "C" * steps
        first = min((i for i, kind in enumerate(branch or "C" * steps) if kind == "C"), default=steps)
        assert "R" not in (branch or "")[:first]


def test_orders_are_taken_too_and_stay_possible():
    own = MODEL.shorter(6) | {"order": "122221"}
    for steps in (2, 3, 9):
        sampler = moved(made(sampler=own), steps).schedule.sampler
        assert len(sampler["order"]) == steps and sampler["order"][-1] == "1"
        assert all(int(k) <= i + 1 for i, k in enumerate(sampler["order"]))
    euler = {"class": "FlowMatchEulerDiscreteScheduler", "config": {}}
    other = reindex(made(sampler=own), own, MODEL.shorter(9) | euler)
    assert "order" not in other.schedule.sampler and other.lost[0].startswith("sampler.order: FlowMatchEuler")


def test_bounds_of_gates_grow_with_the_steps_and_thresholds_follow_theirs():
    gate = {"group": "transformer_blocks.[1-2]", "actions": "CGGRGC", "signal": "first_block_residual"}
    bounds = {"threshold": [0.0, 0.1, 0.2, 0.0, 0.3, 0.0], "max_run": 2, "most": 2, "accumulate": True}
    found = moved(made(gates=[gate | bounds]), 9)
    (asked,) = found.schedule.gates
    assert (asked.max_run, asked.most, asked.accumulate) == (3, 3, True)
    wanted = [
        bounds["threshold"][at] if token == "G" else 0.0 for at, token in zip(found.at, asked.tokens, strict=True)
    ]
    assert list(asked.threshold) == wanted and asked.tokens[0] == "C"


def test_bits_and_start_are_as_they_were():
    parts = {"bits": {"formats": {"w8": {"weight": 8}}, "layers": {"transformer_blocks.0.ff.net.2": "w8"}}}
    parts |= {"start": {"kind": "noise", "inject": {"strength": 0.003, "below": 500}}}
    found = moved(made(**parts), 9).schedule.to_dict()
    assert {name: found[name] for name in parts} == {name: made(**parts).to_dict()[name] for name in parts}


def test_another_architecture_is_refused():
    other = tiny_model().target.model | {"stacks": {"transformer_blocks": 28}}
    with pytest.raises(ScheduleError, match=r"model.stacks is .* 3}, but the pipeline's is .* 28}.*search on this one"):
        moved(made([("denoiser", "CRCRCR")]), 9, model=other)
    again = moved(made([("denoiser", "CRCRCR")]), 6, model=TARGET.model | {"fingerprint": "0" * 16})
    assert again.schedule.to_dict()["model"]["fingerprint"] == "0" * 16


def test_what_no_file_may_say_is_refused_with_a_reason():
    with pytest.raises(ScheduleError, match=r"not carry over to 1500 steps: sampler.timesteps must fall .*steps=1500"):
        moved(made([("denoiser", "CRCRCR")]), 1500)  # of 1000 training timesteps


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(list(SPACES)), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_steps_computed_again(name, seed, data):
    schedule = drawn(SPACES[name], seed)
    steps = data.draw(st.sets(st.integers(0, schedule.steps - 1)))
    found = with_steps_computed(schedule, steps)
    assert not steps & set(saving_steps(found))
    assert set(saving_steps(found)) <= set(saving_steps(schedule))
    assert not saving_steps(with_steps_computed(schedule, range(schedule.steps)))
    for node, tokens in found.plan.tokens.items():
        assert all(tokens[step] == "C" for step in steps), node
