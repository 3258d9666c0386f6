"""Every sample runs, the same every time; every denoiser class of diffusers has a sample, or a reason why not.

Two samples are tried always, all of them with ZOO=all.
"""

import inspect
import os
from typing import Any

import pytest
import torch
from diffusers.models import transformers, unets
from torch import Tensor, nn

from tests.helpers.zoo import ZOO, Sample
from tests.helpers.zoo.absent import ABSENT, NO_BACKWARD, NO_NOISE

FAST = ("FluxTransformer2DModel", "ZImageTransformer2DModel/img2img")
TIMES = ("timestep", "timesteps", "t", "timestep_ratio", "decoder_noise_time", "r", "vision_timesteps")
ALL = os.environ.get("ZOO") == "all"  # test_coverage.py runs most of the others once
SAMPLES = [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in ZOO if ALL or name in FAST]


def denoiser_classes() -> set[str]:
    """The transformers and UNets of the installed diffusers; a MotionAdapter is a part of one."""
    modules = (transformers, unets)
    return {name for module in modules for name, found in vars(module).items() if inspect.isclass(found)} - {
        "MotionAdapter"
    }


class Calls:
    """What a sample's denoisers were called with."""

    def __init__(self, sample: Sample) -> None:
        self.denoisers = {name: getattr(sample.pipe, name) for name in sample.denoisers}
        self.times: dict[str, list[float]] = {name: [] for name in self.denoisers}
        self.last: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        for name, denoiser in self.denoisers.items():
            denoiser.register_forward_pre_hook(self.hook(name), with_kwargs=True)

    def hook(self, name: str) -> Any:
        def keep(denoiser: nn.Module, args: Any, kwargs: Any) -> None:
            given = inspect.signature(denoiser.forward).bind(*args, **kwargs).arguments
            number = len(self.times[name])  # UVit2DModel is not given a time
            time = next((given[key] for key in TIMES if key in given), number)
            self.times[name].append(float(torch.as_tensor(time).float().max()))
            self.last[name] = (args, kwargs)

        return keep


def copied(value: Any) -> Any:
    """Tensors made without gradients may not take part in a backward pass; their copies may."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, list | tuple):
        return type(value)(copied(v) for v in value)
    return {k: copied(v) for k, v in value.items()} if isinstance(value, dict) else value


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() and value.requires_grad else []
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in tensors(v)] if isinstance(value, list | tuple) else []


def outer_blocks(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Members of ModuleLists that are not within a member of another."""
    found: dict[str, nn.Module] = {}
    for name, module in denoiser.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{other}.") for other in found):
            found |= {f"{name}.{i}": block for i, block in enumerate(module)}
    return found


def called_blocks_without_effect(denoiser: nn.Module, args: Any, kwargs: Any) -> list[str]:
    """Blocks that ran, but of which no weight changes what the denoiser gives."""
    blocks, called = outer_blocks(denoiser.requires_grad_(True)), set()
    for name, block in blocks.items():
        block.register_forward_hook(lambda *_, name=name: called.add(name))
    with torch.enable_grad():
        given = tensors(denoiser.forward(*copied(args), **copied(kwargs)))
        torch.stack([(t.float() * torch.randn_like(t.float())).sum() for t in given]).sum().backward()
    weights = {name: list(blocks[name].parameters()) for name in called}
    return [n for n, w in weights.items() if w and not any(p.grad is not None and p.grad.any() for p in w)]


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_runs_the_same_every_time(name: str) -> None:
    sample = ZOO[name]()
    calls = Calls(sample)
    result = sample.run()
    for denoiser, times in calls.times.items():
        assert type(calls.denoisers[denoiser]).__name__ == name.split("/")[0]
        assert len(set(times)) >= 2, f"{denoiser} was called at {times}"
    assert result.float().isfinite().all()
    assert result.float().std() > 1e-3
    assert torch.equal(result, sample.run())
    assert torch.equal(result, ZOO[name]().run())
    assert torch.equal(result, sample.run(seed=1)) == (name in NO_NOISE)


@pytest.mark.parametrize("name", [p for p in SAMPLES if p.values[0] not in NO_BACKWARD])
def test_every_block_of_a_sample_has_an_effect(name: str) -> None:
    sample = ZOO[name]()
    calls = Calls(sample)
    sample.run()
    for denoiser, (args, kwargs) in calls.last.items():
        assert called_blocks_without_effect(calls.denoisers[denoiser], args, kwargs) == []


def test_every_denoiser_class_has_a_sample_or_a_reason() -> None:
    known = {name.split("/")[0] for name in ZOO}
    assert denoiser_classes() - known == set(ABSENT)
    assert not known & set(ABSENT)


def test_at_least_75_classes_have_a_sample() -> None:
    assert len(denoiser_classes() & {name.split("/")[0] for name in ZOO}) >= 75


def test_names_in_the_lists_of_exceptions_are_names_of_samples() -> None:
    assert set(ZOO) >= NO_NOISE | NO_BACKWARD
