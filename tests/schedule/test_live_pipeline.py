"""A pipeline keeps its weights while a schedule is applied to it, and a run ends whenever the pipeline's call ends."""

import contextlib
import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from safetensors.torch import load_file
from torch import Tensor

from search import Schedule, ScheduleError
from search.schedule.apply.weights import ROUNDED_WEIGHTS
from search.schedule.schedulers import public_config, scheduler_grid
from tests.helpers import live_machine, pipelines

QKV = [f"transformer_blocks.1.attn1.to_{k}" for k in "qkv"]
TABLE = "adaln_single.linear"
FORMATS = {"w4": {"weight": 4}, "elided": {"elided": True}}
BITS = {"formats": FORMATS, "layers": dict.fromkeys(QKV, "w4")}
TABLES = {"formats": FORMATS, "layers": {TABLE: "elided"}}
RULES = [["transformer_blocks.*:ff", "CRCRCR"]]
REMOVED = r"the schedule cannot be removed in the middle of a run, at step 2 of 6; let it end"


@pytest.fixture
def pipe() -> Any:
    return pipelines.pixart(blocks=2)


def weights(pipe: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in pipe.transformer.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Weights.


def test_what_is_saved_while_weights_are_rounded_are_the_originals(pipe: Any, tmp_path: Path) -> None:
    before = weights(pipe)
    part = {"class": "DDIMScheduler", "config": public_config(DDIMScheduler()), "timesteps": [900, 600, 300]}
    pipe.save_pretrained(tmp_path / "before")
    with pipelines.schedule(pipe, steps=3, bits=BITS, sampler=part).apply(pipe):
        pipelines.run(pipe, steps=3)
        assert equal(pipe.transformer.state_dict(), before)
        pipe.save_pretrained(tmp_path / "applied")
    names = sorted(path.relative_to(tmp_path / "before") for path in (tmp_path / "before").rglob("*.*"))
    assert len(names) >= 4
    for name in names:  # the scheduler's configuration and its name in model_index.json as well
        assert (tmp_path / "applied" / name).read_bytes() == (tmp_path / "before" / name).read_bytes(), name
    assert equal(load_file(tmp_path / "applied/transformer/diffusion_pytorch_model.safetensors"), before)


@pytest.mark.parametrize("assign", [False, True])
def test_weights_that_are_loaded_while_others_are_rounded_stay_and_are_rounded(pipe: Any, assign: bool) -> None:
    loaded = {name: value * 1.5 for name, value in weights(pipe).items()}
    handle = pipelines.schedule(pipe, bits=BITS).apply(pipe)
    pipelines.run(pipe)
    pipe.transformer.load_state_dict(loaded, assign=assign)
    found = pipelines.run(pipe)
    handle.remove()
    assert equal(pipe.transformer.state_dict(), loaded)
    with pipelines.schedule(pipe, bits=BITS).apply(pipe):
        assert torch.equal(pipelines.run(pipe), found)


def test_weights_that_change_within_a_run_are_rounded_from_there_on(pipe: Any) -> None:
    layer = pipe.transformer.get_submodule(QKV[0])
    with pipelines.schedule(pipe, bits=BITS).apply(pipe):
        before = pipelines.run(pipe)

        def change(step: int, *_: Any) -> None:
            if step == 2:
                layer.weight.mul_(4)

        found = pipelines.run(pipe, callback=change, callback_steps=1)
        after = pipelines.run(pipe)
    assert not torch.equal(found, before) and not torch.equal(found, after)


def test_a_table_does_not_outlive_its_layers_weights(pipe: Any) -> None:
    with pipelines.schedule(pipe, bits=TABLES).apply(pipe):
        pipelines.run(pipe)
        pipe.transformer.get_submodule(TABLE).weight.data *= 2
        found = pipelines.run(pipe)
    with pipelines.schedule(pipe, bits=TABLES).apply(pipe):
        assert torch.equal(pipelines.run(pipe), found)


def test_a_converted_pipeline_is_rounded_in_its_new_type(pipe: Any) -> None:
    before = weights(pipe)
    with pipelines.schedule(pipe, bits=BITS).apply(pipe):
        pipelines.run(pipe)
        pipe.transformer.double()
    assert all(torch.equal(value, before[name].double()) for name, value in weights(pipe).items())


@pytest.mark.parametrize("when", ["before", "after"])
def test_fused_projections_that_leave_rounded_layers_unused_are_refused(pipe: Any, when: str) -> None:
    bare, schedule = pipelines.run(pipe), pipelines.schedule(pipe, bits=BITS)
    told = r"bits.layers.\S+to_q does not run, as \S+attn1.to_qkv computes in its place; call unfuse_qkv_projections"
    if when == "before":
        pipe.transformer.fuse_qkv_projections()
        with pytest.raises(ScheduleError, match=told):
            schedule.apply(pipe)
        pipe.transformer.unfuse_qkv_projections()
    with schedule.apply(pipe):
        rounded = pipelines.run(pipe)
        if when == "after":
            pipe.transformer.fuse_qkv_projections()
            with pytest.raises(ScheduleError, match=told):
                pipelines.run(pipe)
            pipe.transformer.unfuse_qkv_projections()
        assert torch.equal(pipelines.run(pipe), rounded)
    assert torch.equal(pipelines.run(pipe), bare) and not torch.equal(rounded, bare)


def test_projections_that_are_fused_under_rounded_layers_are_the_original_ones(pipe: Any) -> None:
    other = pipelines.pixart(blocks=2)
    with pipelines.schedule(pipe, bits=BITS).apply(pipe):
        pipelines.run(pipe)
        pipe.transformer.fuse_qkv_projections()
    other.transformer.fuse_qkv_projections()
    assert equal(pipe.transformer.state_dict(), other.transformer.state_dict())
    assert torch.equal(pipelines.run(pipe), pipelines.run(other))


def test_fused_flux_is_refused_and_leaves_nothing() -> None:
    pipe = live_machine.pipeline("flux")
    pipe.transformer.fuse_qkv_projections()
    schedule = live_machine.schedules("flux")["bits"]
    before = pipelines.traces(pipe.transformer)
    with pytest.raises(ScheduleError, match="to_q does not run, as .*to_qkv computes in its place"):
        schedule.apply(pipe)
    assert pipelines.traces(pipe.transformer) == before == []


def test_free_u_that_is_turned_on_later_is_free_u_under_the_schedule() -> None:
    pipe = live_machine.pipeline("sd")
    schedule = live_machine.schedules("sd")["cache"]
    with schedule.apply(pipe):
        without = live_machine.run("sd", pipe)
        pipe.enable_freeu(0.9, 0.2, 1.2, 1.4)
        found = live_machine.run("sd", pipe)
    with schedule.apply(pipe):
        assert torch.equal(live_machine.run("sd", pipe), found)
    assert not torch.equal(found, without)


def test_rounded_weights_of_an_offloaded_denoiser_are_freed_with_the_run(pipe: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload_with_hook(pipe.transformer, execution_device=torch.device("cpu"))
    before = ROUNDED_WEIGHTS.bytes
    with pipelines.schedule(pipe, bits=BITS).apply(pipe):
        first = pipelines.run(pipe)
        assert ROUNDED_WEIGHTS.bytes == before
        assert torch.equal(pipelines.run(pipe), first)


def test_a_layer_with_another_hook_is_not_rounded(pipe: Any) -> None:
    from diffusers.hooks import HookRegistry, ModelHook

    layer = pipe.transformer.get_submodule(QKV[0])
    HookRegistry.check_if_exists_or_initialize(layer).register_hook(ModelHook(), "theirs")
    with pytest.raises(ScheduleError, match="to_q carries the hook 'theirs' of diffusers, which would not run"):
        pipelines.schedule(pipe, bits=BITS).apply(pipe)


def test_a_denoiser_that_is_compiled_in_place_is_refused_at_the_next_run(pipe: Any) -> None:
    with pipelines.schedule(pipe, RULES).apply(pipe):
        pipelines.run(pipe)
        pipe.transformer.transformer_blocks[0].compile(backend="eager")
        with pytest.raises(
            ScheduleError, match=r"transformer_blocks.0 was compiled after .*apply\(pipe, compile=True\)"
        ):
            pipelines.run(pipe)


# Runs that do not end at their last step.


def stored(handle: Any) -> int:
    return sum(len(kept) for store in handle.stores.values() for kept in store.values.values())


class Stopped(BaseException):
    """As Ctrl-C is."""


@pytest.mark.parametrize("error", [ZeroDivisionError, Stopped])
def test_stored_values_are_freed_when_a_callback_raises(pipe: Any, error: type[BaseException]) -> None:
    def stop(step: int, *_: Any) -> None:
        if step == 2:
            assert stored(handle) > 0
            raise error

    with pipelines.schedule(pipe, RULES).apply(pipe) as handle:
        first = pipelines.run(pipe)
        with contextlib.suppress(error):  # pytest.raises would hold the error, and with it the values of its frames
            pipelines.run(pipe, callback=stop, callback_steps=1)
        assert (stored(handle), handle.memory.now, handle.clock.step) == (0, 0, -1)
        assert torch.equal(pipelines.run(pipe), first)


def test_stored_values_are_freed_when_a_run_is_interrupted() -> None:
    pipe = live_machine.pipeline("sd")

    def interrupt(pipe: Any, step: int, *_: Any) -> dict[str, Tensor]:
        pipe._interrupt = True
        return {}

    given = {"prompt_embeds": torch.zeros(1, 4, 16), "negative_prompt_embeds": torch.zeros(1, 4, 16)}
    with live_machine.schedules("sd")["steps"].apply(pipe) as handle, torch.no_grad():
        pipe(**given, num_inference_steps=3, output_type="latent", callback_on_step_end=interrupt)
        assert (stored(handle), handle.clock.step) == (0, -1)


def test_a_failed_run_is_over_for_other_pipelines_of_its_denoiser(pipe: Any) -> None:
    """Also while the error is held, and its values with it."""
    other = copy.copy(pipe)
    other.scheduler = DPMSolverMultistepScheduler()
    with pipelines.schedule(pipe, [["denoiser", "CCRRRR"]]).apply(pipe):
        with pytest.raises(ZeroDivisionError) as held:
            pipelines.run(pipe, callback=lambda step, *_: 1 // (1 - step), callback_steps=1)
        with pytest.raises(ScheduleError, match="the denoiser was called outside of a run"):
            pipelines.run(other)
        assert held.value


def test_noise_and_solver_values_are_freed_too(pipe: Any) -> None:
    start = {"kind": "noise", "inject": {"strength": 0.1, "below": 900}}
    schedule = pipelines.schedule(pipe, start=start)
    with schedule.apply(pipe) as handle:
        pipelines.run(pipe)
        assert handle.run.injection.noise is None


def test_removing_within_a_run_is_refused_and_the_run_ends(pipe: Any) -> None:
    bare = pipelines.run(pipe)
    handle = pipelines.schedule(pipe, RULES, bits=BITS).apply(pipe)
    with pytest.raises(ScheduleError, match=REMOVED):
        pipelines.run(pipe, callback=lambda step, *_: handle.remove() if step == 1 else None, callback_steps=1)
    pipelines.run(pipe)  # the schedule is still there
    handle.remove()
    assert pipelines.traces(pipe.transformer) == []
    assert torch.equal(pipelines.run(pipe), bare)


def test_the_end_of_the_block_removes_a_schedule_whose_run_has_failed(pipe: Any) -> None:
    with pytest.raises(ZeroDivisionError), pipelines.schedule(pipe, RULES).apply(pipe):
        pipelines.run(pipe, callback=lambda *_: 1 / 0, callback_steps=1)
    assert pipelines.traces(pipe.transformer) == []


def test_a_pipeline_that_is_called_within_its_own_run_is_refused(pipe: Any) -> None:
    with pipelines.schedule(pipe, RULES).apply(pipe) as handle:
        expected, refused = pipelines.run(pipe), []

        def call(step: int, *_: Any) -> None:
            if step == 2:
                with pytest.raises(ScheduleError, match="was called again from within that run, by a callback"):
                    pipelines.run(pipe)
                refused.append(step)

        assert torch.equal(pipelines.run(pipe, callback=call, callback_steps=1), expected) and refused == [2]
        assert handle.stats()["runs"] == 2


def test_a_second_thread_is_refused_and_the_first_one_is_right(pipe: Any) -> None:
    inside, done, refused = threading.Event(), threading.Event(), []
    with pipelines.schedule(pipe, RULES).apply(pipe) as handle:
        expected = pipelines.run(pipe)

        def wait(step: int, *_: Any) -> None:
            if step == 2:
                inside.set()
                done.wait(30)

        def second() -> None:
            inside.wait(30)
            for act in (lambda: pipelines.run(pipe), handle.remove):
                with pytest.raises(ScheduleError) as error:
                    act()
                refused.append(str(error.value))
            done.set()

        thread = threading.Thread(target=second)
        thread.start()
        found = pipelines.run(pipe, callback=wait, callback_steps=1)
        thread.join()
        assert torch.equal(found, expected)
        assert "was called again by another thread" in refused[0] and "in the middle of a run" in refused[1]
        assert torch.equal(pipelines.run(pipe), expected)


# Schedulers.


def test_a_pipeline_that_copies_its_scheduler_within_the_call_follows_the_plan_with_both(pipe: Any) -> None:
    """As LTX-2 does: the second one steps the sound."""
    timesteps, sigmas = scheduler_grid(DPMSolverMultistepScheduler(use_karras_sigmas=True), 4)
    part = {"class": "DPMSolverMultistepScheduler", "config": public_config(DPMSolverMultistepScheduler())}
    part |= {"timesteps": timesteps, "sigmas": sigmas, "order": "1221"}
    with pipelines.schedule(pipe, [["denoiser", "CRCR"]], 4, sampler=part).apply(pipe) as handle:
        first, second = pipe.scheduler, copy.deepcopy(pipe.scheduler)
        for scheduler in (second, first):
            scheduler.set_timesteps(4)
        assert second.timesteps.tolist() == timesteps == first.timesteps.tolist()
        x = y = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        for step, t in enumerate(first.timesteps):
            assert handle.clock.step == step
            x = first.step(x.sin(), t, x, return_dict=False)[0]
            y = second.step(y.sin(), t, y, return_dict=False)[0]
            assert torch.equal(x, y)
        with pytest.raises(ScheduleError, match="scheduler.step was called more often than there are steps"):
            second.step(y, t, y)


def test_the_scheduler_of_a_removed_schedule_says_so(pipe: Any) -> None:
    with Schedule.off(pipe).apply(pipe):
        other = type(pipe)(**pipe.components)
        pipelines.run(other)
    with pytest.raises(ScheduleError, match=r"belongs to a schedule that was removed; .* other_pipe.scheduler = pip"):
        pipelines.run(other)
    other.scheduler = pipe.scheduler
    assert torch.equal(pipelines.run(other), pipelines.run(pipe))


def test_the_call_of_a_schedule_has_the_steps_of_its_own_timesteps(pipe: Any) -> None:
    part = {"class": "DDIMScheduler", "config": public_config(DDIMScheduler()), "timesteps": [900, 600, 300]}
    made = {"call": {"num_inference_steps": 20, "guidance_scale": 4.0}}
    schedule = pipelines.schedule(pipe, steps=3, sampler=part, made=made)
    assert schedule.call == {"num_inference_steps": 3, "guidance_scale": 4.0}
    assert schedule.call_of_search == made["call"]
    with (
        schedule.apply(pipe),
        pytest.raises(ScheduleError, match="has 3 steps, but the pipeline runs 20"),
    ):
        pipelines.run(pipe, steps=20)


def test_a_pipeline_without_a_device_is_refused(pipe: Any) -> None:
    with (
        Schedule.off(pipe).apply(pipe),
        pytest.raises(ScheduleError, match="device is meta, as its weights are"),
    ):
        pipe.scheduler.set_timesteps(4, device="meta")


# Arguments.


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ({"compile": "x"}, "compile='x' is not valid; give True or a function"),
        ({"compile": 5}, "compile=5 is not valid"),
        ({"models": 5}, "models=5 is not valid; give pipelines by letter"),
        ({"strict": "x"}, "strict='x' is not valid; give True or False"),
        ({"bits": None}, "bits=None is not valid; give 'simulate' or 'torchao'"),
    ],
)
def test_arguments_of_wrong_types_are_named(pipe: Any, argument: dict[str, Any], told: str) -> None:
    with pytest.raises(ScheduleError, match=told):
        pipelines.schedule(pipe).apply(pipe, **argument)
    assert pipelines.traces(pipe.transformer) == []


def test_a_pipeline_without_a_scheduler_is_named(pipe: Any) -> None:
    schedule = pipelines.schedule(pipe)
    pipe.scheduler = None
    with pytest.raises(ScheduleError, match="PixArtAlphaPipeline has no scheduler; give it one"):
        schedule.apply(pipe)
