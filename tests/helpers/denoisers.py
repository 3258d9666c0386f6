"""One tiny denoiser of random weights for every class with a contract, and a plain loop that runs it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
)
from torch import Tensor, nn

BATCH, TOKENS, WIDTH = 2, 5, 16


@dataclass(frozen=True)
class Tiny:
    """`build` makes the denoiser, `sample` is the shape of its first argument, `given` its other arguments."""

    build: Callable[[], nn.Module]
    sample: tuple[int, ...]
    given: Callable[[], dict[str, Any]]
    flow: bool = True


def _text(width: int = 12) -> Tensor:
    return torch.randn(BATCH, TOKENS, width, generator=torch.Generator().manual_seed(7))


def _pooled(width: int = 8) -> Tensor:
    return torch.randn(BATCH, width, generator=torch.Generator().manual_seed(8))


HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "layers_per_block": 2,
}

TINY: dict[str, Tiny] = {
    "PixArtTransformer2DModel": Tiny(
        lambda: PixArtTransformer2DModel(
            **HEADS, in_channels=4, out_channels=4, num_layers=3, cross_attention_dim=16, caption_channels=12,
            sample_size=8, norm_num_groups=1, use_additional_conditions=False,
        ),
        (BATCH, 4, 8, 8),
        lambda: {
            "encoder_hidden_states": _text(),
            "encoder_attention_mask": torch.ones(BATCH, TOKENS),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
    ),
    "DiTTransformer2DModel": Tiny(
        lambda: DiTTransformer2DModel(
            **HEADS, in_channels=4, out_channels=4, num_layers=3, sample_size=8, num_embeds_ada_norm=10
        ),
        (BATCH, 4, 8, 8),
        lambda: {"class_labels": torch.tensor([3, 10])},
    ),
    "FluxTransformer2DModel": Tiny(
        lambda: FluxTransformer2DModel(
            **HEADS, in_channels=16, num_layers=2, num_single_layers=3, joint_attention_dim=12,
            pooled_projection_dim=8, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
        ),
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
        lambda: SD3Transformer2DModel(
            **HEADS, sample_size=8, in_channels=4, out_channels=4, num_layers=3, joint_attention_dim=12,
            caption_projection_dim=16, pooled_projection_dim=8, pos_embed_max_size=8, dual_attention_layers=(0,),
        ),
        (BATCH, 4, 8, 8),
        lambda: {"encoder_hidden_states": _text(), "pooled_projections": _pooled()},
    ),
    "WanTransformer3DModel": Tiny(
        lambda: WanTransformer3DModel(
            **HEADS, patch_size=(1, 2, 2), in_channels=4, out_channels=4, text_dim=12, freq_dim=16, ffn_dim=32,
            num_layers=3, rope_max_seq_len=32,
        ),
        (BATCH, 4, 2, 8, 8),
        lambda: {"encoder_hidden_states": _text()},
    ),
    "UNet2DConditionModel": Tiny(
        lambda: UNet2DConditionModel(**UNET),
        (BATCH, 4, 8, 8),
        lambda: {"encoder_hidden_states": _text()},
        flow=False,
    ),
}  # fmt: skip


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
