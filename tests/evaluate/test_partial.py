"""Partial runs: branching and sharing change no bit, and each distinct beginning is executed once."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, UniPCMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from search import Schedule
from search.evaluate.evaluator import Evaluator
from search.evaluate.execute.partial import PartialRun, RunState
from search.evaluate.execute.prefix import step_keys, values_needed
from search.evaluate.memo import Memo
from search.models.base import to_schedule
from search.profile.count import count_costs
from search.schedule.schedulers import public_config, scheduler_grid
from search.testing.models import lively, tiny_model
from tests.helpers import pipelines

STEPS = 6
PROMPTS = ["red apple", "blue boat, flat style"]


@cache
def parts() -> tuple:
    model = lively(tiny_model(STEPS))
    costs = count_costs(model.denoiser, model.target.tree, STEPS, model.once)
    return model, PROMPTS, [0, 1], costs


def partial(keep: Mapping[str, int] | None = None) -> PartialRun:
    return PartialRun(*parts(), keep)


def schedule(rules: Sequence[Sequence[str]] = (), **more: Any) -> Schedule:
    plan = {"plan": {"axis": more.pop("axis", "index"), "rules": [list(rule) for rule in rules]}} if rules else {}
    return to_schedule(parts()[0], plan | more)


def whole(given: Schedule) -> torch.Tensor:
    model, prompts, seeds, _ = parts()
    with given.apply(model.pipe):
        return model.sample(prompts, seeds)


def stepwise(run: PartialRun, given: Schedule, state: RunState | None = None) -> RunState:
    state = state or run.begin()
    while state.step < (given.steps or 0):
        state = run.extend(state, given)
    return state


def table(steps: int) -> dict[str, Any]:
    rows = [[0.01 * (i - j) - 0.05 for j in range(i + 1)] for i in range(steps)]
    return {"state": [1 - 0.1 * i for i in range(steps)], "outputs": rows}


def sampled(scheduler: Any, **more: Any) -> dict[str, Any]:
    timesteps, sigmas = scheduler_grid(scheduler, STEPS)
    sampler = {"class": type(scheduler).__name__, "config": public_config(scheduler), "timesteps": timesteps}
    return {"sampler": sampler | ({"sigmas": sigmas} if sigmas else {}) | more}


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 2.0}
NESTED = [
    ["denoiser", "CCCRCF1"],
    ["transformer_blocks", "CCRCCC"],
    ["transformer_blocks.1", "CCCCSC"],
    ["transformer_blocks.*:ff", "CCCCF1C"],
]
CASES: dict[str, dict[str, Any]] = {
    "off": {},
    "component": {"rules": [["transformer_blocks.*:attn1", "CRCRSR"], ["transformer_blocks.2:ff", "CCF1CF2F1"]]},
    "block": {"rules": [["transformer_blocks.0", "CRSCRR"], ["transformer_blocks.2", "CCF1F1CF2"]]},
    "stack": {"rules": [["transformer_blocks", "CCF1CF2S"]]},
    "denoiser": {"rules": [["denoiser", "CCF1CRF2"]], "axis": "logsnr"},
    "nested": {"rules": NESTED},
    "table": {"rules": NESTED, "more": lambda: sampled(parts()[0].pipe.scheduler, coefficients=table(STEPS))},
    "order": {"rules": NESTED, "more": lambda: sampled(parts()[0].pipe.scheduler, order="123221")},
    "unipc": {"rules": NESTED, "more": lambda: sampled(UniPCMultistepScheduler(**FLOW))},
    "euler": {"rules": NESTED, "more": lambda: sampled(EulerDiscreteScheduler())},
    "ddim": {"rules": NESTED, "more": lambda: sampled(DDIMScheduler())},
    "guidance": {
        "rules": [["transformer_blocks.*:ff", "CCCRRR"]],
        "more": lambda: {"guidance": {"call": 4.0, "scale": [4.0, 4.0, 5.0, 4.0, 4.0, 3.0], "branch": "CCCROM"}},
    },
}


def made(name: str) -> Schedule:
    case = CASES[name]
    more = case.get("more", dict)()
    return schedule(case.get("rules", ()), **({"axis": case["axis"]} if "axis" in case else {}), **more)


@pytest.mark.parametrize("name", CASES)
def test_step_by_step_is_the_whole_run(name):
    given = made(name)
    expected = whole(given)
    run = partial()
    states = [run.begin()]
    while states[-1].step < STEPS:
        states.append(run.extend(states[-1], given))
    assert torch.equal(states[-1].latents, expected)
    assert pipelines.traces(parts()[0].denoiser) == []
    for state in (states[0], states[3], states[2], states[5]):  # a state that was gone on from is as it was
        assert torch.equal(stepwise(run, given, state).latents, expected)
    assert run.steps == STEPS + 6 + 3 + 4 + 1


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ([["denoiser", "CCRCCC"]], [["denoiser", "CCRRF1C"]]),
        ([], [["transformer_blocks.*:attn2", "CCCF2F2R"]]),
        ([["transformer_blocks", "CCRCCC"]], [["transformer_blocks", "CCRCCC"], ["transformer_blocks.1", "CCCRF1S"]]),
        ([["transformer_blocks.0:ff", "CSCCCC"]], [["transformer_blocks.0:ff", "CSCF1RR"]]),
    ],
)
def test_another_schedule_goes_on_where_the_first_did_the_same(first, other):
    first, other = schedule(first), schedule(other)
    run = partial()
    state = run.begin()
    for _ in range(3):
        state = run.extend(state, first)
    ended = stepwise(run, first, state)
    assert torch.equal(stepwise(run, other, state).latents, whole(other))
    assert torch.equal(stepwise(run, first, state).latents, ended.latents)
    assert torch.equal(ended.latents, whole(first)) and not torch.equal(ended.latents, whole(other))


@pytest.mark.parametrize("branch", ["CCCOOO", "CCCRCR", "CCCCMC", "CCCARA"])
def test_guidance_that_narrows_later_goes_on_from_full_steps(branch):
    rules = [["transformer_blocks.*:ff", "CCCRRR"], ["transformer_blocks.1", "CCCCRC"]]
    full, narrow = schedule(rules), schedule(rules, guidance={"call": 4.0, "branch": branch})
    for first, other in ((full, narrow), (narrow, full)):
        run = partial()
        state = run.begin()
        for _ in range(3):
            state = run.extend(state, first)
        assert torch.equal(stepwise(run, other, state).latents, whole(other))


@pytest.mark.parametrize("branch", ["OCACCC", "OOCARC", "CROCAC"])
def test_halves_that_keep_different_numbers_of_values_are_resumed(branch):
    given = schedule([["transformer_blocks.1", "CCCCRC"]], guidance={"call": 4.0, "branch": branch})
    assert torch.equal(stepwise(partial(), given).latents, whole(given))


def test_a_grid_or_table_that_differs_later_goes_on_as_well():
    scheduler = parts()[0].pipe.scheduler
    base = sampled(scheduler)["sampler"]
    moved = base | {"timesteps": [*base["timesteps"][:4], *(t * 0.9 for t in base["timesteps"][4:])]}
    moved["sigmas"] = [*base["sigmas"][:4], *(s * 0.9 for s in base["sigmas"][4:])]
    changed = table(STEPS)
    changed["outputs"][4] = [w * 1.5 for w in changed["outputs"][4]]
    pairs = [
        (base, moved),
        (base | {"coefficients": table(STEPS)}, base | {"coefficients": changed}),
        (base | {"order": "122221"}, base | {"order": "122111"}),
    ]
    for a, b in pairs:
        a, b = (schedule([["transformer_blocks.*:ff", "CCRCF1C"]], sampler=sampler) for sampler in (a, b))
        run = partial()
        state = run.begin()
        for _ in range(3):
            state = run.extend(state, a)
        assert torch.equal(stepwise(run, b, state).latents, whole(b))
        assert not torch.equal(whole(a), whole(b))
    highest, lower = (schedule(sampler=base | {"order": order}) for order in ("123211", "122211"))
    assert step_keys(highest)[0] != step_keys(lower)[0]  # the scheduler is made for the highest order


def test_a_scheduler_of_two_calls_a_step_is_resumed():
    model, prompts, seeds, costs = parts()
    kept = model.pipe.scheduler
    model.pipe.scheduler = HeunDiscreteScheduler()
    try:
        content = model.target.schedule({"plan": {"rules": [["denoiser", "CCRCCRCCCRC"]]}}) | {"steps": 2 * STEPS - 1}
        given = Schedule.from_dict({k: v for k, v in content.items() if k != "sampler"})
        expected = whole(given)
        run = PartialRun(model, prompts, seeds, costs)
        states: list[RunState] = []
        run.follow(run.begin(), given, on_state=states.append)
        assert torch.equal(states[-1].latents, expected)
        assert torch.equal(stepwise(run, given, states[4]).latents, expected)
    finally:
        model.pipe.scheduler = kept


actions = st.sampled_from(["C", "C", "R", "F1", "F2", "S"])
SELECTORS = ("denoiser", "transformer_blocks", "transformer_blocks.0", "transformer_blocks.2", "*:attn1", "1:ff")


@st.composite
def rules(draw: Any, head: Mapping[str, list[str]] | None = None, fixed: int = 0) -> dict[str, list[str]]:
    """Actions of some nodes that read no more than was computed; the first `fixed` are those of `head`."""
    found = {}
    for selector in head or draw(st.lists(st.sampled_from(SELECTORS), min_size=1, max_size=4, unique=True)):
        tokens = list(head[selector][:fixed]) if head else []
        for _ in range(STEPS - len(tokens)):
            tokens.append(draw(actions))
        found[selector] = tokens
    return found


def settled(tokens: Mapping[str, list[str]]) -> Schedule:
    """A schedule of these actions, every read lowered to what is there: nodes one after the other, from the top."""
    from search.schedule.plan.guidance import settle_branches

    tree = parts()[0].target.tree
    every: dict[str, list[str]] = {}
    for selector, actions in tokens.items():
        for name in tree.select(selector if selector[0] not in "*1" else f"transformer_blocks.{selector}"):
            every[name] = ["C" if a == "S" and name == "denoiser" else a for a in actions]
    return schedule([[name, "".join(a)] for name, a in settle_branches(every, tree, None).items()])


@settings(max_examples=5, deadline=None)
@given(data=st.data(), fixed=st.integers(1, STEPS - 1))
def test_random_plans_branch_exactly(data, fixed):
    first = data.draw(rules())
    second = data.draw(rules(head=first, fixed=fixed))
    a, b = settled(first), settled(second)
    assert step_keys(a)[:fixed] == step_keys(b)[:fixed]
    run = partial(values_needed([a, b]))
    state = run.begin()
    for _ in range(fixed):
        state = run.extend(state, a)
    expected = whole(b)
    assert torch.equal(stepwise(run, b, state).latents, expected)
    assert torch.equal(stepwise(run, a, state).latents, whole(a))


def test_a_state_of_another_path_is_refused():
    run = partial()
    state = run.extend(run.extend(run.begin(), schedule()), schedule([["denoiser", "CRCCCC"]]))
    with pytest.raises(ValueError, match="cannot continue from this state: its step 1 is another one"):
        run.extend(state, schedule([["denoiser", "CCCCCC"]]))
    with pytest.raises(ValueError, match="the run is over: 6 steps are done, the schedule has 6"):
        run.extend(stepwise(run, schedule()), schedule())
    with pytest.raises(ValueError, match="reads more values of 'denoiser' than are kept; give them in keep"):
        partial({"denoiser": 1}).extend(run.begin(), schedule([["denoiser", "CCF1CCC"]]))
    with pytest.raises(ValueError, match="the schedule has no number of steps; give it steps"):
        step_keys(Schedule.off(parts()[0].pipe))
    assert pipelines.traces(parts()[0].denoiser) == []


def test_work_is_counted_as_the_evaluator_counts_it(tmp_path):
    model, _, _, costs = parts()
    evaluator = Evaluator(model, PROMPTS, [0, 1], {}, costs, Memo(tmp_path / "memo.sqlite"))
    for name in CASES:
        before, run, given = evaluator.unshared, partial(), made(name)
        evaluator.latents(given)
        state = stepwise(run, given)
        assert run.block_executions == pytest.approx(evaluator.unshared - before)
        assert state.macs == pytest.approx(costs.macs(given)) and sum(costs.macs_by_step(given)) == state.macs


def test_only_the_latest_values_are_kept():
    run = partial({"denoiser": 2})
    states: list[RunState] = []
    run.follow(run.begin(), schedule([["denoiser", "CCF1CCF1"]]), on_state=states.append)
    kept = [[step for step, _ in s.snapshot["values"]["denoiser"].get(0, [])] for s in states]
    assert kept == [[0], [0, 1], [0, 1], [1, 3], [3, 4], []]
    assert set(states[0].snapshot["values"]) == {"denoiser"}
