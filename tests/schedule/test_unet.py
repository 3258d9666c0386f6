"""Plans on a UNet against loops with patched forwards: skips, nested components, guidance, FreeU, adapters."""

import pytest
import torch

from search import Schedule
from search.profile.count import count_costs
from search.schedule.model.identity import model_part
from search.schedule.model.nodes import Tree
from search.schedule.values import join_halves, map_tensors, take_half
from search.testing.models import tiny_family
from tests.helpers.denoiser_loops import TINY, pipeline, run

STEPS = 6
UNET = "UNet2DConditionModel"
ENCODER = ["conv_in.*", "down_blocks.*", "mid_block.*"]
PLANS = {
    "components": [["*.*:resnets.*", "CRCRRC"], ["*.*:attentions.*", "CCRRCR"]],
    "samplers": [["down_blocks.*:downsamplers.*", "CRRCRR"], ["up_blocks.*:upsamplers.*", "CCRRRR"]],
    "blocks": [["down_blocks.1", "CRRCRR"], ["mid_block.0", "CCRRCR"], ["up_blocks.*", "CRCRCR"]],
    "encoder": [[name, "CRRCRR"] for name in ENCODER],
    "cross attention": [["*.*:attentions.*.transformer_blocks.*.attn2", "CCCRRR"]],
    "inner layers": [["*.*:attentions.*.transformer_blocks.*.*", "CRRCRR"], ["mid_block.*:resnets.*", "CCRRCR"]],
}


def expanded(rules):
    """A selector `*.*:…` stands for one of every stack that has such components."""
    stacks = {
        "resnets": ("down_blocks", "mid_block", "up_blocks"),
        "attentions": ("down_blocks", "mid_block", "up_blocks"),
    }
    return [
        [selector.replace("*.*:", f"{stack}.*:"), actions]
        for selector, actions in rules
        for stack in (stacks[selector[4:].partition(".")[0]] if selector.startswith("*.*:") else ("",))
    ]


def planned(pipe, rules, steps=STEPS, **parts):
    model = model_part(pipe.unet if hasattr(pipe, "unet") else pipe.denoiser)
    plan = {"format": "schedule/1", "model": model, "steps": steps, "plan": {"rules": expanded(rules)}}
    return Schedule.from_dict(plan | parts)


class Patched:
    """Instance forwards that keep clones of what they compute, and give clones again where the plan reuses.

    `narrow` steps see the conditional, second half of the batch; `forecast` makes a value of the last two kept ones.
    """

    def __init__(self, denoiser, tokens, narrow="", forecast=None):
        self.tokens, self.narrow, self.forecast, self.step = tokens, narrow or "C" * 99, forecast, 0
        tree = Tree.of(denoiser)
        self.modules = {tree.module(denoiser, tree.nodes[name]): name for name in tokens}
        self.kept = {name: [] for name in tokens}

    def __enter__(self):
        for module, name in self.modules.items():
            module.forward = self.wrap(module.forward, name)
        return self

    def __exit__(self, *_):
        for module in self.modules:
            del module.forward

    def wrap(self, forward, name):
        def patched(*args, **kwargs):
            full, kept = self.narrow[self.step] == "C", self.kept[name]
            if self.tokens[name][self.step] == "C":
                output = forward(*args, **kwargs)
                value = map_tensors(torch.clone, output)
                pair = (take_half(value, 0), take_half(value, 1)) if full else (kept[-1][0] if kept else None, value)
                kept.append(pair)
                return output
            if self.tokens[name][self.step] == "F1":
                return map_tensors(self.forecast, *(join_halves(*pair) for pair in kept[-2:]))
            return map_tensors(torch.clone, join_halves(*kept[-1]) if full else kept[-1][1])

        return patched

    def call(self, pipe):
        def called(step, sample, **arguments):
            self.step = step
            return pipe.denoiser(sample, **arguments)

        return called


def tokens_of(schedule):
    return {n: t for n, t in schedule.plan.tokens.items() if set(t) - {"C", "-"} and n != "denoiser"}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_equals_patched_forwards(name):
    pipe = pipeline(UNET)
    bare = run(pipe, STEPS)
    schedule = planned(pipe, PLANS[name])
    with Patched(pipe.denoiser, tokens_of(schedule)) as patched:
        expected = run(pipe, STEPS, patched.call(pipe))
    with schedule.apply(pipe) as handle:
        assert torch.equal(run(pipe, STEPS), expected)
        assert torch.equal(run(pipe, STEPS), expected)
        assert handle.memory.now == 0  # a value is freed after the last step that reads it
    assert not torch.equal(expected, bare) and torch.equal(run(pipe, STEPS), bare)


