"""DiT (arXiv:2212.09748): class-conditional; a prompt is the name of a class."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from search.models.pipeline import Conditions, Pipeline

EMPTY = 1000  # the class that DiTPipeline uses for the unconditional half


@dataclass(eq=False, repr=False)
class DiT(Pipeline):
    """DiTPipeline. The empty prompt is the unconditional class, which guidance has in the second half of its batch.

    Raises:
        ValueError: Another size than that of the checkpoint is asked for, or a prompt is not the name of a class.
    """

    name: str = "dit"

    classes: ClassVar = ("DiTPipeline",)
    bundled: ClassVar = "dit"
    whole_runs: ClassVar = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size != (size := self._default_size()):
            raise ValueError(
                f"model={self.name} makes pictures of {size[0]}x{size[1]} only; leave height and width out"
            )

    @property
    def arguments(self) -> Mapping[str, Any]:
        return {"num_inference_steps": self.steps, "guidance_scale": self.guidance_scale}

    def encode(self, prompts: Sequence[str]) -> Conditions:
        numbers = torch.tensor([self._number(prompt) for prompt in prompts], device=self.device)
        empty = torch.full_like(numbers, EMPTY)
        return {"class_labels": torch.cat([numbers, empty]) if self.guided else numbers}

    @torch.no_grad()
    def denoise(self, conditions: Conditions, latents: Tensor, t: Tensor) -> Tensor:
        """DiTPipeline.__call__ between encoding and the scheduler's step, for the half of the batch that it returns."""
        x = self.pipe.scheduler.scale_model_input(self._doubled(latents), t)
        timestep = t[None].to(x.device).expand(len(x))
        prediction = self.denoiser(x, timestep=timestep, **conditions, return_dict=False)[0]
        prediction = prediction[:, : latents.shape[1]]  # the other half, where there is one, is the learned variance
        if not self.guided:
            return prediction
        conditional, without = prediction.chunk(2)
        return without + self.guidance_scale * (conditional - without)

    def stock(self, prompts: Sequence[str], seeds: Sequence[int], **arguments: Any) -> Any:
        numbers = [self._number(prompt) for prompt in prompts]
        if arguments.get("output_type") != "latent":
            return self._run(numbers, seeds, arguments).images
        # the pipeline always decodes: its latents are the last ones that the scheduler returned
        with _last_latents(self.pipe.scheduler) as last:
            self._run(numbers, seeds, arguments | {"output_type": "pt"})
        return last[0][: len(numbers)]

    def _number(self, name: str) -> int:
        """The number of a class; ValueError suggests classes with similar names."""
        labels = self.pipe.labels
        if not name:
            return EMPTY
        if not labels:
            raise ValueError(f"model={self.name} has no class names; its model_index.json needs id2label")
        if name not in labels:
            near = difflib.get_close_matches(name, labels, n=3, cutoff=0.5)
            like = f"did you mean {' or '.join(near)}?" if near else f"for example {', '.join(list(labels)[:5])}"
            raise ValueError(f"{name!r} is not one of the {len(labels)} class names of model={self.name}; {like}")
        return int(labels[name])


@contextmanager
def _last_latents(scheduler: Any) -> Iterator[list[Tensor]]:
    """A list with the latents that `scheduler.step` returned last."""
    is_instance_attribute, step = "step" in vars(scheduler), scheduler.step
    last: list[Tensor] = []

    def remember(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        last[:] = [result[0]]
        return result

    scheduler.step = remember
    try:
        yield last
    finally:
        if is_instance_attribute:
            scheduler.step = step
        else:
            del scheduler.step
