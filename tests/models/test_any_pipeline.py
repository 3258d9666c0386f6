"""Pipelines as they are: given as objects, of classes that nobody described, from a picture, with any scheduler."""

import json
from functools import wraps

import pytest
import torch
from diffusers import FluxPipeline

import search
from search import Schedule, ScheduleError
from search.calibrate.propose.baselines import shorter_runs
from search.evaluate.execute.partial import PartialRun
from search.models.base import to_schedule
from search.models.pictures import output_at, pictures_of
from search.models.pipeline import Pipeline
from search.spaces.solver import SolverSpace
from search.spaces.timesteps import TimestepsSpace
from search.testing.models import family_folder
from tests.helpers.zoo import ZOO

FAST = ("ZImageTransformer2DModel", "FluxTransformer2DModel/img2img")
SAMPLES = (
    *FAST,
    "FluxTransformer2DModel/controlnet",
    "FluxTransformer2DModel/inpaint",
    "FluxTransformer2DModel/modular",
    "LTX2VideoTransformer3DModel",
    "UNet2DConditionModel/euler-ancestral",
    "UNet2DConditionModel/heun",
    "UNet2DConditionModel/img2img",
    "UNet2DConditionModel/lcm",
    "WanTransformer3DModel/two-experts",
)


def model_of(name: str) -> tuple[Pipeline, list[torch.Tensor]]:
    """A pipeline of the zoo as a model, and what its scheduler returned in a call by hand."""
    sample = ZOO[name]()
    returned: list[torch.Tensor] = []
    scheduler = type(sample.pipe.scheduler)
    inherited, step = "step" not in vars(scheduler), scheduler.step

    @wraps(step)  # pipelines look at its signature
    def record(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        if self is sample.pipe.scheduler:
            returned.append(result[0].clone())
        return result

    scheduler.step = record
    try:
        sample.run()
    finally:
        if inherited:
            del scheduler.step
        else:
            scheduler.step = step
    return Pipeline("any", pipe=sample.pipe, call=sample.call, example="{}"), returned


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in SAMPLES])
def test_a_pipeline_is_run_as_it_is_whole_and_in_parts(name):
    model, returned = model_of(name)
    bare = model.sample(["{}"], [0])
    assert torch.equal(bare, returned[-1]) and model.target.steps == len(returned)
    with model.apply(to_schedule(model, {})):
        assert torch.equal(model.sample(["{}"], [0]), bare)
    stacks = [stack for stack in model.target.tree.stacks if model.target.tree.components(stack)]
    rules = [[f"{stack}.*:*", ("CR" * len(returned))[: len(returned)]] for stack in stacks]
    schedule = to_schedule(model, {"plan": {"rules": rules}})
    with model.apply(schedule):
        whole = model.sample(["{}"], [0])
    assert not torch.equal(whole, bare)
    run, states = PartialRun(model, ["{}"], [0], model.costs()), []
    last = run.follow(run.begin(), schedule, on_state=states.append)
    assert torch.equal(last.latents, whole)
    for state in states[:-1]:
        assert torch.equal(run.follow(state, schedule).latents, whole)
    assert torch.equal(model.sample(["{}"], [0]), bare)


def test_a_run_from_a_picture_has_the_steps_that_it_makes():
    model, returned = model_of("FluxTransformer2DModel/img2img")
    assert (model.steps, model.target.steps, model.target.left_out) == (4, 3, 1)
    with pytest.raises(ValueError, match="begins at step 1, from a picture; how many steps it makes is up to the call"):
        TimestepsSpace().genes(model.target)
    part = model.target.schedule({})
    longer = Schedule.from_dict({"format": part["format"], "model": part["model"], "steps": 4})
    with (
        model.apply(longer),
        pytest.raises(ScheduleError, match="has 4 steps, and the run begins at step 1 and makes 3"),
    ):
        model.sample(["{}"], [0])
    assert torch.equal(model.sample(["{}"], [0]), returned[-1])


@pytest.mark.parametrize("space", ["timesteps", "solver"])
def test_a_scheduler_that_runs_its_own_timesteps_only(space):
    model, _ = model_of("UNet2DConditionModel/euler-ancestral")
    assert model.target.sampler == {} and "sampler" not in model.target.schedule({})
    assert shorter_runs(model.target, model.shorter, (1,)) == {}
    spaces = {"timesteps": TimestepsSpace, "solver": SolverSpace}
    with pytest.raises(ValueError, match="the scheduler of any runs no timesteps of a schedule; search space=cache"):
        spaces[space]().genes(model.target)


def test_the_noise_levels_of_a_sampler_that_adds_noise_again_are_searched():
    model, _ = model_of("UNet2DConditionModel/lcm")
    steps = model.target.steps
    levels = TimestepsSpace().decode([0, 0] * (steps - 1) + [0, 100], model.target)["sampler"]["timesteps"]
    assert levels[:-1] == model.target.sampler["timesteps"][:-1] != levels
    before = model.sample(["{}"], [0])
    with to_schedule(model, TimestepsSpace().decode([0, 0] * (steps - 1) + [0, 100], model.target)).apply(model.pipe):
        planned = model.sample(["{}"], [0])
    stock = model.pipe.scheduler.set_timesteps
    model.pipe.scheduler.set_timesteps = lambda count, device=None, **_: stock(timesteps=[int(t) for t in levels])
    assert torch.equal(planned, model.sample(["{}"], [0])) and not torch.equal(planned, before)
    with pytest.raises(ValueError, match="LCMScheduler draws noise at every step; a table takes a deterministic"):
        SolverSpace().genes(model.target)


