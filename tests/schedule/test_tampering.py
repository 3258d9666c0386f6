"""What others do to a pipeline while a schedule is applied to it: refused when the next run begins, with the place."""

import contextlib
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import apply_first_block_cache

from search import ScheduleError
from search.schedule.apply.tampering import ModuleSnapshot
from search.testing.pipelines import stable_diffusion
from tests.helpers import pipelines

RULES = [["transformer_blocks.*:attn1", "CRCRCR"], ["transformer_blocks.1", "CRCCCC"]]
LATE = "after the schedule was applied"


@pytest.fixture
def pipe() -> Any:
    return pipelines.pixart()


def refuse(pipe: Any, change: Any, text: str) -> None:
    """A change behind the schedule's back is refused at the next run, and forgotten with the schedule."""
    before = pipelines.run(pipe)
    handle = pipelines.schedule(pipe, RULES).apply(pipe)
    expected = pipelines.run(pipe)
    undo = change(pipe)
    with pytest.raises(ScheduleError, match=text):
        pipelines.run(pipe)
    undo()
    assert torch.equal(pipelines.run(pipe), expected)
    handle.remove()
    assert torch.equal(pipelines.run(pipe), before)


def lora(pipe: Any) -> Any:
    peft = pytest.importorskip("peft")
    from diffusers.utils.peft_utils import recurse_remove_peft_layers

    given = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k"], init_lora_weights=False)
    peft.inject_adapter_in_model(given, pipe.transformer)
    return lambda: recurse_remove_peft_layers(pipe.transformer)


def test_a_lora_loaded_after_apply_is_refused(pipe: Any) -> None:
    told = rf"transformer_blocks.0.attn1.to_q was wrapped by an adapter \(a LoRA was loaded\) {LATE}; remove the sched"
    refuse(pipe, lora, told)


def test_a_lora_fused_after_apply_is_refused(pipe: Any) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    def fused(pipe: Any) -> Any:
        undo = lora(pipe)
        layers = [module for module in pipe.transformer.modules() if isinstance(module, BaseTunerLayer)]
        kept = [layer.get_base_layer().weight.clone() for layer in layers]

        def back() -> None:
            undo()
            for layer, weight in zip(layers, kept, strict=True):
                layer.get_base_layer().weight.data = weight

        for layer in layers:
            layer.merge()
        return back

    refuse(pipe, fused, LATE)


def test_a_lora_loaded_before_is_what_the_schedule_runs_on(pipe: Any) -> None:
    bare = pipelines.run(pipe)
    undo = lora(pipe)
    loaded = pipelines.run(pipe)
    with pipelines.schedule(pipe, RULES).apply(pipe):
        assert not torch.equal(pipelines.run(pipe), loaded)
    assert torch.equal(pipelines.run(pipe), loaded) and not torch.equal(loaded, bare)
    undo()


def first_block_cache(pipe: Any) -> Any:
    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=0.1))

    def undo() -> None:
        for block in pipe.transformer.transformer_blocks:
            for name in ("fbc_leader_block_hook", "fbc_block_hook"):
                block._diffusers_hook.remove_hook(name, recurse=False)

    return undo


def test_diffusers_own_cache_turned_on_after_apply_is_refused(pipe: Any) -> None:
    refuse(
        pipe,
        first_block_cache,
        f"transformer_blocks.0 carries the cache hook 'fbc_.*'; remove the .*: it was turned on {LATE}",
    )


def test_enable_cache_after_apply_is_refused() -> None:
    """By its flag, whatever hooks it takes: pyramid attention broadcast on a Flux."""
    from diffusers import PyramidAttentionBroadcastConfig

    from tests.helpers.denoiser_loops import TINY, pipeline

    flux = pipeline("FluxTransformer2DModel")
    given = TINY["FluxTransformer2DModel"].given() | {"timestep": torch.full((2,), 0.5)}
    assert given
    with pipelines.schedule(flux, [["transformer_blocks.*:ff", "CRCRCR"]]).apply(flux):
        flux.scheduler.set_timesteps(6)
        config = PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
        )
        flux.denoiser.enable_cache(config)
        with pytest.raises(ScheduleError, match=rf"another cache is enabled .* disable_cache\(\) .* {LATE}"):
            flux.scheduler.set_timesteps(6)
        flux.denoiser.disable_cache()
        flux.scheduler.set_timesteps(6)


