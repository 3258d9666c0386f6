"""A plain loop that runs a tiny denoiser of every class with a contract."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import Tensor, nn

from search.testing import denoisers
from search.testing.denoisers import WIDTH

BATCH, TOKENS = 2, 5


@dataclass(frozen=True)
class Tiny:
    """`build` makes the denoiser, `sample` is the shape of its first argument, `given` its other arguments."""

    build: Callable[[], nn.Module]
    sample: tuple[int, ...]
    given: Callable[[], dict[str, Any]]
    flow: bool = True


def _text() -> Tensor:
    return torch.randn(BATCH, TOKENS, WIDTH, generator=torch.Generator().manual_seed(7))


def _pooled() -> Tensor:
    return torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(8))


TINY: dict[str, Tiny] = {
    "PixArtTransformer2DModel": Tiny(
        denoisers.pixart,
        (BATCH, 4, 8, 8),
        lambda: {
            "encoder_hidden_states": _text(),
            "encoder_attention_mask": torch.ones(BATCH, TOKENS),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
    ),
    "DiTTransformer2DModel": Tiny(
        lambda: denoisers.dit(out_channels=4, num_layers=3, num_embeds_ada_norm=10),
        (BATCH, 4, 8, 8),
        lambda: {"class_labels": torch.tensor([3, 10])},
    ),
    "FluxTransformer2DModel": Tiny(
        lambda: denoisers.flux(num_layers=2, num_single_layers=3),
        (BATCH, 16, 16),
        lambda: {
            "encoder_hidden_states": _text(),
            "pooled_projections": _pooled(),
            "img_ids": torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0)),
            "txt_ids": torch.zeros(TOKENS, 3),
            "guidance": torch.full((BATCH,), 3.5),
        },
    ),
    "SD3Transformer2DModel": Tiny(
        lambda: denoisers.sd3(num_layers=3),
        (BATCH, 4, 8, 8),
        lambda: {"encoder_hidden_states": _text(), "pooled_projections": _pooled()},
    ),
    "WanTransformer3DModel": Tiny(
        lambda: denoisers.wan(num_layers=3),
        (BATCH, 4, 2, 8, 8),
        lambda: {"encoder_hidden_states": _text()},
    ),
    "UNet2DConditionModel": Tiny(
        lambda: denoisers.unet(layers_per_block=2, block_out_channels=(8, 16), norm_num_groups=4),
        (BATCH, 4, 8, 8),
        lambda: {"encoder_hidden_states": _text()},
        flow=False,
    ),
}


class Pipeline:
    """What a schedule is applied to: a denoiser and a scheduler, nothing else."""

    def __init__(self, denoiser: nn.Module, scheduler: Any) -> None:
        self.denoiser, self.scheduler = denoiser, scheduler


def pipeline(name: str) -> Any:
    torch.manual_seed(0)
    tiny = TINY[name]
    denoiser = tiny.build().eval()
    for parameter in denoiser.parameters():  # lively gates: every action shows in the latents
        torch.nn.init.normal_(parameter, std=0.2)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0) if tiny.flow else DPMSolverMultistepScheduler()
    return Pipeline(denoiser, scheduler)


@torch.no_grad()
def run(pipe: Any, steps: int = 6, call: Callable[..., Any] | None = None) -> Tensor:
    """Final latents of a plain loop; `call(step, sample, **arguments)` may take the denoiser's place."""
    tiny = TINY[type(pipe.denoiser).__name__]
    given = tiny.given()
    latents = torch.randn(tiny.sample, generator=torch.Generator().manual_seed(1))
    pipe.scheduler.set_timesteps(steps)
    for i, t in enumerate(pipe.scheduler.timesteps):
        time = t / 1000 if isinstance(pipe.denoiser, FluxTransformer2DModel) else t
        arguments = given | {"timestep": time.expand(BATCH), "return_dict": False}
        output = (call or _plain(pipe))(i, latents, **arguments)[0]
        latents = pipe.scheduler.step(output, t, latents, return_dict=False)[0]
    return latents


def _plain(pipe: Any) -> Callable[..., Any]:
    return lambda step, sample, **arguments: pipe.denoiser(sample, **arguments)
