"""The caches of other tools, switched on and off on a loaded model: diffusers' hooks, cache-dit and DeepCache."""

import contextlib
import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import hooks

from search.models.base import Model

Switch = Callable[[Model], contextlib.AbstractContextManager[object]]
COMPONENTS = [r".*blocks\.\d+\.(attn\d?|ff|ff_context|norm|proj_mlp|proj_out)"]  # what TaylorSeer forecasts


@dataclass(frozen=True)
class Rival:
    """A setting of another tool.

    Attributes:
        name: Of the tool with its setting.
        switch: Makes the context in which a model runs with it.
        decides: Whether it decides within each run what it computes, so that pictures run one by one.
    """

    name: str
    switch: Switch
    decides: bool = False


def rivals(model: Model) -> Iterator[Rival]:
    """Every setting of every tool; some do not run on every model."""
    if hasattr(model.pipe, "unet"):
        yield from _deep_cache()
        return
    yield from _diffusers(model)
    yield from _cache_dit(model)


def _diffusers(model: Model) -> Iterator[Rival]:
    steps, guided = model.target.steps, float(model.arguments.get("guidance_scale") or 0) > 1
    for threshold in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6):
        config = partial(hooks.FirstBlockCacheConfig, threshold=threshold)
        yield Rival(f"First Block Cache {threshold}", partial(hooked, hooks.apply_first_block_cache, config), True)
    ratios = magnitude_ratios(model)
    for threshold, longest in itertools.product((0.03, 0.06, 0.12, 0.24, 0.5), (2, 4)):
        config = partial(
            hooks.MagCacheConfig, threshold=threshold, max_skip_steps=longest, retention_ratio=0.1,
            num_inference_steps=steps, mag_ratios=ratios,
        )  # fmt: skip
        yield Rival(f"MagCache {threshold} K={longest}", partial(hooked, hooks.apply_mag_cache, config))
    for interval, order in itertools.product((2, 3, 4, 5), (0, 1)):
        config = partial(
            hooks.TaylorSeerCacheConfig, cache_interval=interval, max_order=order, disable_cache_before_step=2,
            taylor_factors_dtype=torch.float32, cache_identifiers=COMPONENTS,
        )  # fmt: skip
        apply = hooks.apply_taylorseer_cache
        yield Rival(f"TaylorSeer of diffusers N={interval} O={order}", partial(hooked, apply, config))
    for own, cross in ((2, 2), (2, 4), (3, 6), (4, 8)):
        settings = {"spatial_attention_block_skip_range": own, "cross_attention_block_skip_range": cross}
        ranges = {"spatial_attention_timestep_skip_range": (0, 900), "cross_attention_timestep_skip_range": (0, 900)}
        config = partial(hooks.PyramidAttentionBroadcastConfig, **settings, **ranges)
        yield Rival(f"PAB {own}/{cross}", partial(hooked, hooks.apply_pyramid_attention_broadcast, config))
    for attention, branch in ((2, 2), (2, 5), (3, 5)):
        config = partial(
            hooks.FasterCacheConfig, spatial_attention_block_skip_range=attention,
            unconditional_batch_skip_range=branch, tensor_format="BCHW", is_guidance_distilled=not guided,
            attention_weight_callback=lambda _: 0.5,
        )  # fmt: skip
        yield Rival(f"FasterCache {attention}/{branch}", partial(hooked, hooks.apply_faster_cache, config))


