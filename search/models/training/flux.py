"""The bundled FluxPipeline: double and single stream blocks, flow matching, guidance as an input."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel

from .distil import Teacher
from .emoji import EmojiSet
from .loop import Recipe, train
from .pixart import HEAD, TEXT_WIDTH, TOKENS, WIDTH, save

RECIPE = Recipe(steps=2200, rate=1.5e-3, warmup=100, decay=0.7, weight_decay=0.01, ema=0.998)
BATCH = 32
DOUBLE, SINGLE = 2, 5
SCALES = (1.0, 6.0)  # guidance scales that the distilled model is trained for


def fit(pictures: EmojiSet, work: Path, device: torch.device, out: Path, recipe: Recipe = RECIPE) -> float:
    """Train transformer and both text encoders, write the fp16 pipeline to `out`, return the loss.

    Guidance distillation (arXiv:2210.03142): the target is the teacher's guided velocity at a random scale, which
    the student gets as an input. The T5 encoder starts as the teacher's; FluxPipeline gives it no mask.
    """
    torch.manual_seed(recipe.seed)
    teacher = Teacher(pictures, device)
    student = build(teacher.latents.shape[1])
    networks = torch.nn.ModuleDict(
        {"transformer": student, "clip": build_clip(len(teacher.pipe.tokenizer)), "t5": teacher.pipe.text_encoder}
    ).to(device)
    side = teacher.latents.shape[-1] // 2
    places = FluxPipeline._prepare_latent_image_ids(1, side, side, device, torch.float32)
    lower, upper = SCALES

    def loss_at(step: int, generator: torch.Generator) -> torch.Tensor:
        batch = teacher.draw(generator, BATCH)
        scale = (lower + (upper - lower) * torch.rand(len(batch.sigma), generator=generator)).to(device)
        used, inverse = torch.unique(batch.text, return_inverse=True)
        ids = teacher.tokens.input_ids[used]
        with torch.autocast(device.type, torch.bfloat16):
            packed = student(
                pack(batch.noisy),
                networks["t5"](ids)[0][inverse],
                networks["clip"](ids).pooler_output[inverse],
                batch.sigma,
                places,
                torch.zeros(TOKENS, 3, device=device),
                guidance=scale,
                return_dict=False,
            )[0]
        return (packed.float() - pack(teacher.velocity(batch, scale))).square().mean()

    def export() -> None:
        tokenizer, scheduler = teacher.pipe.tokenizer, FlowMatchEulerDiscreteScheduler(shift=2.0)
        vae = AutoencoderKL.from_config({**teacher.pipe.vae.config, "shift_factor": 0.0})
        vae.load_state_dict(teacher.pipe.vae.state_dict())
        parts = (scheduler, vae, networks["clip"], tokenizer, networks["t5"], tokenizer, student)
        save(FluxPipeline(*parts), out)

    loss = train("flux", networks, loss_at, recipe, work, export)
    export()
    return loss


def pack(latents: torch.Tensor) -> torch.Tensor:
    """[B, C, 2h, 2w] to tokens [B, h w, 4 C], as FluxPipeline packs them."""
    return FluxPipeline._pack_latents(latents, *latents.shape)


def build(channels: int) -> FluxTransformer2DModel:
    """Two double and five single blocks of width 128, for latents of so many channels."""
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * channels,
        num_layers=DOUBLE,
        num_single_layers=SINGLE,
        attention_head_dim=HEAD,
        num_attention_heads=WIDTH // HEAD,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 14, 14),
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.xavier_uniform_(parameter)
        if name.endswith(".bias"):
            torch.nn.init.zeros_(parameter)
    torch.nn.init.zeros_(model.proj_out.weight)
    with torch.no_grad():  # the gates of every block: start half open
        for block in model.transformer_blocks:
            for norm in (block.norm1, block.norm1_context):
                norm.linear.weight.normal_(std=0.02)
                norm.linear.bias.view(6, -1)[[2, 5]] += 0.5
        for block in model.single_transformer_blocks:
            block.norm.linear.weight.normal_(std=0.02)
            block.norm.linear.bias.view(3, -1)[2] += 0.5
    return model


def build_clip(words: int) -> CLIPTextModel:
    """One layer; its pooled state is that of the T5 vocabulary's end token."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=1,
        )
    )
