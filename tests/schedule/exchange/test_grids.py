"""Sigmas, timesteps and arguments of other tools, against what diffusers makes of them itself."""

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers import AysSchedules
from hypothesis import given, settings
from hypothesis import strategies as st

from search import Schedule, ScheduleError
from search.profile.target import Target
from search.schedule.exchange import (
    export,
    from_ays,
    from_diffusers,
    from_sdcpp,
    from_sigmas,
    from_timesteps,
    load,
    losses,
    parts_of,
    to_comfyui,
    to_diffusers,
    to_sdcpp,
    to_sdnext,
)
from search.schedule.exchange.ays import levels, timesteps
from search.schedule.exchange.grid import finite_noise, has_own_grid
from search.schedule.model.identity import model_part
from search.schedule.model.nodes import Tree
from search.schedule.schedulers import public_config, scheduler_grid
from search.spaces.timesteps import TimestepsSpace
from search.testing import denoisers, pipelines

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS = {
    "euler": EulerDiscreteScheduler(**STABLE),
    "dpm": DPMSolverMultistepScheduler(**STABLE),
    "ddim": DDIMScheduler(**STABLE),
    "flow euler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow dpm": pipelines.flow_solver(),
}
PIXART = Tree("PixArtTransformer2DModel", {"transformer_blocks": 2})
FLUX = Tree("FluxTransformer2DModel", {"transformer_blocks": 2, "single_transformer_blocks": 3})
UNET = Tree.of(denoisers.unet())


def sampler(scheduler: Any) -> dict[str, Any]:
    return {"class": type(scheduler).__name__, "config": public_config(scheduler)}


def schedule(parts: dict[str, Any], tree: Tree = PIXART) -> Schedule:
    return Schedule.from_dict(
        {"format": "schedule/1", "model": {"class": tree.model_class, "stacks": tree.shape}} | parts
    )


def own(scheduler: Any, steps: int, **given: Any) -> Schedule:
    """The scheduler's own steps, written out."""
    times, sigmas = scheduler_grid(scheduler, steps, **given)
    part = sampler(scheduler) | {"timesteps": times} | ({"sigmas": sigmas} if sigmas else {})
    return schedule({"steps": steps, "sampler": part})


# Sigmas


def test_sigmas_get_the_timesteps_that_diffusers_gives_them():
    text = "14.6, 5.1, 1.2, 0.0"
    for name in ("euler", "flow euler"):
        scheduler = SCHEDULERS[name]
        given = [0.9, 0.5, 0.25, 0.0] if "flow" in name else [14.6, 5.1, 1.2, 0.0]
        found = from_sigmas(given if "flow" in name else text, sampler(scheduler))
        assert found["steps"] == 3 and found["sampler"]["sigmas"] == given
        bare = type(scheduler).from_config(dict(scheduler.config) | ({"shift": 1.0} if "flow" in name else {}))
        bare.set_timesteps(sigmas=given[:-1] if "flow" in name else given)
        assert found["sampler"]["timesteps"] == pytest.approx(bare.timesteps.tolist(), abs=2e-3)
    # the solvers that run whole timesteps: the nearest, of flow models the one below, as their own grids have them
    found = from_sigmas(text, sampler(SCHEDULERS["dpm"]))["sampler"]["timesteps"]
    bare = EulerDiscreteScheduler(**STABLE)
    bare.set_timesteps(sigmas=[14.6, 5.1, 1.2, 0.0])
    assert found == [float(round(t)) for t in bare.timesteps.tolist()]
    assert from_sigmas("0.9996, 0.5, 0.0", sampler(SCHEDULERS["flow dpm"]))["sampler"]["timesteps"] == [999.0, 500.0]