@contextlib.contextmanager
def cache_dit(pipe: Any):
    """cache-dit patches the pipeline's class; it is given back here."""
    module = pytest.importorskip("cache_dit")
    kind, call, init = type(pipe), type(pipe).__call__, type(pipe).__init__
    try:
        yield lambda: module.enable_cache(pipe, cache_config=module.DBCacheConfig(Fn_compute_blocks=1))
    finally:
        kind.__call__, kind.__init__ = call, init
        for name in [name for name in vars(kind) if name.startswith("_is_cached")]:
            delattr(kind, name)


def test_cache_dit_before_and_after_apply_is_refused(pipe: Any) -> None:
    with cache_dit(pipe) as enable:
        handle = pipelines.schedule(pipe, RULES).apply(pipe)
        pipelines.run(pipe)
        enable()
        with pytest.raises(ScheduleError, match=rf"another cache is enabled on this denoiser; .*turned on {LATE}"):
            pipelines.run(pipe)
        handle.remove()
    other = pipelines.pixart()
    with cache_dit(other) as enable:
        enable()
        with pytest.raises(
            ScheduleError, match="another cache is enabled on this denoiser; .* conflicts with the schedule"
        ):
            pipelines.schedule(other, RULES).apply(other)
    fresh = pipelines.pixart()
    with pipelines.schedule(fresh, RULES).apply(fresh):  # its class is as it was
        assert pipelines.run(fresh).isfinite().all()


def test_deep_cache_before_and_after_apply_is_refused() -> None:
    helpers = pytest.importorskip("DeepCache")
    pipe = stable_diffusion()
    helper = helpers.DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=2, cache_branch_id=0)
    schedule = pipelines.schedule(pipe, [["mid_block.*", "CRCRCR"]])
    with schedule.apply(pipe):
        pipe.scheduler.set_timesteps(6)
        helper.enable()
        with pytest.raises(
            ScheduleError, match=r"forward was replaced by one of DeepCache\.\S+; undo .*helper.disable"
        ):
            pipe.scheduler.set_timesteps(6)
        helper.disable()
        pipe.scheduler.set_timesteps(6)
    helper.enable()
    with pytest.raises(ScheduleError, match=r"replaced by one of DeepCache\.\S+; .* conflicts with the schedule"):
        schedule.apply(pipe)
    helper.disable()
    with schedule.apply(pipe):
        pipe.scheduler.set_timesteps(6)


def test_a_module_that_is_replaced_or_taken_away_is_named(pipe: Any) -> None:
    block = pipe.transformer.transformer_blocks[1]
    for other, told in ((torch.nn.Identity(), "was replaced by a Identity"), (None, "was taken away")):
        intact, ff = ModuleSnapshot(pipe.transformer), block.ff
        intact.check()
        block.ff = other
        with pytest.raises(ScheduleError, match=rf"transformer_blocks.1.ff {told} {LATE}"):
            intact.check()
        block.ff = ff
        intact.check()


def test_another_type_between_runs_is_the_schedule_on_that_type(pipe: Any) -> None:
    """Nothing of one run is kept for the next; within a run a change is refused (test_schedule_apply.py)."""
    handle = pipelines.schedule(pipe, RULES).apply(pipe)
    pipelines.run(pipe)
    pipe.transformer.to(torch.float64)
    given = pipelines.embeddings(2)

    def run() -> torch.Tensor:
        double = {name: value.double() for name, value in given.items()} | {"negative_prompt": None}
        arguments = {"height": 64, "width": 64, "output_type": "latent", "use_resolution_binning": False}
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            return pipe(**double, **arguments, num_inference_steps=6, guidance_scale=3.0, generator=generator).images

    changed = run()
    handle.remove()
    with pipelines.schedule(pipe, RULES).apply(pipe):
        assert torch.equal(run(), changed)
    assert changed.dtype == torch.float64