@pytest.mark.parametrize("node", ["down_blocks.*", "mid_block.0:attentions.0", "up_blocks.1:resnets.1"])
def test_forecasts_are_lines_through_two_values(node):
    """Steps 0 and 1 computed, forecast one, two and three steps on; a block's hidden states and skips alike."""
    pipe = pipeline(UNET)
    schedule = planned(pipe, [[node, "C C F1 F1 F1 C"]])
    patched = Patched(pipe.denoiser, tokens_of(schedule))
    patched.forecast = lambda a, b: b + (patched.step - 1) * (b - a)
    with patched:
        expected = run(pipe, STEPS, patched.call(pipe))
    with schedule.apply(pipe):
        assert torch.allclose(run(pipe, STEPS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["encoder", "components", "cross attention", "blocks"])
@pytest.mark.parametrize("branch", ["CCOCOO", "CORCCR"])
def test_halves_of_guidance_are_kept_apart(name, branch):
    """Where a step runs the conditional half alone, reuse there and at full steps reads each half's own values."""
    model = tiny_family("sd", steps=STEPS)
    plain = planned(model.pipe, PLANS[name])
    tokens = tokens_of(plain)
    for i, kind in enumerate(branch):  # no plan reads an unconditional half before a full step has computed it
        assert kind == "C" or i > 0
    schedule = planned(model.pipe, PLANS[name], guidance={"call": 4.0, "branch": branch})
    prompts, seeds = ["red apple", "blue boat"], [0, 1]
    with schedule.apply(model.pipe) as handle:
        found = model.sample(prompts, seeds)
        peak = handle.stats()["peak_bytes"]
    (halves, _), given = model.begin(prompts, seeds)
    latents, scheduler, last = halves.chunk(2)[0], model.pipe.scheduler, None
    with torch.no_grad(), Patched(model.denoiser, tokens, branch) as patched:
        for patched.step, t in enumerate(scheduler.timesteps):
            text = given["encoder_hidden_states"]
            if branch[patched.step] == "C":
                output = model.denoiser(torch.cat([latents] * 2), t, text, return_dict=False)[0]
                last, conditional = output.chunk(2)
            else:
                conditional = model.denoiser(latents, t, text.chunk(2)[1], return_dict=False)[0]
            without = conditional if branch[patched.step] == "O" else last
            latents = scheduler.step(without + 4 * (conditional - without), t, latents).prev_sample
    assert torch.equal(found, latents)
    costs = count_costs(model.denoiser, model.target.tree, STEPS, model.once)
    assert peak == 2 * costs.peak_bytes(schedule)  # two pictures


@pytest.mark.parametrize("name", ["blocks", "components", "encoder"])
def test_freeu_writes_into_no_kept_value(name):
    """FreeU scales half of the channels in place, of what the middle block and the decoder's layers gave."""
    pipe = pipeline(UNET)
    pipe.denoiser.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    schedule = planned(pipe, PLANS[name])
    with Patched(pipe.denoiser, tokens_of(schedule)) as patched:
        expected = run(pipe, STEPS, patched.call(pipe))
    bare = run(pipe, STEPS)
    with Schedule.off(pipe).apply(pipe):
        assert torch.equal(run(pipe, STEPS), bare)
    with schedule.apply(pipe):
        assert torch.equal(run(pipe, STEPS), expected)
    assert torch.equal(run(pipe, STEPS), bare)


def test_adapters_write_into_no_kept_value():
    """The UNet adds an adapter's features in place to what a down block without attention gave."""
    pipe = pipeline(UNET)
    sizes = [(8, 8), (16, 4)]  # channels and side of what each down block adds them to
    draw = torch.Generator().manual_seed(5)
    features = [torch.randn(TINY[UNET].sample[0], c, side, side, generator=draw) for c, side in sizes]
    schedule = planned(pipe, [["down_blocks.*", "CRRCRR"]])

    def call(step, sample, **arguments):
        return pipe.denoiser(sample, down_intrablock_additional_residuals=[f.clone() for f in features], **arguments)

    def patched_call(step, sample, **arguments):
        patched.step = step
        return call(step, sample, **arguments)

    with Patched(pipe.denoiser, tokens_of(schedule)) as patched:
        expected = run(pipe, STEPS, patched_call)
    with schedule.apply(pipe):
        found = run(pipe, STEPS, call)
    assert torch.equal(found, expected)
    assert not torch.equal(found, run(pipe, STEPS, call))