def test_sigmas_and_timesteps_of_a_scheduler_invert_each_other():
    for name in ("euler", "dpm"):
        noise = finite_noise(SCHEDULERS[name])
        for t in (0, 1, 17.25, 500, 998.5, 999):
            assert noise.timestep(noise.sigma(t)) == pytest.approx(t, abs=0.01)
        assert noise.sigma(250) == noise.sigmas[250]


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "ddim"])
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_sigmas_come_back(name, data):
    chosen = sorted(data.draw(st.sets(st.integers(0, 300), min_size=1, max_size=9)), reverse=True)
    top, ratio = (1.0, 1e-4) if "flow" in name else (14.6, 2.1e-3)
    falling = [top * ratio ** (1 - place / 300) for place in chosen]  # even in log, much of it below one timestep
    parts = from_sigmas([*falling, 0.0], sampler(SCHEDULERS[name]))
    first = schedule(parts)
    assert losses(first, "comfyui") == []
    text = to_comfyui(first)
    assert [float(x) for x in re.findall(r"[-+]?(?:\d*\.*\d+)", text)] == [*falling, 0.0]  # ComfyUI's way of reading
    assert schedule(from_sigmas(text, sampler(SCHEDULERS[name]))) == first


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [4, 20])
def test_a_scheduler_s_own_grid_is_known_and_comes_back(name, steps):
    scheduler = SCHEDULERS[name]
    made = own(scheduler, steps)
    assert has_own_grid(made.sampler) and losses(made, "ecad") == losses(made, "diffusers") == []
    moved = made.sampler | {"timesteps": [t - 3 for t in made.sampler["timesteps"]]}
    assert not has_own_grid(moved)
    if name != "ddim":  # whose sigmas are none of the file
        again = schedule(parts_of(to_comfyui(made), PIXART, sampler(scheduler)))
        assert again.sampler["sigmas"] == made.sampler["sigmas"]
        assert again.sampler["timesteps"] == pytest.approx(made.sampler["timesteps"], abs=2e-3)
        assert again == made or name == "euler"  # whose timesteps are between whole ones
    assert parts_of(to_diffusers(made), PIXART) == {"steps": steps, "sampler": made.sampler}


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_a_shift_by_resolution_is_the_scheduler_s_own(kind):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    even = [1 - i / 8 for i in range(8)]
    for given_ in ({"mu": 0.9}, {"sigmas": even, "mu": 0.6}):
        assert has_own_grid(own(scheduler, 8, **given_).sampler)
    bent = own(scheduler, 8, sigmas=[s**1.2 for s in even], mu=0.6)
    assert not has_own_grid(bent.sampler)


def test_sigmas_that_do_not_fit_are_refused():
    euler, flow = sampler(SCHEDULERS["euler"]), sampler(SCHEDULERS["flow euler"])
    with pytest.raises(ScheduleError, match="sigmas have '1e-3'; write numbers such as 14.6, without exponents"):
        from_sigmas("14.6, 1e-3, 0.0", euler)
    for text in ("1.0, 2.0, 0.0", "1.0, 1.0, 0.0", "3.0"):
        with pytest.raises(ScheduleError, match="they have to fall from step to step, down to a terminal value"):
            from_sigmas(text, euler)
    with pytest.raises(ScheduleError, match="sigmas begin at 700, and this EulerDiscreteScheduler knows none above 14"):
        from_sigmas("700, 1.0, 0.0", euler)
    with pytest.raises(ScheduleError, match="sigmas begin at 14.6, and this FlowMatch.* knows none above 1: .*another"):
        from_sigmas("14.6, 0.0", flow)
    with pytest.raises(ScheduleError, match="sigmas 0.02 and 0.01 are one timestep, 0; leave one out"):
        from_sigmas("1.0, 0.02, 0.01, 0.0", sampler(SCHEDULERS["dpm"]))
    with pytest.raises(ScheduleError, match="sigmas have nan; admissible are finite numbers"):
        from_sigmas([float("nan"), 0.0], euler)
    with pytest.raises(ScheduleError, match="sigmas are 7; they have to be a list of 1 to 10001 numbers"):
        from_sigmas(7, euler)
    with pytest.raises(ScheduleError, match=r"give a pipeline: exchange.load\(path, pipe\)"):
        parts_of("14.6, 0.0", PIXART)
    with pytest.raises(ScheduleError, match="PNDMScheduler cannot run given timesteps; use DPMSolverMultistep"):
        from_sigmas("1.0, 0.0", {"class": "PNDMScheduler", "config": {}})
    with pytest.raises(ScheduleError, match="sampler.config does not fit DPMSolverMultistepScheduler"):
        from_sigmas("1.0, 0.0", {"class": "DPMSolverMultistepScheduler", "config": {"beta_schedule": "x"}})
    huge = {"class": "DPMSolverMultistepScheduler", "config": {"num_train_timesteps": 10**10}}
    with pytest.raises(ScheduleError, match="sampler.config.num_train_timesteps is 10000000000; .* up to 100000"):
        from_sigmas("1.0, 0.0", huge)
    with pytest.raises(ScheduleError, match="the schedule has no sampler part: the pipeline's own timesteps run"):
        to_comfyui(schedule({"steps": 4}))


