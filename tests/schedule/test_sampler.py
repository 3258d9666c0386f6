"""The sampler part: a scheduler on the schedule's own grid and orders is the scheduler that diffusers would be."""

import copy
import inspect

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from search import ScheduleError
from search.schedule.apply.clock import Clock
from search.schedule.apply.scheduler import plan_scheduler
from search.schedule.schedulers import (
    GRIDDED,
    check_order,
    forecast_coordinates,
    public_config,
    scheduler_class,
    scheduler_grid,
)
from tests.helpers import pipelines

flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 2.0}
STOCK = {
    "dpm": DPMSolverMultistepScheduler(),
    "dpm order 3": DPMSolverMultistepScheduler(solver_order=3),
    "dpm karras": DPMSolverMultistepScheduler(use_karras_sigmas=True),
    "dpm flow": DPMSolverMultistepScheduler(**flow),
    "dpm single": DPMSolverSinglestepScheduler(),
    "ddim": DDIMScheduler(),
    "ddim trailing": DDIMScheduler(timestep_spacing="trailing"),
    "lcm": LCMScheduler(),
    "euler": EulerDiscreteScheduler(),
    "euler karras": EulerDiscreteScheduler(use_karras_sigmas=True),
    "flow euler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "unipc": UniPCMultistepScheduler(),
    "unipc flow": UniPCMultistepScheduler(**flow),
    "deis": DEISMultistepScheduler(),
    "deis karras": DEISMultistepScheduler(use_karras_sigmas=True),
}


def model(x: torch.Tensor, t: float) -> torch.Tensor:
    """A network to integrate: smooth, nonlinear, dependent on time."""
    return torch.tanh(x * (0.5 + float(t) / 2000)) + 0.1 * x


def loop(scheduler, steps=None) -> torch.Tensor:
    if steps is not None:
        scheduler.set_timesteps(steps)
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
    noise = {"generator": torch.Generator().manual_seed(1)} if isinstance(scheduler, LCMScheduler) else {}
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(model(scaled, t), t, x, **noise).prev_sample
    return x


def planned(base, steps, **parts):
    clock = Clock()
    return plan_scheduler(base, clock, steps=steps, **parts), clock


def named(scheduler) -> dict:
    return {"class_name": type(scheduler).__name__, "config": public_config(scheduler)}


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("steps", [5, 12, 20])
def test_the_own_grid_is_bit_exact(name, steps):
    base = STOCK[name]
    timesteps, sigmas = scheduler_grid(base, steps)
    expected = loop(copy.deepcopy(base), steps)
    scheduler, clock = planned(DDIMScheduler(), steps, timesteps=timesteps, sigmas=sigmas, **named(base))
    assert torch.equal(loop(scheduler, steps), expected)
    assert torch.equal(loop(scheduler, steps), expected)  # and again
    assert clock.step == -1 and len(scheduler.timesteps) == steps
    bare, _ = planned(base, None)
    assert torch.equal(loop(bare, steps), expected)


def test_every_gridded_class_is_tested():
    assert {type(s).__name__ for s in STOCK.values()} == set(GRIDDED)


@pytest.mark.parametrize(
    ("plain", "warped"),
    [
        (DPMSolverMultistepScheduler(), DPMSolverMultistepScheduler(use_karras_sigmas=True)),
        (DPMSolverMultistepScheduler(**flow), DPMSolverMultistepScheduler(**flow | {"flow_shift": 5.0})),
        (EulerDiscreteScheduler(), EulerDiscreteScheduler(use_karras_sigmas=True)),
        (EulerDiscreteScheduler(), EulerDiscreteScheduler(timestep_spacing="trailing")),
        (FlowMatchEulerDiscreteScheduler(), FlowMatchEulerDiscreteScheduler(shift=4.0)),
        (UniPCMultistepScheduler(), UniPCMultistepScheduler(use_karras_sigmas=True)),
        (UniPCMultistepScheduler(**flow), UniPCMultistepScheduler(**flow | {"flow_shift": 5.0})),
        (DEISMultistepScheduler(), DEISMultistepScheduler(use_karras_sigmas=True)),
        (DDIMScheduler(), DDIMScheduler(timestep_spacing="trailing")),
    ],
)
def test_another_grid_is_that_of_the_scheduler_made_for_it(plain, warped):
    timesteps, sigmas = scheduler_grid(warped, 8)
    expected = loop(copy.deepcopy(warped), 8)
    scheduler, _ = planned(plain, 8, timesteps=timesteps, sigmas=sigmas)
    found = loop(scheduler, 8)
    # the stock integer timesteps are kept; the noise level that starts a run differs in no class
    assert torch.equal(found, expected)
    assert not torch.equal(found, loop(copy.deepcopy(plain), 8))


