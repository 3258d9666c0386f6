"""The timesteps space: grids by training timesteps and by log-SNR."""

import numpy as np
import pytest
from diffusers import DPMSolverMultistepScheduler

from search import Schedule
from search.profile.target import Target
from search.schedule.noise import Noise
from search.schedule.schedulers import public_config, scheduler_grid
from search.spaces.timesteps import TimestepsSpace, spacings
from search.testing.models import tiny_model
from search.testing.space_contract import SpaceContract

TARGET = tiny_model(steps=6).target


class TestTraining(SpaceContract):
    @pytest.fixture
    def space(self):
        return TimestepsSpace()


class TestSigma(SpaceContract):
    @pytest.fixture
    def space(self):
        return TimestepsSpace("sigma", points=50)


class TestRates(SpaceContract):
    @pytest.fixture
    def space(self):
        return TimestepsSpace(rates=[5])


def vp_target(steps: int = 10, **config) -> Target:
    scheduler = DPMSolverMultistepScheduler(**config)
    timesteps, sigmas = scheduler_grid(scheduler, steps)
    sampler = {"class": "DPMSolverMultistepScheduler", "config": public_config(scheduler)}
    return Target("vp", TARGET.tree, steps, TARGET.model, sampler | {"timesteps": timesteps, "sigmas": sigmas})


@pytest.mark.parametrize("form", ["training", "sigma"])
def test_every_row_falls_and_is_within_the_training_range(form):
    space, rng = TimestepsSpace(form), np.random.default_rng(0)
    for target in (TARGET, vp_target()):
        levels = [g.levels for g in space.genes(target)]
        for _ in range(200):
            parts = space.decode(rng.integers(0, levels), target)
            Schedule.from_dict(target.schedule(parts))  # falling timesteps and sigmas are checked there
            assert 2 <= parts["steps"] <= target.steps
            assert parts["sampler"]["timesteps"][0] <= 1000


def test_dropping_keeps_the_sigmas_of_the_others():
    x = np.zeros(12, dtype=int)
    x[[2, 8]] = 1
    sampler = TimestepsSpace().decode(x, TARGET)["sampler"]
    kept = [0, 2, 3, 5]
    assert sampler["timesteps"] == [TARGET.sampler["timesteps"][i] for i in kept]
    assert sampler["sigmas"] == [TARGET.sampler["sigmas"][i] for i in [*kept, 6]]


def test_moving_goes_to_the_nearest_candidates_first():
    x = np.zeros(20, dtype=int)
    target = vp_target()
    own = target.sampler["timesteps"][3]
    for level in (2, 3, 4, 5):  # level 1 is the slot's own timestep once more
        x[7] = level
        assert abs(TimestepsSpace().decode(x, target)["sampler"]["timesteps"][3] - own) == level // 2


def test_slots_that_meet_are_one_step():
    target, space = vp_target(), TimestepsSpace()
    rows = space.encode_timesteps([999, 600, 300, 0], target)
    assert space.decode(rows, target)["sampler"]["timesteps"] == [999, 600, 300, 0]
    genes = rows.reshape(10, 2)
    slot = int(np.flatnonzero(genes[:, 0] == 1)[0])
    nearest = space._nearest(target)[slot]
    genes[slot] = [0, 1 + int(np.flatnonzero(space._candidates(target)[nearest] == 600)[0])]
    assert space.decode(genes.ravel(), target)["sampler"]["timesteps"] == [999, 600, 300, 0]


def test_a_run_has_two_steps_at_least():
    x = np.tile([1, 0], 6)
    assert TimestepsSpace().decode(x, TARGET)["steps"] == 2


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("uniform", {}),
        ("trailing", {"timestep_spacing": "trailing"}),
        ("Karras", {"use_karras_sigmas": True}),
        ("log-SNR", {"use_lu_lambdas": True}),
        ("log-SNR", {"use_exponential_sigmas": True}),
        ("beta", {"use_beta_sigmas": True}),
    ],
)
def test_spacings_are_those_of_diffusers(name, config):
    scheduler = DPMSolverMultistepScheduler(**config)
    noise = Noise.of({"class": "DPMSolverMultistepScheduler", "config": public_config(scheduler)})
    timesteps, sigmas = scheduler_grid(scheduler, 12)
    found = dict(spacings(noise, 12))[name]
    if name in ("Karras", "log-SNR", "beta"):
        assert np.log(noise.sigma(found)) == pytest.approx(np.log(sigmas[:-1]), abs=0.02)
    else:
        assert found == pytest.approx(timesteps, abs=1)


def test_a_preset_is_run_to_the_nearest_training_timestep():
    target = vp_target()
    for name, x in TimestepsSpace().presets(target).items():
        count = int(name.split(", ")[1].split()[0])
        wanted = dict(spacings(target.noise, count))[name.split(",")[0]]
        found = TimestepsSpace().decode(x, target)["sampler"]["timesteps"]
        if len(found) == len(wanted):
            assert np.abs(np.array(found) - wanted).max() <= 1, name


def test_a_rate_places_all_steps_on_its_curve():
    """The levels of HIR-Diff's schedule, written as its cumulative products are: 20 steps at rate 8."""
    target, space = vp_target(24), TimestepsSpace("sigma", points=4000, rates=[2, 8])
    flipped = np.flip(1 - np.exp(-8 * np.arange(21) / 20))
    expected = (flipped - flipped.min()) / (flipped.max() - flipped.min()) * (1 - 1e-3) + 1e-3
    x = np.zeros(49, dtype=int)
    x[[3, 9, 11]], x[[0, 2, 4, 6]], x[-1] = 7, 1, 2  # moved has no effect, and four of the steps are dropped
    sigmas = np.array(space.decode(x, target)["sampler"]["sigmas"][:-1])
    reached = np.sqrt(1 / expected[:0:-1] - 1)
    assert np.log(sigmas) == pytest.approx(np.log(np.minimum(reached, target.noise.sigmas[-1])), abs=0.02)
    x[-1] = 0
    plain = TimestepsSpace("sigma", points=4000)
    assert space.decode(x, target) == plain.decode(x[:-1], target)  # exact where it is off
    assert {"exponential 2, 12 steps", "exponential 8, 6 steps"} <= set(space.presets(target))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="form 'x' is unknown; choose from training, sigma: space.time"):
        TimestepsSpace("x")
    with pytest.raises(ValueError, match="points 3 is out of range; use 10 to 10000"):
        TimestepsSpace(points=3)
    with pytest.raises(ValueError, match=r"rates \[0.0, 200.0\] are out of range; use 0 to 100 without 0: space.time"):
        TimestepsSpace(rates=[0, 200])
    with pytest.raises(
        ValueError, match=r"needs at least 3 steps, model.steps is 2; .*\[skip,bits\].* use model.steps=3"
    ):
        TimestepsSpace().genes(tiny_model(steps=2).target)
    ddim = Target("x", TARGET.tree, 6, {}, {"class": "DDIMScheduler", "config": {}, "timesteps": [5, 4, 3, 2, 1, 0]})
    with pytest.raises(ValueError, match="form 'sigma' needs a scheduler with sigmas, and DDIMScheduler has none"):
        TimestepsSpace("sigma").genes(ddim)
