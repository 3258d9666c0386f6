"""The bundled StableDiffusionPipeline: a UNet2DConditionModel on the variance-preserving noise of SD 1 and 2."""

from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel

from .distil import Teacher
from .emoji import EmojiSet
from .loop import Recipe, train
from .pixart import TEXT_WIDTH, save

RECIPE = Recipe(steps=2200, rate=1.5e-3, warmup=100, decay=0.7, weight_decay=0.01, ema=0.998)
BATCH = 32


def fit(pictures: EmojiSet, work: Path, device: torch.device, out: Path, recipe: Recipe = RECIPE) -> float:
    """Train the UNet, write the fp16 pipeline to `out`, return the loss against the teacher's v.

    x_t = alpha x_0 + sigma n is the teacher's x_s times (alpha + sigma), with s = sigma / (alpha + sigma); its
    velocity u gives x_0 = x_s - s u, n = x_s + (1 - s) u and the target v = alpha n - sigma x_0 (arXiv:2202.00512).
    """
    torch.manual_seed(recipe.seed)
    teacher = Teacher(pictures, device)
    student = build(teacher.latents.shape[1]).to(device)
    alphas = build_scheduler().alphas_cumprod.to(device)
    table = (1 - alphas).sqrt() / ((1 - alphas).sqrt() + alphas.sqrt())  # s of every timestep

    def loss_at(step: int, generator: torch.Generator) -> torch.Tensor:
        batch = teacher.draw(generator, BATCH)
        t = torch.searchsorted(table, batch.sigma).clamp(max=len(table) - 1)
        s = table[t]
        batch.sigma.copy_(s)
        alpha, sigma, s = (v[:, None, None, None] for v in (alphas[t].sqrt(), (1 - alphas[t]).sqrt(), s))
        noisy, velocity = batch.noisy, teacher.velocity(batch)
        target = alpha * (noisy + (1 - s) * velocity) - sigma * (noisy - s * velocity)
        with torch.autocast(device.type, torch.bfloat16):
            v = student(noisy * (alpha + sigma), t, teacher.states[batch.text], return_dict=False)[0]
        return (v.float() - target).square().mean()

    def export() -> None:
        pipe = teacher.pipe
        pipe.text_encoder.config.use_attention_mask = True  # StableDiffusionPipeline then passes the mask on to it
        parts = (pipe.vae, pipe.text_encoder, pipe.tokenizer, student, build_scheduler())
        save(StableDiffusionPipeline(*parts, None, None, requires_safety_checker=False), out)

    loss = train("sd", student, loss_at, recipe, work, export)
    export()
    return loss


def build(channels: int) -> UNet2DConditionModel:
    """Three resolutions, 16, 8 and 4; attention at the first two and in the middle."""
    model = UNet2DConditionModel(
        sample_size=16,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(2, 3, 4),  # in diffusers this is the number of heads
        norm_num_groups=16,
    )
    torch.nn.init.zeros_(model.conv_out.weight)
    return model


def build_scheduler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ 2M (arXiv:2211.01095) on the noise of Stable Diffusion, with v-prediction and trailing timesteps."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
        steps_offset=1,  # StableDiffusionPipeline requires it; trailing spacing does not use it
    )
