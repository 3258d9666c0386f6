"""Scales, log-SNR and timesteps are those of diffusers' own schedulers."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LMSDiscreteScheduler,
    UniPCMultistepScheduler,
)

from search.schedule.noise import Noise
from search.schedule.schedulers import public_config, scheduler_grid

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 2.0}


def part(scheduler, steps: int = 7) -> dict:
    timesteps, sigmas = scheduler_grid(scheduler, steps)
    found = {"class": type(scheduler).__name__, "config": public_config(scheduler), "timesteps": timesteps}
    return found | ({"sigmas": sigmas} if sigmas else {})


@pytest.mark.parametrize(
    ("scheduler", "kind", "prediction"),
    [
        (DDIMScheduler(), "vp", "epsilon"),
        (DPMSolverMultistepScheduler(prediction_type="v_prediction"), "vp", "v_prediction"),
        (UniPCMultistepScheduler(prediction_type="sample", use_flow_sigmas=True), "flow", "sample"),
        (UniPCMultistepScheduler(**FLOW), "flow", "flow"),
        (FlowMatchEulerDiscreteScheduler(), "flow", "flow"),
        (EulerDiscreteScheduler(), "ve", "epsilon"),
        (LMSDiscreteScheduler(), "ve", "epsilon"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_kinds(scheduler, kind, prediction):
    noise = Noise.of(part(scheduler))
    assert (noise.kind, noise.prediction) == (kind, prediction)
    assert (np.diff(noise.sigmas) > 0).all() and not noise.sigmas.flags.writeable


@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler(), DPMSolverMultistepScheduler(**FLOW)])
def test_scales_are_those_of_the_scheduler(scheduler):
    given = part(scheduler)
    noise = Noise.of(given)
    sigmas = torch.tensor(given["sigmas"][:-1], dtype=torch.float64)
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigmas)
    found = noise.scales(given["sigmas"][:-1])
    np.testing.assert_allclose(found[0], alpha.numpy(), rtol=1e-14)
    np.testing.assert_allclose(found[1], sigma.numpy(), rtol=1e-14)
    np.testing.assert_allclose(noise.grid_logsnr(given), (alpha.log() - sigma.log()).numpy(), rtol=1e-12, atol=1e-12)


def test_a_grid_without_sigmas_goes_by_its_timesteps():
    scheduler = DDIMScheduler()
    given = part(scheduler)
    kept = scheduler.alphas_cumprod.double().numpy()[[int(t) for t in given["timesteps"]]]
    np.testing.assert_allclose(Noise.of(given).grid_logsnr(given), 0.5 * np.log(kept / (1 - kept)), rtol=1e-10)


@pytest.mark.parametrize("config", [{"use_karras_sigmas": True}, FLOW, {}])
def test_timesteps_of_sigmas(config):
    given = part(DPMSolverMultistepScheduler(**config))
    noise = Noise.of(given)
    found = noise.timestep(given["sigmas"][:-1])
    assert np.abs(found - given["timesteps"]).max() < 1  # diffusers rounds, flow cuts off
    whole = np.arange(0, 1000, 37)
    np.testing.assert_allclose(noise.timestep(np.maximum(noise.sigma(whole), 1e-9)), whole, atol=1e-5)
    np.testing.assert_allclose(noise.sigma(whole + 0.5), (noise.sigma(whole) + noise.sigma(whole + 1)) / 2)


def test_ends_are_infinite_and_finite_where_they_should_be():
    vp, flow, ve = (
        Noise.of(part(DDIMScheduler())),
        Noise.of(part(DPMSolverMultistepScheduler(**FLOW))),
        Noise(np.ones(1), "ve"),
    )
    for noise in (vp, flow, ve):
        alpha, sigma = noise.scales(0.0)
        assert (alpha, sigma) == (1, 0) and noise.logsnr(0.0) == np.inf
    assert vp.scales(np.inf) == (0, 1) and vp.logsnr(np.inf) == -np.inf
    assert flow.scales(1.0) == (0, 1) and flow.logsnr(1.0) == -np.inf
    zero = Noise.of({"class": "DDIMScheduler", "config": {"rescale_betas_zero_snr": True}})
    assert zero.sigmas[-1] == np.inf
    assert np.isfinite(zero.timestep([0.0, 1.0, 5e3, 1e12])).all()
    assert (np.diff(zero.timestep(zero.sigmas)) > 0).all()
    flow = part(FlowMatchEulerDiscreteScheduler())
    assert flow["sigmas"][0] == 1 and Noise.of(flow).grid_logsnr(flow)[0] == -30


def test_a_config_is_read_once():
    given = part(DDIMScheduler())
    assert Noise.of(given) is Noise.of({**given, "timesteps": [3.0]})


def test_schedulers_without_a_table_are_refused():
    with pytest.raises(ValueError, match="EDMEulerScheduler has no table of noise levels .alphas_cumprod.; use a"):
        Noise.of({"class": "EDMEulerScheduler", "config": public_config(EDMEulerScheduler())})
