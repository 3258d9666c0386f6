"""What every adapter of a model family must do. Inherit `ModelContract` and give `make`."""

from typing import Any

import pytest
import torch

from search import Schedule
from search.models.pipeline import Pipeline
from search.testing.models import family_folder, tiny_folder

SEEDS = [3, 4]


class ModelContract:
    """The adapter's loop gives the pipeline's latents bit for bit, with and without a schedule, and counts right."""

    prompts = ["red apple", "blue boat"]
    steps = 5
    calls = 1  # of the denoiser at each step

    def make(self, **arguments: Any) -> Pipeline:
        """A tiny pipeline's adapter of `steps` steps."""
        raise NotImplementedError

    def own(self, model: Pipeline, prompts: list[str] | None = None) -> torch.Tensor:
        """Latents of the adapter's own loop."""
        return model.sample(prompts or self.prompts, SEEDS)

    def stock(self, model: Pipeline, **arguments: Any) -> torch.Tensor:
        """Latents of the pipeline, untouched."""
        return model.stock(self.prompts, SEEDS, **{"output_type": "latent", **arguments})

    def pictures(self, model: Pipeline) -> torch.Tensor:
        """The pipeline's own, [B, 3, H, W] in [0, 1]."""
        return torch.as_tensor(self.stock(model, output_type="np")).permute(0, 3, 1, 2)

    @pytest.mark.parametrize("guidance", [4.0, 1.0])
    def test_own_loop_gives_the_stock_pipelines_latents(self, guidance: float) -> None:
        model = self.make(guidance_scale=guidance)
        assert torch.equal(self.own(model), self.stock(model))

    def test_own_loop_gives_the_stock_pipelines_latents_in_bfloat16(self) -> None:
        model = self.make(dtype="bfloat16")
        assert torch.equal(self.own(model), self.stock(model))

    def test_own_loop_gives_the_stock_pipelines_latents_at_another_size(self) -> None:
        height, width = self.make().size
        model = self.make(height=2 * height, width=height)
        assert torch.equal(self.own(model), self.stock(model))

    def test_decoded_pictures_are_the_stock_pipelines(self) -> None:
        model = self.make()
        own = model.decode(self.own(model))
        assert own.shape[0] == 2 and own.min() >= 0 and own.max() <= 1
        assert torch.allclose(own, self.pictures(model), atol=1e-5)

    def test_prompts_and_guidance_show_in_the_latents(self) -> None:
        model, stronger = self.make(guidance_scale=2.0), self.make(guidance_scale=8.0)
        own = self.own(model)
        assert not torch.allclose(own, self.own(model, self.prompts[::-1]))
        assert not torch.allclose(own, self.own(stronger))

    def test_a_picture_is_the_same_alone(self) -> None:
        model = self.make()
        alone = model.sample(self.prompts[1:], SEEDS[1:])
        assert torch.allclose(self.own(model)[1:], alone, atol=1e-4, rtol=1e-4)

    def test_a_schedule_gives_the_same_in_both_loops(self) -> None:
        model = self.make()
        bare = self.own(model)
        rules = [[f"{stack}.*:*", "CRCRC"] for stack in model.target.tree.stacks if model.target.tree.components(stack)]
        with Schedule.from_dict(model.target.schedule({"plan": {"rules": rules}})).apply(model.pipe):
            own = self.own(model)
            assert torch.equal(own, self.stock(model))
        assert not torch.allclose(own, bare)

    def test_the_targets_own_schedule_is_the_bare_pipeline(self) -> None:
        model = self.make()
        bare = self.stock(model)
        with Schedule.from_dict(model.target.schedule({})).apply(model.pipe):
            assert torch.equal(self.stock(model), bare)
            assert torch.equal(self.own(model), bare)

    def test_fewer_steps_by_schedule_are_fewer_steps_by_argument(self) -> None:
        model = self.make()
        fewer = Schedule.from_dict(model.target.schedule({}) | {"steps": 3, "sampler": model.shorter(3)})
        bare = self.stock(model, num_inference_steps=3)
        with fewer.apply(model.pipe):
            assert torch.equal(self.stock(model), bare)

    def test_once_is_one_step_of_one_picture(self) -> None:
        model = self.make()
        batches: list[int] = []

        def count(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            batches.append(len(args[0] if args else kwargs["hidden_states"]))

        handle = model.denoiser.register_forward_pre_hook(count, with_kwargs=True)
        assert model.once().shape == model.noise([0]).shape
        handle.remove()
        halves = 2 if model.target.guidance > 1 else 1
        assert batches == [halves // self.calls] * self.calls

    def test_costs_count_what_a_run_of_one_picture_keeps(self) -> None:
        model = self.make()
        costs, stacks = model.costs(), [s for s in model.target.tree.stacks if model.target.tree.components(s)]
        rules = [[f"{stack}.*:*", "CRCRC"] for stack in stacks]
        schedule = Schedule.from_dict(model.target.schedule({"plan": {"rules": rules}}))
        with model.apply(schedule) as handle:
            model.sample(self.prompts[:1], [0])
            assert handle.stats()["peak_bytes"] == costs.peak_bytes(schedule) > 0
        assert 0.4 * costs.teacher_macs < costs.macs(schedule) < costs.teacher_macs

    def test_another_pipeline_is_refused_with_what_to_type(self) -> None:
        mine = self.make().classes
        other, message = family_folder("dit"), "DiTPipeline; .*; type model=dit_xl_256 model.path="
        if "DiTPipeline" in mine:
            other, message = tiny_folder(), "PixArtAlphaPipeline; .*; type model=pixart_alpha_1024 model.path="
        with pytest.raises(ValueError, match=f"is a {message}"):
            self.make(path=other)
