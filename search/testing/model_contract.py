"""What every model must do. Inherit `ModelContract`, give `make` and, in words of your own, the pipeline's `call`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search import Schedule
from search.evaluate.execute.partial import PartialRun, RunState
from search.models.pipeline import Pipeline
from search.profile.costs import Costs

SEEDS = [3, 4]


class ModelContract:
    """A model gives what its pipeline's own call gives, bit for bit, also in parts, and leaves nothing on it."""

    prompts = ["red apple", "blue boat"]
    call: dict[str, Any] = {}  # arguments of the pipeline's call besides prompts, steps and generators
    steps = 5
    calls = 1  # of the denoiser at each step

    def make(self, **arguments: Any) -> Pipeline:
        """A tiny model of `steps` steps."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls) -> Pipeline:
        """One for all tests of a class, as nothing may stay on it."""
        return cls().make()

    @pytest.fixture(scope="class")
    @classmethod
    def costs(cls, model: Pipeline) -> Costs:
        """Its cost tables."""
        return model.costs()

    def returned(self, model: Pipeline, **arguments: Any) -> Any:
        """What the pipeline returns first: latents unless `output_type` is another."""
        given = {"num_inference_steps": self.steps, "output_type": "latent", **self.call, **arguments}
        generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        return model.pipe(self.prompts, generator=generators, return_dict=False, **given)[0]

    def pictures(self, model: Pipeline, **arguments: Any) -> Tensor:
        """The pipeline's own [B, 3, H, W]."""
        return torch.as_tensor(self.returned(model, output_type="np", **arguments)).movedim(-1, -3)

    def planned(self, model: Pipeline) -> Schedule:
        """A schedule that reuses all components at two steps."""
        stacks = [stack for stack in model.target.tree.stacks if model.target.tree.components(stack)]
        rules = [[f"{stack}.*:*", "CRCRC"] for stack in stacks]
        return Schedule.from_dict(model.target.schedule({"plan": {"rules": rules}}))

    @pytest.mark.parametrize("guidance", [4.0, 1.0])
    def test_latents_are_those_of_the_pipelines_call(
        self, model: Pipeline, guidance: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(model, "guidance_scale", guidance)
        found = model.sample(self.prompts, SEEDS)
        assert torch.equal(found, self.returned(model, guidance_scale=guidance))
        assert not torch.allclose(found, model.sample(self.prompts[::-1], SEEDS))

    def test_decoded_pictures_are_those_of_the_pipelines_call(self, model: Pipeline) -> None:
        found = model.decode(model.sample(self.prompts, SEEDS), self.prompts, SEEDS)
        assert found.shape[0] == 2 and found.min() >= 0 and found.max() <= 1
        assert torch.allclose(found, self.pictures(model), atol=1e-5)

    def test_a_picture_is_the_same_alone(self, model: Pipeline) -> None:
        both, alone = model.sample(self.prompts, SEEDS), model.sample(self.prompts[1:], SEEDS[1:])
        assert torch.allclose(both[1:], alone, atol=1e-4, rtol=1e-4)

    def test_a_run_goes_on_from_any_step(self, model: Pipeline, costs: Costs) -> None:
        schedule = self.planned(model)
        with schedule.apply(model.pipe):
            whole = model.sample(self.prompts, SEEDS)
        assert not torch.allclose(whole, model.sample(self.prompts, SEEDS))
        states: list[RunState] = []
        run = PartialRun(model, self.prompts, SEEDS, costs)
        run.follow(run.begin(), schedule, on_state=states.append)
        assert [state.step for state in states] == [1, 2, 3, 4, 5] and torch.equal(states[-1].latents, whole)
        assert all(torch.equal(run.follow(state, schedule).latents, whole) for state in states[:-1])
        assert run.steps == 5 + 4 + 3 + 2 + 1

    def test_the_targets_own_schedule_is_the_bare_pipeline(self, model: Pipeline) -> None:
        bare = self.pictures(model)
        with Schedule.from_dict(model.target.schedule({})).apply(model.pipe):
            assert torch.equal(self.pictures(model), bare)

    def test_fewer_steps_by_schedule_are_fewer_steps_by_argument(self, model: Pipeline) -> None:
        bare = self.pictures(model, num_inference_steps=3)
        fewer = Schedule.from_dict(model.target.schedule({}) | {"steps": 3, "sampler": model.shorter(3)})
        with fewer.apply(model.pipe):
            assert torch.equal(self.pictures(model, num_inference_steps=3), bare)

    def test_once_is_one_step_of_one_picture(self, model: Pipeline) -> None:
        rows: list[int] = []

        def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rows.append(len(args[0] if args else kwargs["hidden_states"]))

        with model.denoiser.register_forward_pre_hook(count, with_kwargs=True):
            assert model.once().shape == model.sample(self.prompts[:1], [0]).shape
        halves = 2 if model.target.guidance > 1 else 1
        assert rows == [halves // self.calls] * self.calls * (1 + self.steps)

    def test_costs_count_what_a_run_of_one_picture_keeps(self, model: Pipeline, costs: Costs) -> None:
        schedule = self.planned(model)
        with model.apply(schedule) as handle:
            model.sample(self.prompts[:1], [0])
            assert handle.stats()["peak_bytes"] == costs.peak_bytes(schedule) > 0
        assert 0.4 * costs.teacher_macs < costs.macs(schedule) < costs.teacher_macs

    def test_nothing_stays_on_the_pipeline(self, model: Pipeline) -> None:
        self.pictures(model)
        before = traces(model.pipe)
        latents = model.sample(self.prompts, SEEDS)
        runs: list[Callable[[], Any]] = [
            partial(model.sample, self.prompts, SEEDS, until=2),
            partial(model.begin, self.prompts, SEEDS),
            partial(model.decode, latents, self.prompts, SEEDS),
            partial(model.sample, self.prompts, SEEDS, on_step=_raise),
        ]
        for run in runs:
            try:
                run()
            except ZeroDivisionError:
                assert run is runs[-1]
            assert traces(model.pipe) == before
        assert torch.equal(model.sample(self.prompts, SEEDS), latents)


def traces(pipe: Any) -> dict[str, Any]:
    """Whatever a run could leave behind: attributes of the scheduler, its class and all modules, and hooks."""
    scheduler = pipe.scheduler
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    modules = {f"{name}.{path}": m for name, part in parts.items() for path, m in part.named_modules()}
    return {
        "scheduler": (scheduler, type(scheduler), sorted(vars(scheduler)), dict(vars(type(scheduler)))),
        "modules": {name: (sorted(vars(module)), type(module)) for name, module in modules.items()},
        "hooks": {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in modules.items()},
    }


def _raise(_: Any) -> None:
    raise ZeroDivisionError
