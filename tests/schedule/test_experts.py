"""Pipelines of two experts that take turns (Wan 2.2): one schedule, the hooks on both, against loops by hand."""

import math

import pytest
import torch

from search import Schedule, ScheduleError
from search.calibrate.ranges import observe_inputs
from search.models.base import to_schedule
from search.models.lora import merge
from search.models.pipeline import Pipeline
from search.schedule.apply.rounding import round_weight
from search.schedule.model.identity import experts_of, model_part
from search.schedule.parts.formats import FORMATS
from search.testing.denoisers import wan as wan_transformer
from tests.helpers.zoo import ZOO

# two steps of each expert, two calls at each step
ACTIONS = {"blocks.0:attn1": "CRCR", "blocks.1": "CRRC", "blocks.0:ffn": "CCRR"}


@pytest.fixture
def sample():
    return ZOO["WanTransformer3DModel/two-experts"]()


def schedule_of(pipe, **parts) -> Schedule:
    return Schedule.from_dict({"format": "schedule/1", "model": model_part(experts_of(pipe)[0]), "steps": 4, **parts})


class HandWrittenReuse:
    """Forward hooks that answer with a module's value of the last step that computed it, whichever expert that was."""

    def __init__(self, pipe, actions):
        self.calls, self.values, self.ran = 0, {}, []
        self.removers = []
        for number, expert in enumerate(experts_of(pipe)):
            self.removers.append(expert.register_forward_hook(lambda *_, number=number: self.count(number)))
            for name, tokens in actions.items():
                module = expert.get_submodule(name.replace(":", "."))
                self.removers.append(
                    module.register_forward_hook(lambda m, a, out, n=name, t=tokens: self.answer(n, t, out))
                )

    def count(self, number):
        self.ran.append(number)
        self.calls += 1

    def answer(self, name, tokens, output):
        step, branch = divmod(self.calls, 2)
        if tokens[step] == "C":
            self.values[name, branch] = output.clone()
        return self.values[name, branch].clone()

    def remove(self):
        for remover in self.removers:
            remover.remove()


def test_values_of_one_expert_are_those_of_the_other_as_in_a_loop_by_hand(sample):
    bare = sample.run()
    by_hand = HandWrittenReuse(sample.pipe, ACTIONS)
    expected = sample.run()
    by_hand.remove()
    assert by_hand.ran == [0, 0, 0, 0, 1, 1, 1, 1]
    rules = [[name, tokens] for name, tokens in ACTIONS.items()]
    with schedule_of(sample.pipe, plan={"rules": rules}).apply(sample.pipe) as handle:
        assert torch.equal(sample.run(), expected) and not torch.equal(expected, bare)
        # two blocks in eight calls; block 1 is not computed at two steps of two calls
        assert handle.stats()["block_executions"] == 2 * 8 - 2 * 2
        assert handle.stats()["denoiser_calls"] == 8
    assert torch.equal(sample.run(), bare)
    for expert in experts_of(sample.pipe):  # `cache_context` leaves a registry without hooks
        registries = [vars(module).get("_diffusers_hook") for module in expert.modules()]
        assert not any(registry.hooks for registry in registries if registry)


def test_a_reused_step_runs_neither_expert(sample):
    ran = []
    for number, expert in enumerate(experts_of(sample.pipe)):
        expert.blocks[0].register_forward_hook(lambda *_, number=number: ran.append(number))
    with schedule_of(sample.pipe, plan={"rules": [["denoiser", "CCRC"]]}).apply(sample.pipe):
        sample.run()
    assert ran == [0, 0, 0, 0, 1, 1]


def test_layers_of_both_are_rounded(sample):
    name = "blocks.1.ffn.net.2"
    bits = {"formats": {"w4": {"weight": 4}}, "layers": {name: "w4"}}
    with schedule_of(sample.pipe, bits=bits).apply(sample.pipe):
        rounded = sample.run()
    bare = sample.run()
    for expert in experts_of(sample.pipe):
        weight = expert.get_submodule(name).weight
        with torch.no_grad():
            weight.copy_(round_weight(weight, FORMATS["w4"]))
    assert torch.equal(sample.run(), rounded) and not torch.equal(rounded, bare)


def test_ranges_are_over_both(sample):
    model, name = Pipeline("any", pipe=sample.pipe, call=sample.call, example="{}"), "blocks.1.ffn.net.2"
    seen = []
    for expert in model.experts:
        expert.get_submodule(name).register_forward_pre_hook(lambda m, args: seen.append(args[0].aminmax()))
    ranges = observe_inputs(model, schedule_of(sample.pipe), {name: None}, ["{}"], [0])
    ends = torch.tensor([[float(low), float(high)] for low, high in seen])
    assert len(ends) == 8
    assert ranges.over(name)[0] == pytest.approx((ends[:, 0].min().item(), ends[:, 1].max().item()), rel=1e-5)


def test_an_expert_for_each_branch_is_planned_and_counted():
    sample = ZOO["Ideogram4Transformer2DModel"]()
    bare, ran = sample.run(), []
    for number, expert in enumerate(experts_of(sample.pipe)):
        expert.layers[1].attention.register_forward_hook(lambda *_, number=number: ran.append(number))
    model = Pipeline("any", pipe=sample.pipe, call=sample.call, example="{}")
    counted = model.costs()
    layer = "layers.1.feed_forward.w1"
    tokens = (48, 16)  # with the prompt, and without
    shapes = [expert.get_submodule(layer).weight.shape for expert in model.experts]
    assert counted.layer_macs[layer] == sum(math.prod(s) * t for s, t in zip(shapes, tokens, strict=True))
    both = sum(p.numel() * p.element_size() for expert in model.experts for p in expert.parameters())
    assert counted.weight_bytes == both
    ran.clear()
    with to_schedule(model, {"plan": {"rules": [["layers.1", "CRCR"]]}}).apply(sample.pipe):
        assert not torch.equal(sample.run(), bare)
    assert ran == [0, 1, 0, 1] and torch.equal(sample.run(), bare)


def test_experts_of_another_architecture_are_refused(sample):
    sample.pipe.transformer_2 = wan_transformer(num_layers=1)
    with pytest.raises(ScheduleError, match="transformer_2 of this WanPipeline is a WanTransformer3DModel of another"):
        Pipeline("any", pipe=sample.pipe, call=sample.call, example="{}")


def test_what_is_for_one_denoiser_is_refused(sample, tmp_path):
    small = {"names": {"S": model_part(sample.pipe.transformer) | {"name": "small"}}, "at": "SSLL"}
    other = wan_transformer()
    with pytest.raises(ScheduleError, match="this schedule has a part models, and this pipeline has two experts"):
        schedule_of(sample.pipe, models=small).apply(sample.pipe, models={"S": other}, strict=False)
    model = Pipeline("any", pipe=sample.pipe, call=sample.call, example="{}")
    with pytest.raises(ValueError, match="this pipeline has two experts, with a LoRA for each"):
        merge(model, tmp_path)


def test_an_expert_that_was_replaced_is_noticed(sample):
    with schedule_of(sample.pipe).apply(sample.pipe):
        kept, sample.pipe.transformer_2 = sample.pipe.transformer_2, wan_transformer()
        with pytest.raises(ScheduleError, match="(?s)denoiser was replaced by a WanTransformer3DModel|of another arch"):
            sample.run()
        sample.pipe.transformer_2 = kept
