"""The denoiser of a Gaussian: Bayes' rule, the closed form of its trajectories, and its numbers in the tensors file."""

import json
import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
)
from safetensors.torch import load_file, save_file

from search import Schedule, ScheduleError
from search.schedule.apply.gaussian import Gaussian, GaussianDenoiser
from search.schedule.noise import Noise
from search.testing.models import tiny_family
from tests.helpers import pipelines
from tests.helpers.random_corrections import numbers

SHAPE = 4, 8, 8  # of the latents of the tiny pipelines


def gaussian(shape: tuple[int, ...] = SHAPE, samples: int = 12, rank: int = 5, seed: int = 0) -> Gaussian:
    """Fitted to latents by chance that vary most in a few directions."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(samples, 3, generator=generator) * torch.tensor([3.0, 1.0, 0.5])
    patterns = torch.randn(3, math.prod(shape), generator=generator) / math.prod(shape) ** 0.5
    return Gaussian.of(1 + (weights @ patterns).view(samples, *shape), rank)


def part(at: str, given: Gaussian | None = None) -> dict:
    return {"models": {"names": {"G": (given or gaussian()).part("G")}, "at": at}}


def made(pipe, at: str = "GGLLLL", rules=(), **parts) -> Schedule:
    return pipelines.schedule(pipe, rules, steps=len(at), **part(at), **parts).with_tensors(gaussian().tensors("G"))


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.3), (0.6, 0.8), (0.01, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_the_prediction_is_bayes_rule(alpha: float, sigma: float) -> None:
    """Against the dense formula mean + a S (a² S + s² I)^-1 (x - a mean)."""
    given = gaussian()
    basis = given.basis.double()
    spread = basis.T @ torch.diag(given.values.double()) @ basis
    state = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    mean = given.mean.flatten().double()
    whole = alpha**2 * spread + (sigma**2 + 1e-9) * torch.eye(len(mean), dtype=torch.float64)
    if sigma == 0:  # only the directions in which latents vary are known
        expected = mean + (state.flatten(1).double() - mean) @ basis.T @ basis
    else:
        rows = state.flatten(1).double() - alpha * mean
        expected = mean + alpha * torch.linalg.solve(whole, rows.T).T @ spread
    assert torch.allclose(given.predict_final(state, alpha, sigma).flatten(1).double(), expected, atol=5e-3)


def test_the_fit_has_the_moments_of_its_latents() -> None:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(6, 2, 3, generator=generator)
    given = Gaussian.of(latents, 32)
    assert len(given.values) == 5  # of six runs
    rows = latents.flatten(1).double()
    found = given.basis.double().T @ torch.diag(given.values.double()) @ given.basis.double()
    assert torch.allclose(given.mean.flatten().double(), rows.mean(0), atol=1e-6)
    assert torch.allclose(found, torch.cov(rows.T), atol=2e-3)


STEPS = 300
SCHEDULERS = {
    "ddim": lambda: DDIMScheduler(set_alpha_to_one=False),
    "velocity": lambda: DDIMScheduler(prediction_type="v_prediction", set_alpha_to_one=False),
    "sample": lambda: DDIMScheduler(prediction_type="sample", set_alpha_to_one=False, clip_sample=False),
    "dpm": lambda: DPMSolverMultistepScheduler(),
    "euler": lambda: EulerDiscreteScheduler(),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_whole_runs_are_the_closed_form_of_the_trajectory(name: str) -> None:
    """In x / alpha: mean + (s_0 / s_T)(I - U'U)(x_T - mean) + sum sqrt((s_0² + l) / (s_T² + l)) u u'(x_T - mean)."""
    scheduler = SCHEDULERS[name]()
    if hasattr(scheduler.config, "clip_sample"):
        scheduler.register_to_config(clip_sample=False)
    pipe = pipelines.pixart(1, scheduler=scheduler)
    given = gaussian()
    schedule = pipelines.schedule(pipe, steps=STEPS, **part("G" * STEPS)).with_tensors(given.tensors("G"))
    noise = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(5))
    with schedule.apply(pipe) as handle:
        final = pipelines.run(pipe, steps=STEPS, batch=1, latents=noise)
        assert handle.stats()["models"] == {"L": 0, "G": STEPS} and handle.stats()["block_executions"] == 0
    ratios = Noise.of_scheduler(scheduler).sigma(pipe.scheduler.timesteps.numpy())
    first = float(ratios[0])
    state = noise * math.sqrt(1 + first**2) if name != "euler" else noise * float(pipe.scheduler.init_noise_sigma)
    last = 0.0 if name in ("dpm", "euler") else float(Noise.of_scheduler(scheduler).sigmas[0])
    left = (state - given.mean).flatten(1).double()
    basis, values = given.basis.double(), given.values.double()
    inner = left @ basis.T
    gain = ((last**2 + values) / (first**2 + values)).sqrt()
    expected = given.mean.flatten() + last / first * (left - inner @ basis) + (inner * gain) @ basis
    expected = expected / math.sqrt(1 + last**2) if name not in ("dpm", "euler") else expected
    assert (final.flatten(1) - expected).norm() < 0.02 * expected.norm()


def test_flow_matching_follows_the_closed_form_too() -> None:
    model = tiny_family("flux", steps=5)
    shape = tuple(model.sample(["red apple"], [0]).shape[1:])
    given = gaussian(shape)
    denoiser = GaussianDenoiser(given, model.denoiser, Noise.of_scheduler(model.pipe.scheduler), "models.names.G")
    state = noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(5))
    sigmas = np.linspace(1, 0, 501)
    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        denoiser.timestep = 1000 * sigma
        state = state + (after - sigma) * denoiser(hidden_states=state, return_dict=False)[0]
    inner = noise.flatten(1) @ given.basis.float().T
    expected = given.mean.flatten() + (inner * given.values.sqrt()) @ given.basis.float()
    assert (state.flatten(1) - expected).norm() < 0.01 * expected.norm()
    part_of = {"models": {"names": {"G": given.part("G")}, "at": "GGLLL"}}
    schedule = Schedule.from_dict(model.target.schedule(part_of), given.tensors("G"))
    with model.apply(schedule) as handle:
        model.sample(["red apple"], [0])
        assert handle.stats()["models"]["G"] == 2 and handle.stats()["denoiser_calls"] == 5


def test_without_its_steps_the_run_is_the_bare_one() -> None:
    pipe = pipelines.pixart(2, scheduler=DDIMScheduler(clip_sample=False))
    bare = pipelines.run(pipe)
    with made(pipe).apply(pipe) as handle:
        found = pipelines.run(pipe)
        assert handle.stats()["models"] == {"L": 4, "G": 2}
    assert not torch.equal(found, bare) and torch.isfinite(found).all()
    with made(pipe, "LLLLLL").apply(pipe):
        assert torch.equal(pipelines.run(pipe), bare)
    assert torch.equal(pipelines.run(pipe), bare) and pipelines.traces(pipe.transformer) == []


def test_a_run_from_a_picture_has_the_noise_levels_of_its_own_steps(monkeypatch) -> None:
    model = tiny_family("sd", steps=6)
    unet, scheduler = model.denoiser, DDIMScheduler(clip_sample=False)
    pipe = StableDiffusionImg2ImgPipeline(None, None, None, unet, scheduler, None, None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.vae_scale_factor = 8
    states = torch.randn(2, unet.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.zeros(1, 4, unet.config.cross_attention_dim)
    given, seen = gaussian(tuple(states.shape[1:])), []
    own = GaussianDenoiser.forward

    def forward(self, *args, **kwargs):
        seen.append(self.timestep)
        return own(self, *args, **kwargs)

    monkeypatch.setattr(GaussianDenoiser, "forward", forward)
    schedule = pipelines.schedule(pipe, steps=3, **part("GGL", given)).with_tensors(given.tensors("G"))
    with schedule.apply(pipe):
        pipe(
            prompt_embeds=text, negative_prompt_embeds=text, image=states[:1], num_inference_steps=6, strength=0.5,
            output_type="latent", generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
    scheduler.set_timesteps(6)
    assert seen == scheduler.timesteps[3:5].tolist()


# The file


def test_the_file_has_the_numbers_and_needs_no_other_model(tmp_path) -> None:
    pipe = pipelines.pixart()
    schedule = made(pipe)
    file = schedule.save(tmp_path / "s.json")
    assert sorted(load_file(tmp_path / "s.safetensors")) == ["models/G.basis", "models/G.mean", "models/G.values"]
    results = []
    for each in (schedule, Schedule.load(file)):
        with each.apply(pipe):
            results.append(pipelines.run(pipe))
    with Schedule.from_dict(schedule.to_dict()).apply(pipe, models={"G": gaussian()}):
        results.append(pipelines.run(pipe))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert made(pipe, "LLLLLL").save(tmp_path / "off.json") and not (tmp_path / "off.safetensors").exists()


def test_corrections_and_a_gaussian_are_in_one_file(tmp_path) -> None:
    pipe = pipelines.pixart()
    rules = [["transformer_blocks.*:ff", "CCCRCR"]]
    plain = made(pipe, rules=rules)
    both = plain.with_corrections(numbers(plain))
    alone = pipelines.schedule(pipe, rules)
    assert both.to_dict()["corrections"] == alone.with_corrections(numbers(alone)).to_dict()["corrections"]
    loaded = Schedule.load(both.save(tmp_path / "s.json"))
    assert loaded == both and sorted(loaded.tensors) == sorted(both.tensors) and loaded.corrections
    with loaded.apply(pipe):
        found = pipelines.run(pipe)
    with both.apply(pipe):
        assert torch.equal(pipelines.run(pipe), found)
    assert loaded.with_corrections({}) == plain and sorted(loaded.with_corrections({}).tensors) == sorted(plain.tensors)
    tensors = load_file(tmp_path / "s.safetensors")
    save_file(tensors | {"models/G.mean": tensors["models/G.mean"] + 1}, tmp_path / "s.safetensors")
    with pytest.raises(ScheduleError, match=r"digest is .*, but models.names.G.fingerprint is .*belongs to another"):
        Schedule.load(tmp_path / "s.json")
    save_file(
        tensors | {"transformer_blocks.0:ff.scale": tensors["transformer_blocks.0:ff.scale"] * 2},
        tmp_path / "s.safetensors",
    )
    with pytest.raises(ScheduleError, match=r"digest is .*, but corrections.digest is .*belongs to another schedule"):
        Schedule.load(tmp_path / "s.json")


def test_numbers_that_were_not_read_or_are_others_are_refused(tmp_path) -> None:
    pipe = pipelines.pixart()
    alone = Schedule.from_dict(made(pipe).to_dict())
    with pytest.raises(ScheduleError, match=r"numbers of models.names.G, a GaussianDenoiser, were not read; load the"):
        alone.apply(pipe)
    with pytest.raises(ScheduleError, match="x.json: this schedule's models.names.G were not read, so they cannot be"):
        alone.save(tmp_path / "x.json")
    with pytest.raises(ScheduleError, match="models.names.G is a GaussianDenoiser with .*fitted to other pictures"):
        made(pipe).apply(pipe, models={"G": gaussian(seed=9)})
    with pytest.raises(ScheduleError, match="models.names.G.class is 'GaussianDenoiser', but models.'G'. is a"):
        made(pipe).apply(pipe, models={"G": pipelines.pixart(1)})
    with made(pipe).apply(pipe), pytest.raises(ScheduleError, match=r"latents \[4, 8, 8\], and those .* \[4, 16, 16\]"):
        pipelines.run(pipe, size=16)
    assert pipelines.traces(pipe.transformer) == []


@pytest.mark.parametrize(
    "change",
    [
        {"values": -torch.ones(5)},
        {"values": torch.ones(4)},
        {"basis": torch.ones(5, 256)},
        {"basis": torch.ones(5, 255).half()},
        {"mean": torch.ones(SHAPE).half()},
    ],
)
def test_numbers_that_are_no_gaussian_are_refused(tmp_path, change) -> None:
    pipe, given = pipelines.pixart(), gaussian()
    wrong = Gaussian(**({"mean": given.mean, "basis": given.basis, "values": given.values} | change))
    (tmp_path / "s.json").write_text(json.dumps(pipelines.content(pipe, **part("GGLLLL", wrong))))
    save_file(wrong.tensors("G"), tmp_path / "s.safetensors")
    with pytest.raises(ScheduleError, match=r"models.names.G has mean .* a Gaussian has mean \[...\] and values"):
        Schedule.load(tmp_path / "s.json")
