"""Guidance that is switched on or off within a run: what has no values yet is computed, as in a loop by hand."""

import pytest
import torch

from search import Schedule, ScheduleError
from search.schedule.model.identity import denoiser_of, model_part
from tests.helpers.zoo import ZOO


class HandWrittenReuse:
    """Forward hooks that answer with the value of the last step that computed it; without one, or of another batch, it
    is computed."""

    def __init__(self, denoiser, name, tokens):
        self.tokens, self.steps, self.calls, self.values, self.computed = tokens, -1, 0, {}, []
        self.time = None
        module = denoiser.get_submodule(name)
        self.removers = [
            denoiser.register_forward_pre_hook(self.begin, with_kwargs=True),
            module.register_forward_hook(self.answer),
        ]

    def begin(self, module, args, kwargs):
        time = float(torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1]).flatten()[0])
        self.steps, self.calls = (self.steps, self.calls + 1) if time == self.time else (self.steps + 1, 0)
        self.time = time

    def answer(self, module, args, output):
        first = output[0] if isinstance(output, tuple) else output
        kept = self.values.get(self.calls)
        fits = kept is not None and (kept[0] if isinstance(kept, tuple) else kept).shape == first.shape
        if self.tokens[self.steps] == "C" or not fits:
            self.computed.append((self.steps, self.calls))
            self.values[self.calls] = output
        return self.values[self.calls]


def schedule_of(pipe, node, tokens) -> Schedule:
    part = {"format": "schedule/1", "model": model_part(denoiser_of(pipe)), "steps": 4}
    return Schedule.from_dict(part | {"plan": {"rules": [[node, tokens]]}})


def by_hand(sample, name, tokens, **more):
    hand = HandWrittenReuse(denoiser_of(sample.pipe), name, tokens)
    try:
        return sample.run(**more), hand.computed
    finally:
        for remover in hand.removers:
            remover.remove()


def test_a_branch_that_begins_later_computes_first():
    sample = ZOO["SD3Transformer2DModel/skip-layer-guidance"]()  # a second call at steps 1 and 2
    bare = sample.run()
    expected, computed = by_hand(sample, "transformer_blocks.0.attn", "CRRR")
    assert computed == [(0, 0), (1, 1)]
    with schedule_of(sample.pipe, "transformer_blocks.0:attn", "CRRR").apply(sample.pipe):
        assert torch.equal(sample.run(), expected) and not torch.equal(expected, bare)
        assert torch.equal(sample.run(), expected)
    with schedule_of(sample.pipe, "transformer_blocks.0", "CRCR").apply(sample.pipe):
        block = sample.run()
    assert torch.equal(block, by_hand(sample, "transformer_blocks.0", "CRCR")[0])
    assert torch.equal(sample.run(), bare)


@pytest.mark.parametrize(("node", "module"), [("mid_block.0:attentions.0", "mid_block.attentions.0"), ("denoiser", "")])
def test_guidance_that_ends_by_a_callback_leaves_no_value_of_the_whole_batch(node, module):
    sample = ZOO["UNet2DConditionModel"]()

    def end_guidance(pipe, step, timestep, given):
        if step == 1:
            pipe._guidance_scale = 0.0
            given["prompt_embeds"] = given["prompt_embeds"].chunk(2)[1]
        return given

    sample.call |= {"callback_on_step_end": end_guidance, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    bare = sample.run()
    expected, computed = by_hand(sample, module, "CRRR")
    assert computed == [(0, 0), (2, 0)]
    with schedule_of(sample.pipe, node, "CRRR").apply(sample.pipe):
        assert torch.equal(sample.run(), expected) and not torch.equal(expected, bare)
    assert torch.equal(sample.run(), bare)


def test_where_blocks_are_compiled_it_is_refused():
    sample = ZOO["SD3Transformer2DModel/skip-layer-guidance"]()
    with (
        schedule_of(sample.pipe, "transformer_blocks.0:attn", "CRRR").apply(
            sample.pipe, compile=lambda forward: forward
        ),
        pytest.raises(ScheduleError, match="nor may guidance where blocks are compiled, are in a group"),
    ):
        sample.run()