def test_custom_timesteps_equal_those_that_diffusers_takes_itself():
    chosen = [980, 700, 430, 120, 30]
    for cls in (DPMSolverMultistepScheduler, EulerDiscreteScheduler):
        fresh = cls()
        fresh.set_timesteps(timesteps=chosen)
        sigmas = fresh.sigmas.tolist()
        scheduler, _ = planned(cls(), 5, timesteps=[float(t) for t in chosen], sigmas=sigmas)
        assert torch.equal(loop(scheduler, 5), loop(fresh))
    for levels in ([999, 759, 499, 259], [999, 300], [999]):  # of noise that is added again
        fresh = LCMScheduler()
        fresh.set_timesteps(timesteps=levels)
        scheduler, _ = planned(LCMScheduler(), len(levels), timesteps=levels)
        assert torch.equal(loop(scheduler, len(levels)), loop(fresh))
    fresh = FlowMatchEulerDiscreteScheduler()
    fresh.set_timesteps(timesteps=chosen, sigmas=[0.99, 0.8, 0.5, 0.2, 0.05])  # decoupled
    taken = fresh.timesteps.tolist()  # diffusers 0.41 puts its own in the place of those that it is given
    scheduler, _ = planned(FlowMatchEulerDiscreteScheduler(), 5, timesteps=taken, sigmas=fresh.sigmas.tolist())
    assert torch.equal(loop(scheduler, 5), loop(fresh))


def test_uneven_ddim_is_its_formula():
    chosen = [999, 840, 500, 470, 60, 5]
    scheduler, _ = planned(DDIMScheduler(), 6, timesteps=chosen)
    kept = DDIMScheduler(clip_sample=False).alphas_cumprod.double()
    scheduler.register_to_config(clip_sample=False)
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t, following in zip(chosen, [*chosen[1:], None], strict=True):
        noise = model(x, t)
        clean = (x - (1 - kept[t]).sqrt() * noise) / kept[t].sqrt()
        after = kept[following] if following is not None else torch.tensor(1.0, dtype=torch.float64)
        x = after.sqrt() * clean + (1 - after).sqrt() * noise
    assert torch.allclose(loop(scheduler, 6), x, rtol=1e-5, atol=1e-6)


def test_fractional_timesteps_survive():
    scheduler, _ = planned(
        DPMSolverMultistepScheduler(), 3, timesteps=[900.5, 500.25, 10.0], sigmas=[9.0, 2.0, 0.1, 0.0]
    )
    scheduler.set_timesteps(3)
    assert scheduler.timesteps.tolist() == [900.5, 500.25, 10.0]
    assert torch.isfinite(loop(scheduler, 3)).all()


# Orders