def test_timesteps_that_are_not_those_of_the_sigmas_are_lost():
    made = own(SCHEDULERS["euler"], 5)
    moved = made.with_sampler(made.sampler | {"timesteps": [t - 40 for t in made.sampler["timesteps"][:-1]] + [1.0]})
    (line,) = losses(moved, "comfyui")
    assert line.startswith("sampler: the denoiser gets timesteps up to 40 away from those of its sigmas")
    with pytest.raises(ScheduleError, match="(?s)a file for comfyui would lose:.* timesteps up to 40.*type lossy=true"):
        to_comfyui(moved)
    assert to_comfyui(moved, lossy=True) == to_comfyui(made)


# Timesteps


def test_timesteps_are_what_diffusers_makes_of_them(tmp_path):
    bare = DPMSolverMultistepScheduler(**STABLE)
    bare.set_timesteps(timesteps=[999, 700, 300, 20])
    found = from_timesteps("999, 700 300,20", sampler(bare))
    assert found["sampler"]["timesteps"] == [999, 700, 300, 20] and found["sampler"]["sigmas"] == bare.sigmas.tolist()
    assert to_sdnext(schedule(found)) == "999, 700, 300, 20"
    # where pipelines take sigmas only, a thousandth of each, before the shift
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    flow.set_timesteps(sigmas=[1.0, 0.75, 0.2])
    found = from_timesteps([1000, 750, 200], sampler(flow))
    assert found["sampler"]["sigmas"] == flow.sigmas.tolist()
    assert to_sdnext(schedule(found, FLUX)) == "1000, 750, 200" and losses(schedule(found, FLUX), "sdnext") == []


@pytest.mark.parametrize("name", ["dpm", "euler", "flow euler"])
@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(1, 999), min_size=3, max_size=12))
def test_whole_timesteps_come_back(name, chosen):
    falling = sorted(chosen, reverse=True)
    first = schedule(from_timesteps(falling, sampler(SCHEDULERS[name])))
    assert losses(first, "sdnext") == []
    assert schedule(parts_of(to_sdnext(first), PIXART, sampler(SCHEDULERS[name]))) == first


def test_timesteps_that_sdnext_cannot_say():
    made = own(SCHEDULERS["euler"], 5)  # 749.25, 499.5, 249.75
    (line,) = losses(made, "sdnext")
    assert re.fullmatch(r"sampler: whole timesteps move the grid by up to 0\.\d+ of 1000 training timesteps", line)
    with pytest.raises(ScheduleError, match="whole timesteps move the grid"):
        to_sdnext(made)
    assert to_sdnext(made, lossy=True) == "999, 749, 500, 250, 0"
    with pytest.raises(ScheduleError, match="the schedule has 2 steps; SD.Next reads timesteps from 3 on"):
        to_sdnext(own(SCHEDULERS["dpm"], 2), lossy=True)
    with pytest.raises(ScheduleError, match="DPMSolverMultistepScheduler takes no timesteps of its own"):
        to_sdnext(own(SCHEDULERS["flow dpm"], 5), lossy=True)


# Align Your Steps

# The tables as NVIDIA's page has them, with the last training sigma, for any number of steps by interpolation.
PUBLISHED = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]