def test_an_argument_that_the_call_does_not_take_is_refused_by_name():
    pipe = ZOO["ZImageTransformer2DModel"]().pipe
    with pytest.raises(ValueError, match=r"model.call.heigth=64: ZImagePipeline takes no such argument; leave it out"):
        Pipeline("any", pipe=pipe, call={"heigth": 64})


def test_a_call_that_makes_one_result_whatever_is_given_is_made_for_each_prompt():
    sample = ZOO["ZImageTransformer2DModel"]()  # embeddings of one prompt are an argument of the call
    model = Pipeline("any", pipe=sample.pipe, call=sample.call, example="{}")
    assert model.why_no_batches(["{}", "{}"]) == "for 2 prompts the denoiser is given as many rows as for one"
    both = model.sample(["{}", "{}"], [0, 1])
    assert len(both) == 2 and torch.equal(both[1:], model.sample(["{}"], [1]))


def test_pictures_are_the_pipelines_own():
    model, _ = model_of("FluxTransformer2DModel")
    stock = pictures_of(output_at(model.stock(["{}"], [0], output_type="pt")))
    assert torch.equal(model.decode(model.sample(["{}"], [0]), ["{}"], [0]), stock)
    assert not model.without_pictures


def test_latents_without_pictures_are_drawn():
    model, _ = model_of("HunyuanDiT2DModel")  # without a VAE
    drawn = model.decode(model.sample(["{}"], [0]), ["{}"], [0])
    assert drawn.shape[:2] == (1, 3) and 0 <= drawn.min() < drawn.max() <= 1
    assert model.without_pictures.startswith("AttributeError")


class WithDepth(FluxPipeline):
    """A pipeline that returns its pictures inside of something else, and points beside them."""

    def __call__(self, *args, **kwargs):
        images = super().__call__(*args, **kwargs).images
        return {"points": images.flatten(2).mT, "samples": [{"depth": images.mean(1, keepdim=True)}]}


def test_what_is_scored_is_what_the_output_option_names():
    sample = ZOO["FluxTransformer2DModel"]()
    pipe = WithDepth(**sample.pipe.components)
    given = {"pipe": pipe, "call": sample.call, "example": "{}"}
    model = Pipeline("any", output="samples.0.depth", **given)
    latents = model.sample(["{}"], [0])
    depth = model.stock(["{}"], [0], output_type="pt")["samples"][0]["depth"]
    assert torch.equal(model.decode(latents, ["{}"], [0]), depth.expand(-1, 3, -1, -1))
    points = Pipeline("any", output="points", **given).decode(latents, ["{}"], [0])
    assert points.shape[:2] == (1, 3) and points.std() > 0 and not model.without_pictures
    with pytest.raises(ValueError, match=r"model.output='depth': a dict has no part depth; it has points, samples;"):
        Pipeline("any", output="depth", **given)
    with pytest.raises(ValueError, match="returns a list, which is no picture"):
        Pipeline("any", output="samples", **given)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FluxTransformer2DModel/img2img", "LTX2VideoTransformer3DModel"])
def test_a_search_on_a_pipeline_ends_in_schedules_that_give_what_it_measured(name, tmp_path, short_report):
    sample = ZOO[name]()
    result = search.search(
        sample.pipe, "tracking.enabled=false", "certify=off", "budget.generation=6", "compute.threads=1",
        call=sample.call,
        prompts=["{}"], held_out=["{}"], space="cache", budget={"evaluations": 12}, runs=tmp_path,
    )  # fmt: skip
    assert result.model == type(sample.pipe).__name__
    entries = [entry for entry in result.entries if entry.role == "front"]
    model = Pipeline("any", pipe=sample.pipe, call=sample.call, example="{}")
    teacher = model.sample(["{}"], [10_000])
    for entry in entries:
        with entry.schedule.apply(sample.pipe):
            latents = model.sample(["{}"], [10_000])
        drift = float((latents - teacher).norm() / teacher.norm())
        assert drift == pytest.approx(entry.held_out["drift"].value, rel=1e-4)
    assert json.loads((result.folder / "front.json").read_text())


@pytest.mark.slow
def test_a_search_by_the_command_line_on_lines_of_arguments(tmp_path, monkeypatch, short_report):
    monkeypatch.chdir(tmp_path)
    for file, texts in (("mine.jsonl", ("red apple", "blue boat")), ("others.jsonl", ("red boat", "blue apple"))):
        lines = [json.dumps({"prompt": text, "negative_prompt": "flat"}) for text in texts]
        (tmp_path / file).write_text("\n".join(lines))
    result = search.search(
        f"model.path={family_folder('sd3')}", "model.call.max_sequence_length=8", "model.height=16", "model.width=16",
        "model.dtype=float32", "model.call.num_inference_steps=5", "prompts.calibration=mine.jsonl",
        "prompts.held_out=others.jsonl", "budget.evaluations=6", "budget.generation=6", "tracking.enabled=false",
        "certify=off",
        model="any", space="cache", runs=tmp_path / "runs",
    )  # fmt: skip
    assert result.config["prompts"]["batch"] == 8 and result.entries[-1].schedule.steps == 5
    call = result.entries[0].schedule.made["call"]
    assert call["max_sequence_length"] == 8 and call["num_inference_steps"] == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": ["red apple"]}, "a search needs prompts to choose on and others to report on; give prompts="),
        ({"model": "pixart", "prompts": ["a", "b"]}, "model=pixart names another pipeline than the ZImagePipeline"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_run(given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        search.search(ZOO["ZImageTransformer2DModel"]().pipe, runs=tmp_path / "runs", **given)
    assert not (tmp_path / "runs").exists()