MULTISTEP = [
    (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    (DPMSolverMultistepScheduler, flow),
    (DEISMultistepScheduler, {}),
    (UniPCMultistepScheduler, {}),
    (UniPCMultistepScheduler, flow),
]


@pytest.mark.parametrize(("cls", "config"), MULTISTEP)
@pytest.mark.parametrize("highest", [1, 2, 3])
def test_a_constant_order_is_the_solvers_own(cls, config, highest):
    steps = 8
    base = cls(solver_order=highest, **config)
    order = [min(highest, i + 1, steps - i) for i in range(steps)]  # diffusers' warm-up, and its way to the end
    timesteps, sigmas = scheduler_grid(base, steps)
    expected = loop(copy.deepcopy(base), steps)
    for other in (1, 2, 3):  # whatever the pipeline's scheduler was set to
        scheduler, _ = planned(cls(solver_order=other, **config), steps, order=order)
        assert torch.equal(loop(scheduler, steps), expected)
    scheduler, _ = planned(base, steps, order=order, timesteps=timesteps, sigmas=sigmas, **named(base))
    assert torch.equal(loop(scheduler, steps), expected)


UPDATES = {
    DPMSolverMultistepScheduler: (
        "dpm_solver_first_order",
        "multistep_dpm_solver_second_order",
        "multistep_dpm_solver_third_order",
    ),
    DEISMultistepScheduler: ("deis_first_order", "multistep_deis_second_order", "multistep_deis_third_order"),
}


@pytest.mark.parametrize("cls", UPDATES)
def test_mixed_orders_follow_the_plan(cls, monkeypatch):
    ran = []
    for order, name in enumerate(UPDATES[cls], start=1):
        original = getattr(cls, f"{name}_update")

        def update(self, *args, order=order, original=original, **kwargs):
            ran.append(order)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(cls, f"{name}_update", update)
    order = [1, 2, 3, 1, 3, 2, 2, 1]
    scheduler, _ = planned(cls(), 8, order=order)
    assert torch.isfinite(loop(scheduler, 8)).all()
    assert ran == order


def test_mixed_orders_of_unipc_follow_the_plan():
    order = [1, 2, 3, 1, 3, 2, 2, 1]
    scheduler, _ = planned(UniPCMultistepScheduler(), 8, order=order)
    ran, step = [], scheduler.step
    scheduler.set_timesteps(8)
    x = torch.randn(1, 4, 4, 4)
    for t in scheduler.timesteps:
        x = step(model(x, t), t, x).prev_sample
        ran.append(scheduler.this_order)
    assert ran == order and torch.isfinite(x).all()


@pytest.mark.parametrize(
    ("name", "order", "sigmas", "config", "text"),
    [
        ("DPMSolverMultistepScheduler", [2, 2, 1], None, {}, r"sampler.order is 2 at step 0; .* takes 1 to 1 there"),
        ("DPMSolverMultistepScheduler", [1, 3, 1], None, {}, r"sampler.order is 3 at step 1; .* takes 1 to 2 there"),
        ("UniPCMultistepScheduler", [1, 2, 3, 4, 1], None, {}, "sampler.order is 4 at step 3; .* takes 1 to 3"),
        ("DDIMScheduler", [1, 2], None, {}, "sampler.order is 2 at step 1; DDIMScheduler takes 1 to 1"),
        ("DPMSolverMultistepScheduler", [1, 2], None, {}, "sampler.order ends with 2; the step to sigma 0"),
        ("DPMSolverMultistepScheduler", [1, 2], [3, 2, 0.1], {}, "sampler.order ends with 2"),  # forced by its config
        ("UniPCMultistepScheduler", [1, 2], None, {}, "sampler.order ends with 2"),
        ("UniPCMultistepScheduler", [1, 2], [3, 2, 0.0], {}, "sampler.order ends with 2"),
    ],
)
def test_infeasible_orders_are_refused(name, order, sigmas, config, text):
    with pytest.raises(ScheduleError, match=text):
        check_order(name, order, sigmas, config)
    with pytest.raises(ScheduleError, match=text):
        planned(scheduler_class(name)(**config), len(order), order=order, sigmas=sigmas)


def test_orders_that_reach_no_zero_may_end_high():
    check_order("DPMSolverMultistepScheduler", [1, 2], None, {"final_sigmas_type": "sigma_min"})
    check_order("UniPCMultistepScheduler", [1, 2], [3, 2, 0.1], {})
    check_order("DEISMultistepScheduler", [1, 2], None, {})


# Refusals


def test_what_a_class_cannot_run_is_refused():
    with pytest.raises(ScheduleError, match="sampler.timesteps: PNDMScheduler runs no given timesteps; use DPMSolver"):
        planned(PNDMScheduler(), 2, timesteps=[5, 4])
    with pytest.raises(ScheduleError, match="sampler.sigmas: DDIMScheduler has none"):
        planned(DDIMScheduler(), 2, timesteps=[5, 4], sigmas=[3, 2, 1])
    with pytest.raises(ScheduleError, match="DDIMScheduler takes whole numbers from 0 to 999"):
        planned(DDIMScheduler(), 2, timesteps=[5.5, 4])[0].set_timesteps(2)
    with pytest.raises(ScheduleError, match="DDIMScheduler takes whole numbers from 0 to 999"):
        planned(DDIMScheduler(), 2, timesteps=[1000, 4])[0].set_timesteps(2)
    with pytest.raises(ScheduleError, match="sampler.sigmas is missing; EulerDiscreteScheduler needs 3 of them"):
        planned(EulerDiscreteScheduler(), 2, timesteps=[5, 4])[0].set_timesteps(2)
    with pytest.raises(ScheduleError, match="sampler.sigmas ends with 0; DEISMultistepScheduler"):
        planned(DEISMultistepScheduler(), 2, timesteps=[5, 4], sigmas=[3, 2, 0])
    with pytest.raises(ScheduleError, match="the schedule brings its own timesteps; call the pipeline without"):
        planned(EulerDiscreteScheduler(), 2, timesteps=[5, 4], sigmas=[3, 2, 0])[0].set_timesteps(timesteps=[7, 6])


def test_arguments_of_a_step_in_another_order():
    """CogVideoX's scheduler is given the prediction of the step before as its second argument."""
    scheduler = CogVideoXDPMScheduler()
    latents = []
    for each in (scheduler, planned(scheduler, 4)[0]):
        each.set_timesteps(4)
        x, before = torch.linspace(-1, 1, 6).reshape(1, 6), None
        previous = [None, *each.timesteps[:-1]]
        for t, back in zip(each.timesteps, previous, strict=True):
            noise = torch.Generator().manual_seed(0)
            x, before = each.step(model(x, t), before, t, back, x, generator=noise, return_dict=False)
        latents.append(x)
    assert torch.equal(*latents)


@pytest.mark.parametrize("name", ["Scheduler", "os", "UNet2DModel", "SchedulerMixin", "NobodyScheduler", ""])
def test_only_diffusers_own_schedulers_are_built(name):
    with pytest.raises(ScheduleError, match=f"sampler.class '{name}' is not a scheduler of diffusers"):
        scheduler_class(name)


def test_configurations_that_do_not_fit_are_refused():
    with pytest.raises(ScheduleError, match=r"sampler.config has \['speed'\], which DDIMScheduler does not take"):
        planned(DDIMScheduler(), None, class_name="DDIMScheduler", config={"speed": 1})
    with pytest.raises(
        ScheduleError, match="sampler.config.num_train_timesteps is 'many', with which DDIMScheduler fails"
    ):
        planned(DDIMScheduler(), None, class_name="DDIMScheduler", config={"num_train_timesteps": "many"})


# Places of forecasts


def test_places_on_every_axis():
    scheduler = DPMSolverMultistepScheduler()
    scheduler.set_timesteps(5)
    sigma = scheduler.sigmas[:-1].numpy()
    assert forecast_coordinates(scheduler, "index") == [0, 1, 2, 3, 4]
    assert forecast_coordinates(scheduler, "timestep") == scheduler.timesteps.tolist()
    assert np.allclose(forecast_coordinates(scheduler, "sigma"), sigma)
    assert np.allclose(forecast_coordinates(scheduler, "logsnr"), -np.log(sigma))

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(5)
    sigma = scheduler.sigmas[:-1].clamp(max=1 - 1e-4).numpy()
    assert np.allclose(forecast_coordinates(scheduler, "logsnr"), np.log((1 - sigma) / sigma), atol=1e-3)

    scheduler = DDIMScheduler()  # no sigmas of its own: from its table
    scheduler.set_timesteps(5)
    kept = scheduler.alphas_cumprod[scheduler.timesteps].numpy()
    assert np.allclose(forecast_coordinates(scheduler, "sigma"), np.sqrt((1 - kept) / kept), rtol=1e-4)
    assert np.allclose(forecast_coordinates(scheduler, "logsnr"), 0.5 * np.log(kept / (1 - kept)), rtol=1e-4, atol=1e-5)

    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    scheduler.set_timesteps(5)
    assert np.isfinite(forecast_coordinates(scheduler, "logsnr")).all()


def test_the_grid_is_what_set_timesteps_makes_and_touches_nothing():
    base = DPMSolverMultistepScheduler()
    base.set_timesteps(3)
    timesteps, sigmas = scheduler_grid(base, 7)
    assert len(timesteps) == 7 and sigmas is not None and len(sigmas) == 8 and len(base.timesteps) == 3
    assert scheduler_grid(DDIMScheduler(), 4)[1] is None
    assert scheduler_grid(HeunDiscreteScheduler(), 4)[0].__len__() == 7  # two evaluations a step but one


def test_public_config_builds_the_same_scheduler_from_json():
    import json

    for base in STOCK.values():
        config = json.loads(json.dumps(public_config(base), allow_nan=False))
        again = type(base).from_config(config)
        assert torch.equal(loop(again, 6), loop(copy.deepcopy(base), 6))


def test_wrapped_methods_show_their_own_signatures():
    base = EulerDiscreteScheduler()
    scheduler, _ = planned(base, None)
    for method in ("set_timesteps", "step"):
        assert inspect.signature(getattr(scheduler, method)) == inspect.signature(getattr(base, method))


def test_a_pipeline_runs_the_schedules_sampler():
    pipe = pipelines.pixart()
    euler = EulerDiscreteScheduler(use_karras_sigmas=True)
    timesteps, sigmas = scheduler_grid(euler, 4)
    part = {
        "class": "EulerDiscreteScheduler",
        "config": public_config(EulerDiscreteScheduler()),
        "timesteps": timesteps,
    }
    expected = pipelines.run(pipelines.pixart(scheduler=euler), steps=4)
    with pipelines.schedule(pipe, steps=4, sampler=part | {"sigmas": sigmas}).apply(pipe):
        assert torch.equal(pipelines.run(pipe, steps=4), expected)
        with pytest.raises(ScheduleError, match="this schedule has 4 steps, but the pipeline runs 30; call"):
            pipelines.run(pipe, steps=30)
    dpm = pipelines.pixart(scheduler=DPMSolverMultistepScheduler(solver_order=3))
    with pipelines.schedule(pipe, steps=6, sampler={"class": "DPMSolverMultistepScheduler", "order": "123321"}).apply(
        pipe
    ):
        assert torch.equal(pipelines.run(pipe), pipelines.run(dpm))