def test_ten_steps_are_the_published_ones():
    for scheduler in (SCHEDULERS["dpm"], SCHEDULERS["euler"]):
        found = from_ays({"ays": "StableDiffusionTimesteps"}, sampler(scheduler))
        assert found["steps"] == 10 and found["sampler"]["timesteps"] == AysSchedules["StableDiffusionTimesteps"]
        found = from_ays({"ays": "StableDiffusionXLSigmas"}, sampler(scheduler))
        assert found["sampler"]["sigmas"] == AysSchedules["StableDiffusionXLSigmas"]
        table = AysSchedules["StableDiffusionXLTimesteps"]
        assert found["sampler"]["timesteps"] == pytest.approx(table, abs=3)  # what the two tables differ by


@pytest.mark.parametrize("steps", [5, 8, 13, 20, 40])
def test_other_numbers_are_interpolated_in_log_sigma(steps):
    logs = np.interp(np.linspace(0, 1, steps + 1), np.linspace(0, 1, 11), np.log(PUBLISHED))
    found = levels("StableDiffusionSigmas", steps, finite_noise(SCHEDULERS["dpm"]))
    assert found == pytest.approx(np.exp(logs)[:-1], rel=0.02)  # 0.029 is a rounded training sigma
    parts = parts_of({"ays": "StableDiffusionSigmas", "num_inference_steps": steps}, UNET, sampler(SCHEDULERS["dpm"]))
    assert schedule(parts, UNET).steps == steps and parts["sampler"]["sigmas"][-1] == 0


def test_tables_of_another_kind_of_model_are_refused():
    with pytest.raises(ScheduleError, match="ays is 'SD'; there are StableDiffusionTimesteps, StableDiffusionSigmas"):
        from_ays({"ays": "SD"}, sampler(SCHEDULERS["dpm"]))
    with pytest.raises(ScheduleError, match="VideoSigmas begins at sigma 700, and the training sigmas .* end at 14.61"):
        from_ays({"ays": "StableDiffusionVideoSigmas"}, sampler(SCHEDULERS["dpm"]))
    with pytest.raises(ScheduleError, match="it is for another kind of model"):
        from_ays({"ays": "StableDiffusionTimesteps"}, sampler(SCHEDULERS["flow euler"]))
    with pytest.raises(ScheduleError, match="num_inference_steps is 0; admissible are 1 to"):
        from_ays({"ays": "StableDiffusionTimesteps", "num_inference_steps": 0}, sampler(SCHEDULERS["dpm"]))


def target(tree: Tree, scheduler: Any, steps: int = 20) -> Target:
    made = own(scheduler, steps)
    return Target("x", tree, steps, {"class": tree.model_class, "stacks": tree.shape}, made.sampler)


def test_ays_is_a_preset_of_the_unets_that_it_was_made_for():
    found = TimestepsSpace().presets(target(UNET, SCHEDULERS["dpm"]))
    for name, table in (("AYS SD", "StableDiffusionTimesteps"), ("AYS SDXL", "StableDiffusionXLTimesteps")):
        decoded = TimestepsSpace().decode(found[f"{name}, 10 steps"], target(UNET, SCHEDULERS["dpm"]))
        assert decoded["sampler"]["timesteps"] == AysSchedules[table]
        shorter = TimestepsSpace().decode(found[f"{name}, 5 steps"], target(UNET, SCHEDULERS["dpm"]))
        wanted = timesteps(table, 5, finite_noise(SCHEDULERS["dpm"]))
        assert shorter["sampler"]["timesteps"] == pytest.approx(wanted, abs=0.51)
    for tree, scheduler in (
        (PIXART, SCHEDULERS["dpm"]),
        (UNET, SCHEDULERS["flow dpm"]),
        (UNET, DPMSolverMultistepScheduler()),  # other betas
    ):
        assert not [name for name in TimestepsSpace().presets(target(tree, scheduler)) if "AYS" in name]


# Arguments of diffusers


def latents(pipe: Any, **call: Any) -> torch.Tensor:
    """Of a tiny pipeline, from the same noise and text."""
    generator = torch.Generator().manual_seed(7)
    states = {"prompt_embeds": torch.randn(1, 8, 16, generator=generator)}
    if type(pipe).__name__ == "FluxPipeline":
        states |= {"pooled_prompt_embeds": torch.randn(1, 16, generator=generator)}
    else:
        states |= {"negative_prompt_embeds": torch.randn(1, 8, 16, generator=generator)}
    size = {"height": 16, "width": 16, "output_type": "latent"}
    with torch.no_grad():
        return pipe(**states, **size, **call, generator=torch.Generator().manual_seed(1)).images


