"""Decoding ahead: batches of decoders give what single steps give, and the plan says which steps may go together."""

import pytest
import torch

from search import Schedule, ScheduleError
from search.profile.count import count_costs
from search.schedule.model.identity import model_part
from search.schedule.values import batch_rows
from search.spaces.cache import CacheSpace
from search.spaces.depth import DepthSpace
from search.spaces.joint import JointSpace
from search.testing.models import tiny_family, tiny_model
from tests.helpers.denoiser_loops import BATCH, TINY, pipeline, run

STEPS = 8
UNET = "UNet2DConditionModel"
ENCODER = ["conv_in.*", "down_blocks.*", "mid_block.*"]


def propagated(pipe, actions, ahead=1, more=(), **parts):
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.denoiser
    rules = [[name, actions] for name in ENCODER] + list(more)
    document = {"format": "schedule/1", "model": model_part(denoiser), "steps": STEPS}
    return Schedule.from_dict(document | {"plan": {"ahead": ahead, "rules": rules}} | parts)


def together(pipe, actions, ahead, more=(), **parts):
    return [list(steps) for steps in propagated(pipe, actions, ahead, more, **parts).batched_steps]


def assert_close(found, expected):
    """Larger batches round otherwise: 1e-4 of the latents' size, after all steps, in float32."""
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_which_steps_go_together():
    pipe = pipeline(UNET)
    assert together(pipe, "CRRRCRRR", 1) == []
    assert together(pipe, "CRRRCRRR", 8) == [[1, 2, 3], [5, 6, 7]]
    assert together(pipe, "CRRRCRRR", 2) == [[1, 2], [5, 6]]
    assert together(pipe, "CRRRRCRC", 2) == [[1, 2], [3, 4]]
    # another action begins another batch; a value that a later step reads is kept by a step alone
    assert together(pipe, "CRRRRRRR", 8, [["up_blocks.0", "CCCRRRRR"]]) == [[3, 4, 5, 6, 7]]
    assert together(pipe, "CRRRRRRR", 8, [["up_blocks.0", "CRRRCRRR"]]) == [[1, 2, 3], [5, 6, 7]]
    # what sees the latents, what depends on the place of the step, and what is not computed at all
    assert together(pipe, "CRRRRRRR", 8, [["conv_in.*", "C*8"]]) == []
    assert together(pipe, "CRRRRRRR", 8, [["up_blocks.0", "CCF1F1F1F1F1F1"]]) == []
    assert together(pipe, "CRRRRRRR", 8, [["denoiser", "CCCRCCCR"]]) == [[1, 2], [4, 5, 6]]
    # the middle block may run: it sees what the encoder gave
    assert together(pipe, "CRRRRRRR", 8, [["mid_block.*", "C*8"]]) == [[1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("actions", "more"),
    [
        ("CRRRCRRR", []),
        ("CCRRRRRR", [["up_blocks.0", "CCRRRRRR"], ["mid_block.*", "C*8"]]),
        ("CRRRRRRR", [["denoiser", "CCCRCCCR"]]),
        ("CRRRRRRR", [["up_blocks.*:attentions.*.transformer_blocks.*.ff", "CSSSSSSS"]]),
    ],
)
def test_a_batch_gives_what_single_steps_give(actions, more):
    pipe = pipeline(UNET)
    one_by_one, ahead = propagated(pipe, actions, 1, more), propagated(pipe, actions, 8, more)
    with one_by_one.apply(pipe) as handle:
        expected, counted = run(pipe, STEPS), handle.stats()
    calls = []
    remover = pipe.denoiser.conv_norm_out.register_forward_hook(lambda *_: calls.append(1))
    with ahead.apply(pipe) as handle:
        first, second = run(pipe, STEPS), run(pipe, STEPS)
        stats = handle.stats()
        assert handle.memory.now == 0 and not handle.run.ahead.ready
    remover.remove()
    assert_close(first, expected)
    assert torch.equal(first, second)
    batched = sum(len(steps) - 1 for steps in ahead.batched_steps)
    assert len(calls) == 2 * (counted["nodes"]["denoiser"]["C"] - batched) and batched
    assert stats["nodes"] == {n: {t: 2 * k for t, k in c.items()} for n, c in counted["nodes"].items()}
    assert stats["block_executions"] == 2 * counted["block_executions"]


@pytest.mark.parametrize("actions", ["CRRRCRRR", "CRRRRRRR", "CCRRCRRC"])
def test_memory_is_counted_with_the_outputs_that_wait(actions):
    pipe = pipeline(UNET)
    schedule = propagated(pipe, actions, 3)
    given = TINY[UNET].given() | {"timestep": torch.ones(BATCH)}
    latents = torch.zeros(TINY[UNET].sample)
    tree = schedule.tree
    costs = count_costs(pipe.denoiser, tree, STEPS, lambda: pipe.denoiser(latents, **given))
    with schedule.apply(pipe) as handle:
        run(pipe, STEPS)
        assert handle.stats()["peak_bytes"] == costs.peak_bytes(schedule)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_guided_pipelines(family):
    """Both halves of guidance lie in the batch of every step; SDXL's added conditions are repeated with them."""
    model = tiny_family(family, steps=STEPS)
    prompts, seeds = ["red apple", "blue boat"], [0, 1]
    with propagated(model.pipe, "CRRRCRRR").apply(model.pipe):
        expected = model.sample(prompts, seeds)
    with propagated(model.pipe, "CRRRCRRR", 3).apply(model.pipe):
        assert_close(model.sample(prompts, seeds), expected)
    branch = {"call": model.guidance_scale, "branch": "CCCCCOOO"}
    assert together(model.pipe, "CRRRCRRR", 3, guidance=branch) == [[1, 2, 3]]
    with propagated(model.pipe, "CRRRCRRR", guidance=branch).apply(model.pipe):
        expected = model.sample(prompts, seeds)
    with propagated(model.pipe, "CRRRCRRR", 3, guidance=branch).apply(model.pipe):
        assert_close(model.sample(prompts, seeds), expected)


def test_ahead_that_does_nothing_leaves_no_trace():
    pipe = pipeline(UNET)
    assert propagated(pipe, "CRCRCRCR", 4) == propagated(pipe, "CRCRCRCR", 1)
    assert propagated(pipe, "CRRCRRCR", 4) == propagated(pipe, "CRRCRRCR", 2) != propagated(pipe, "CRRCRRCR", 1)
    assert propagated(pipe, "CRRCRRCR", 4).to_dict()["plan"]["ahead"] == 2
    elided = {"formats": {"e": {"elided": True}}, "layers": {"time_embedding.linear_1": "e"}}
    assert together(pipe, "CRRRCRRR", 4, bits=elided) == []
    with pytest.raises(ScheduleError, match=r"plan.ahead is '0'"):
        propagated(pipe, "CRRRCRRR", 0)
    pixart = tiny_model(steps=STEPS)
    plan = {"ahead": 4, "rules": [["transformer_blocks.*", "CRRRCRRR"]]}
    document = {"format": "schedule/1", "model": model_part(pixart.denoiser), "steps": STEPS, "plan": plan}
    assert Schedule.from_dict(document).batched_steps == []


@torch.no_grad()
def test_what_is_another_at_every_step_is_refused():
    pipe = pipeline(UNET)
    schedule = propagated(pipe, "CRRRCRRR", 3)
    residual = {"mid_block_additional_residual": torch.zeros(1)}
    message = r"plan.ahead runs 3 steps at once from step 1 on, but mid_block_additional_residual differs from step to"
    with schedule.apply(pipe), pytest.raises(ScheduleError, match=message):
        run(pipe, STEPS, lambda _, x, **given: pipe.denoiser(x, **residual, **given))
    three = {"timestep": torch.full((BATCH,), 3)}
    message = r"plan.ahead takes the timesteps of the scheduler, \d+ at step 1, but the denoiser was given 3; leave"
    with schedule.apply(pipe), pytest.raises(ScheduleError, match=message):
        run(pipe, STEPS, lambda _, x, **given: pipe.denoiser(x, **given | three))
    assert not any("_diffusers_hook" in vars(m) for m in pipe.denoiser.modules())


def test_spaces_ask_for_it():
    model = tiny_family("sd", steps=6)
    alone = DepthSpace(strengths=[], ahead=3)
    joint = JointSpace([CacheSpace(), alone])
    row = alone.presets(model.target)["Faster Diffusion k=3"]
    for space, x in ((alone, row), (joint, joint.join({"depth": row}, model.target))):
        schedule = Schedule.from_dict(model.target.schedule(space.decode(x, model.target)))
        assert [list(steps) for steps in schedule.batched_steps] == [[1, 2], [4, 5]]
    assert alone.decode([0] * 5, model.target) == {}
    with pytest.raises(ValueError, match=r"ahead is 0; give 1 to 1000 steps, for example space.depth.ahead=4"):
        DepthSpace(ahead=0)


def test_rows_of_nested_arguments():
    twice = torch.ones(2, 3)
    found = batch_rows(lambda t: t + 1, {"a": [twice, 5], "b": (torch.ones(1), None)}, 2)
    assert torch.equal(found["a"][0], twice + 1) and found["a"][1] == 5
    assert torch.equal(found["b"][0], torch.ones(1)) and found["b"][1] is None
