"""Corrections of rounded layers, the second one of CacheQuant (arXiv:2503.01323): the file, what runs, the fit."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from search import Schedule, ScheduleError
from search.evaluate.fit.corrections import Corrector
from search.evaluate.fit.rounding import LayerFit, RoundingCorrector
from search.schedule.apply.rounding import round_activation, round_weight
from search.schedule.parts.bits import correction_names
from search.schedule.parts.formats import FORMATS
from search.testing.models import tiny_model
from search.validate.decisions import list_decisions
from tests.helpers import pipelines
from tests.schedule.test_bits_qdiffusion import CONV, Toy, inputs, schedule

PROMPTS = ["red apple", "blue boat", "red boat"]
LAYERS = {CONV: FORMATS["w4a8d"].model_copy(update={"group": None}), "conv_out": FORMATS["w8"]}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy()


def numbers(net: nn.Module, layers, gain: float = 0.0, offset: float = 0.0) -> dict[str, torch.Tensor]:
    """Corrections of layers by chance, `gain` and `offset` away from none."""
    generator, tensors = torch.Generator().manual_seed(1), {}
    for layer in layers:
        outputs = len(net.get_submodule(layer).weight)
        scale, shift = (torch.randn(outputs, generator=generator) for _ in range(2))
        tensors |= zip(correction_names(layer), (1 + gain * scale, offset * shift), strict=True)
    return tensors


def rounded_parts(model, form: str = "w4a8d", rules=(("transformer_blocks.*:*", "CRCRCR"),)) -> Schedule:
    names = [name for name in model.target.layers if name.startswith("transformer_blocks")]
    part = FORMATS[form].model_copy(update={"group": None}).model_dump(exclude_defaults=True)
    bits = {"formats": {"f": part}, "layers": dict.fromkeys(names, "f")}
    return Schedule.from_dict(model.target.schedule({"bits": bits, "plan": {"rules": [list(rule) for rule in rules]}}))


# What runs


def test_a_corrected_run_is_that_of_layers_corrected_by_hand(toy):
    plain, given, other = schedule(toy, LAYERS), inputs(0), Toy()
    tensors = {name: t.half() for name, t in numbers(toy.denoiser, LAYERS, 0.1, 0.05).items()}
    for layer in LAYERS:
        gain, offset = (tensors[name].float()[:, None, None] for name in correction_names(layer))
        module = other.denoiser.get_submodule(layer)
        bias = module.bias.detach()[:, None, None]
        module.register_forward_hook(lambda m, args, out, g=gain, o=offset, b=bias: g * (out - b) + o + b)
    with schedule(other, LAYERS).apply(other.pipe):
        expected = other.sample(*given)
    bare = toy.sample(*given)
    with plain.with_corrected_layers(tensors).apply(toy.pipe):
        found = toy.sample(*given)
    with plain.with_corrected_layers(numbers(toy.denoiser, LAYERS)).apply(toy.pipe):  # ones and zeros
        nothing = toy.sample(*given)
    with plain.apply(toy.pipe):
        uncorrected = toy.sample(*given)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(nothing, uncorrected)
    assert (found - uncorrected).norm() > 0.01 * uncorrected.norm()
    assert torch.equal(toy.sample(*given), bare) and pipelines.traces(toy.denoiser) == []


def test_both_corrections_are_saved_and_loaded(model, tmp_path):
    plain = rounded_parts(model)
    both = RoundingCorrector(model, PROMPTS[:1], [0]).fit(Corrector(model, PROMPTS[:1], [0]).fit(plain))
    loaded = Schedule.load(both.save(tmp_path / "s.json"))
    assert loaded == both != plain and set(loaded.tensors) == set(both.tensors)
    assert loaded.corrections and len(loaded.corrected_layers) == len(plain.bits)
    latents = []
    for each in (both, loaded):
        with model.apply(each):
            latents.append(model.sample(PROMPTS, [0, 1, 2]))
    assert torch.equal(*latents)
    assert both.with_corrections({}).with_corrected_layers({}) == plain
    assert both.with_corrected_layers({}) == Corrector(model, PROMPTS[:1], [0]).fit(plain)
    with pytest.raises(ScheduleError, match=r"corrections of this schedule's rounded layers were not read; .*load"):
        Schedule.from_dict(both.with_corrections({}).to_dict()).apply(model.pipe)
    names = [decision.name for decision in list_decisions(both, _Evaluator(model))]
    assert {"corrections", "corrections of rounded layers", "bits f"} <= set(names)
    costs = model.costs()
    outputs = sum(costs.layer_shapes[layer][0] for layer in both.corrected_layers)
    assert costs.size(both) == costs.size(plain) + 4 * outputs


class _Evaluator:
    def __init__(self, model) -> None:
        self.model = model


def test_what_does_not_fit_is_refused(toy):
    plain, tensors = schedule(toy, LAYERS), numbers(toy.denoiser, LAYERS)
    gain, _ = correction_names(CONV)
    with pytest.raises(ScheduleError, match=rf"{gain} is \[2, 8\] in torch.float16; .* needs \[outputs\]"):
        plain.with_corrected_layers({**tensors, gain: torch.ones(2, 8)})
    with pytest.raises(ScheduleError, match=r"bits.corrected names 'conv_in', which bits.layers does not"):
        plain.with_corrected_layers(numbers(toy.denoiser, ["conv_in"]))
    short = {name: torch.ones(3) for name in correction_names(CONV)}
    with pytest.raises(ScheduleError, match=rf"{gain} has 3 numbers, and the layer has 8 outputs"):
        plain.with_corrected_layers(short).apply(toy.pipe)
    with pytest.raises(ScheduleError, match="bits.corrected scales the rows of rounded weights, which tor"):
        plain.with_corrected_layers(tensors).apply(toy.pipe, bits="torchao")
    assert plain.with_corrected_layers({}) == plain


# The fit


def test_the_fit_is_least_squares_over_all_calls():
    generator = torch.Generator().manual_seed(0)
    rounded, exact = (torch.randn(3, 4, 50, 5, generator=generator) for _ in range(2))
    exact = 2 * rounded + 1 + 0.3 * exact
    fit = LayerFit(ridge=0)
    for x, y in zip(rounded, exact, strict=True):
        fit(x, y)
    gain, offset, before, after = fit.affine()
    for channel in range(5):
        x, y = (v[..., channel].flatten().numpy() for v in (rounded, exact))
        assert np.polyfit(x, y, 1) == pytest.approx([float(gain[channel]), float(offset[channel])], rel=2e-3)
        assert ((y - x) ** 2).mean() == pytest.approx(float(before[channel]), rel=1e-5)
        error = (y - x * float(gain[channel]) - float(offset[channel])) ** 2
        assert error.mean() == pytest.approx(float(after[channel]), rel=1e-3)


@pytest.mark.parametrize("value", [torch.zeros(8, 3), torch.ones(8, 3), torch.full((8, 3), 1e-20)])
def test_what_cannot_be_bettered_stays(value):
    fit = LayerFit()
    assert torch.equal(fit(value, value), value)
    gain, offset, _, _ = fit.affine()
    assert (gain == 1).all() and (offset == 0).all()


@pytest.mark.parametrize("form", ["w4a8d", "w4a4d", "w3g128"])
def test_no_channels_error_rises(form):
    torch.manual_seed(0)
    weight, value = torch.randn(12, 16), torch.randn(200, 16) * torch.linspace(0.1, 4, 16)
    part = FORMATS[form].model_copy(update={"group": None})
    given = round_activation(value, part.activation) if part.activation else value
    fit = LayerFit()
    fit(linear(given, round_weight(weight, part)), linear(value, weight))
    _, _, before, after = fit.affine()
    assert (after <= before).all() and after.sum() < before.sum()


@pytest.mark.parametrize("form", ["w4a8d", "w3g128"])
def test_both_corrections_are_closer_than_the_first_alone(model, form):
    """Under a cache, on other prompts and noise than those of the fit."""
    plain, prompts, seeds = rounded_parts(model, form), [*PROMPTS, "green cat"], [5, 6, 7, 8]
    first = Corrector(model, PROMPTS[:2], [0, 1]).fit(plain)
    corrector, exact = RoundingCorrector(model, PROMPTS[:2], [0, 1]), model.sample(prompts, seeds)
    both, drift = corrector.fit(first), {}
    for name, each in {"first": first, "both": both}.items():
        with model.apply(each):
            drift[name] = float((model.sample(prompts, seeds) - exact).norm() / exact.norm())
    assert drift["both"] < 0.95 * drift["first"]
    assert both.corrections.keys() == first.corrections.keys()
    assert corrector.fit(both) is both
    assert corrector.fit(off := Schedule.off(model.pipe)) == off and pipelines.traces(model.denoiser) == []