def as_arguments(found: Schedule, pipe: Any, **call: Any) -> None:
    """The schedule applied is the plain pipeline with the exported arguments, to the bit."""
    pipe.set_progress_bar_config(disable=True)
    bare = latents(pipe, num_inference_steps=found.steps, **call)
    with found.apply(pipe):
        expected = latents(pipe, num_inference_steps=found.steps, **call)
    assert not torch.equal(bare, expected)
    exported = json.loads(export(found, "diffusers"))
    pipe.scheduler = type(pipe.scheduler).from_config(exported["scheduler"]["config"])
    assert torch.equal(latents(pipe, **call | exported["call"]), expected)
    again = from_diffusers(exported, found.tree)["sampler"]
    assert again["timesteps"] == found.sampler["timesteps"]
    assert again["sigmas"] == pytest.approx(found.sampler["sigmas"], rel=1e-6)  # as float32 holds them


def test_timesteps_as_arguments_of_a_unet():
    torch.manual_seed(0)
    pipe = pipelines.stable_diffusion(DPMSolverMultistepScheduler(**STABLE))
    parts = from_ays({"ays": "StableDiffusionTimesteps"}, sampler(pipe.scheduler))
    found = Schedule.from_dict({"format": "schedule/1", "model": model_part(pipe.unet)} | parts)
    as_arguments(found, pipe)
    assert to_diffusers(found)["call"] == {"timesteps": AysSchedules["StableDiffusionTimesteps"]}


def test_sigmas_as_arguments_of_a_unet(tmp_path):
    torch.manual_seed(0)
    pipe = pipelines.stable_diffusion(EulerDiscreteScheduler(**STABLE))
    path = tmp_path / "sigmas.txt"
    path.write_text("14.6, 5.1, 1.2, 0.0")
    found = load(path, pipe)
    as_arguments(found, pipe)
    assert to_diffusers(found)["call"] == {"sigmas": [14.6, 5.1, 1.2, 0.0]}


@pytest.mark.parametrize("dynamic", [False, True])
def test_sigmas_as_arguments_of_flux(dynamic):
    torch.manual_seed(0)
    pipe = pipelines.flux(dynamic=dynamic)
    wanted = [float(s) for s in torch.tensor([1.0, 0.9, 0.5, 0.3, 0.0])]  # as a float32 scheduler holds them
    parts = from_sigmas(wanted, sampler(pipe.scheduler))
    as_arguments(Schedule.from_dict({"format": "schedule/1", "model": model_part(pipe.transformer)} | parts), pipe)


def test_orders_as_a_solver_takes_them_by_itself():
    made = own(SCHEDULERS["dpm"], 6)
    rising = made.with_sampler(made.sampler | {"order": "123331"})
    found = to_diffusers(rising)
    assert found["scheduler"]["config"]["solver_order"] == 3 and not found["scheduler"]["config"]["lower_order_final"]
    assert found["call"] == {"num_inference_steps": 6}
    uneven = made.with_sampler(made.sampler | {"order": "121211"})
    with pytest.raises(ScheduleError, match="sampler: an order of the solver per step, 121211"):
        to_diffusers(uneven)
    assert to_diffusers(uneven, lossy=True)["scheduler"]["config"] == made.sampler["config"]


def test_what_arguments_can_say_of_guidance():
    made = {"steps": 4, "guidance": {"call": 4.0, "scale": [3.0] * 4}}
    assert to_diffusers(schedule(made)) == {"call": {"num_inference_steps": 4, "guidance_scale": 3.0}}
    changing = schedule(made | {"guidance": {"call": 4.0, "scale": [5.0, 3.0, 3.0, 2.0]}})
    with pytest.raises(ScheduleError, match="guidance: scales from 5 to 2 in place of 4"):
        to_diffusers(changing)
    assert to_diffusers(changing, lossy=True)["call"]["guidance_scale"] == 4.0
    with pytest.raises(ScheduleError, match="guidance: steps 2-3 run the conditional half alone"):
        to_diffusers(schedule({"steps": 4, "guidance": {"call": 4.0, "branch": "CCOO"}}))