@contextlib.contextmanager
def hooked(apply: Callable[[torch.nn.Module, Any], None], config: Callable[..., Any], model: Model) -> Iterator[None]:
    """One of diffusers' caches on the denoiser, which forgets the last run before each one."""
    denoiser = model.denoiser
    timestep = [0.0]  # of the current step, for the caches that ask for it

    def note(_: object, arguments: tuple[Any, ...], given: dict[str, Any]) -> None:
        value = given.get("timestep", arguments[1] if len(arguments) > 1 else 0.0)
        timestep[0] = float(torch.as_tensor(value).flatten()[0]) * (1000 if "Flux" in type(denoiser).__name__ else 1)

    made = config()
    if hasattr(made, "current_timestep_callback"):
        made.current_timestep_callback = lambda: timestep[0]
    remover = denoiser.register_forward_pre_hook(note, with_kwargs=True)
    try:
        apply(denoiser, made)
        hooks.HookRegistry.check_if_exists_or_initialize(denoiser).invalidate_child_registries_cache()
        yield
    finally:
        remover.remove()
        for module in denoiser.modules():
            if (registry := getattr(module, "_diffusers_hook", None)) is not None:
                for name in list(registry.hooks):
                    registry.remove_hook(name, recurse=False)
                del module._diffusers_hook


def forget(model: Model) -> None:
    """Before a run: whatever diffusers' caches remember of the run before, which was ended after its last step."""
    registry = getattr(model.denoiser, "_diffusers_hook", None)
    if registry is not None:
        registry.reset_stateful_hooks(recurse=True)
        if not hasattr(model.denoiser, "cache_context"):  # the pipeline names no context for it
            hooks.hooks._set_cache_context(model.denoiser, hooks.hooks.CacheContext("run"))


def magnitude_ratios(model: Model) -> list[float]:
    """MagCache's ratios of one run of this model, as diffusers prints them."""
    config = partial(hooks.MagCacheConfig, calibrate=True, num_inference_steps=model.target.steps)
    with contextlib.redirect_stdout(io.StringIO()) as printed, hooked(hooks.apply_mag_cache, config, model):
        forget(model)
        model.sample([model.example], [0])
    line = next(line for line in printed.getvalue().splitlines() if line.startswith("[") and "," in line)
    return [float(value) for value in line.strip("[]").split(",")]


def _cache_dit(model: Model) -> Iterator[Rival]:
    try:
        import cache_dit
    except ImportError:
        print('cache-dit is not installed, and left out; type pip install -e ".[peers]"')
        return
    steps = model.target.steps
    for taylor in (False, True):
        more = " with Taylor calibrator" if taylor else ""
        for threshold in (0.08, 0.12, 0.2, 0.3, 0.4, 0.6):
            settings = {"residual_diff_threshold": threshold, "Fn_compute_blocks": 1, "max_warmup_steps": 3}
            name = f"DBCache F1B0 r={threshold}{more}"
            yield Rival(name, partial(_cached_by_cache_dit, settings, taylor), True)
        for policy in ("slow", "medium", "fast", "ultra"):
            mask = cache_dit.steps_mask(mask_policy=policy, total_steps=steps)
            settings = {
                "steps_computation_mask": mask, "steps_computation_policy": "static", "Fn_compute_blocks": 1,
                "max_warmup_steps": 0,
            }  # fmt: skip
            yield Rival(f"SCM {policy} F1B0{more}", partial(_cached_by_cache_dit, settings, taylor))


@contextlib.contextmanager
def _cached_by_cache_dit(settings: dict[str, Any], taylor: bool, model: Model) -> Iterator[None]:
    import cache_dit

    config = cache_dit.DBCacheConfig(num_inference_steps=model.target.steps, **settings)
    calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1) if taylor else None
    cache_dit.enable_cache(model.pipe, cache_config=config, calibrator_config=calibrator)
    try:
        yield
    finally:
        cache_dit.disable_cache(model.pipe)


def _deep_cache() -> Iterator[Rival]:
    for interval, branch in itertools.product((2, 3, 4, 5), (0, 1, 2)):
        yield Rival(f"DeepCache N={interval} branch {branch}", partial(_cached_by_deep_cache, interval, branch))


@contextlib.contextmanager
def _cached_by_deep_cache(interval: int, branch: int, model: Model) -> Iterator[None]:
    from DeepCache import DeepCacheSDHelper

    helper = DeepCacheSDHelper(pipe=model.pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    try:
        yield
    finally:
        helper.disable()