def test_timesteps_that_no_argument_can_say():
    moved = own(SCHEDULERS["flow dpm"], 5)
    moved = moved.with_sampler(moved.sampler | {"timesteps": [950.0, 800.0, 500.0, 300.0, 100.0]})
    with pytest.raises(ScheduleError, match="its pipelines do not take them; the nearest, num_inference_steps, moves"):
        to_diffusers(moved)
    assert to_diffusers(moved, lossy=True)["call"] == {"num_inference_steps": 5}
    wan = Tree("WanTransformer3DModel", {"blocks": 2})
    unipc = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    parts = from_sigmas("0.9, 0.5, 0.0", sampler(unipc))
    with pytest.raises(ScheduleError, match="UniPCMultistepScheduler and its pipelines do not take them"):
        to_diffusers(schedule(parts, wan))


def test_arguments_that_do_not_fit_are_refused():
    euler = sampler(SCHEDULERS["euler"])
    with pytest.raises(ScheduleError, match="call.num_inference_steps is None; admissible are 1 to"):
        from_diffusers({"scheduler": euler, "call": {}}, PIXART)
    with pytest.raises(ScheduleError, match="scheduler.class is None; name a scheduler class of diffusers"):
        from_diffusers({"scheduler": {}, "call": {"num_inference_steps": 3}}, PIXART)
    with pytest.raises(ScheduleError, match="scheduler is a NoneType; it has to be an object"):
        from_diffusers({"call": {"timesteps": [3, 2]}}, PIXART)
    with pytest.raises(ScheduleError, match="call.sigmas is a str; it has to be a list"):
        from_diffusers({"scheduler": euler, "call": {"sigmas": "1"}}, PIXART)
    assert from_diffusers({"call": {"num_inference_steps": 3}}, PIXART) == {"steps": 3}


# stable-diffusion.cpp


def test_flags_of_sigmas_and_a_mask():
    made = own(SCHEDULERS["dpm"], 4)
    sigmas = to_comfyui(made).replace(" ", "")
    assert to_sdcpp(made) == f'--steps 4 --sigmas "{sigmas}" --sampling-method dpm++2m'
    assert schedule(from_sdcpp(to_sdcpp(made), PIXART, sampler(SCHEDULERS["dpm"]))) == made
    reused = schedule({"steps": 4, "plan": {"rules": [["denoiser", "CRCR"]]}, "guidance": {"call": 5.5}})
    with pytest.raises(ScheduleError, match="(?s)adds what the whole network had added.*reuse at step 3 .*15 to 95 %"):
        to_sdcpp(reused)
    flags = (
        '--cache-mode cache-dit --cache-option "threshold=1000,warmup=1" --scm-mask "1,0,1,0" --scm-policy static '
        "--cfg-scale 5.5"
    )
    assert to_sdcpp(reused, lossy=True) == flags
    assert parts_of(flags, PIXART) == {"steps": 4, "plan": {"rules": [["denoiser", "CRCR"]]}}


def test_flags_that_do_not_fit_are_refused():
    with pytest.raises(ScheduleError, match="the command line has neither --sigmas nor --scm-mask"):
        from_sdcpp("--steps 4", PIXART, None)
    with pytest.raises(ScheduleError, match="--scm-policy is dynamic: .*; write static"):
        from_sdcpp("--scm-mask 1,0", PIXART, None)
    with pytest.raises(ScheduleError, match="this is not a valid command line: No closing quotation"):
        from_sdcpp('--sigmas "1', PIXART, None)
    with pytest.raises(ScheduleError, match="--sigmas are of 2 steps, --scm-mask is of 3"):
        flags = "--sigmas 1.0,0.5,0.0 --scm-mask 1,0,1 --scm-policy static"
        from_sdcpp(flags, PIXART, sampler(SCHEDULERS["dpm"]))
    with pytest.raises(ScheduleError, match="neither a sampler part nor a plan: there is no flag to write"):
        to_sdcpp(schedule({"steps": 4}))
