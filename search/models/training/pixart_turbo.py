"""The few-step PixArt: the bundled one, distilled to four steps without guidance.

Every step of the student is to land where the teacher's guided trajectory is: progressive distillation
(arXiv:2202.00512) and guidance distillation (arXiv:2210.03142) at once, on trajectories that are computed beforehand.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline
from torch import Tensor

from search.profile.bundled import bundled_model

from .emoji import BACKGROUNDS, CONCEPTS, STYLES, EmojiSet, caption
from .loop import Recipe, train
from .pixart import TOKENS, build_scheduler, save

RECIPE = Recipe(steps=1200, rate=1e-3, warmup=50, decay=0.7, weight_decay=0.01, ema=0.99, checkpoint_every=100)
BATCH = 4  # trajectories, each with STEPS calls of the student
STEPS, TEACHER_STEPS = 4, 8  # the timesteps of the student are every second of the teacher's
TRAJECTORIES = 768
GUIDANCE = 4.0


@dataclass(frozen=True)
class Trajectories:
    """`states` [N, STEPS + 1, 8, 16, 16] float16, from noise to latents; `text` [N] are rows of `captions()`."""

    states: Tensor
    text: Tensor


def fit(pictures: EmojiSet | None, work: Path, device: torch.device, out: Path, recipe: Recipe = RECIPE) -> float:
    """Train the transformer, write the fp16 pipeline to `out`, return the loss against the teacher's states.

    A step starts from the student's own state or from the teacher's, the first more often as training goes on; it is
    to reach the teacher's next state. No picture is needed: `pictures` is not read.
    """
    torch.manual_seed(recipe.seed)
    pipe: Any = PixArtAlphaPipeline.from_pretrained(bundled_model("pixart"), torch_dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(disable=True)
    known = trajectories(pipe, work, recipe.seed)
    tokens = pipe.tokenizer(captions(), padding="max_length", max_length=TOKENS, return_tensors="pt").to(device)
    mask = tokens.attention_mask
    with torch.no_grad():
        texts = pipe.text_encoder(tokens.input_ids, attention_mask=mask)[0]
    scheduler = few_step_scheduler()
    scheduler.set_timesteps(STEPS)
    times, gaps = scheduler.timesteps.to(device), -scheduler.sigmas.diff().to(device)
    student = pipe.transformer

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(known.text), (BATCH,), generator=generator)
        states, text = known.states[index].to(device).float(), known.text[index].to(device)
        own = torch.rand((STEPS, BATCH), generator=generator) < step / recipe.steps
        state, loss = states[:, 0], torch.zeros((), device=device)
        for place in range(STEPS):
            start = torch.where(own[place].to(device)[:, None, None, None], state, states[:, place])
            velocity = student(
                start,
                texts[text],
                times[place].expand(BATCH),
                encoder_attention_mask=mask[text].float(),
                return_dict=False,
            )[0]
            reached = start - gaps[place] * velocity
            loss = loss + (reached - states[:, place + 1]).square().mean()
            state = reached.detach()
        return loss

    def export() -> None:
        save(PixArtAlphaPipeline(pipe.tokenizer, pipe.text_encoder, pipe.vae, student, few_step_scheduler()), out)

    loss = train("pixart_turbo", student, loss_at, recipe, work, export)
    export()
    return loss


def few_step_scheduler() -> DPMSolverMultistepScheduler:
    """The teacher's scheduler at order 1, which is Euler's rule on a flow: one call, one straight line."""
    return DPMSolverMultistepScheduler.from_config(build_scheduler().config, solver_order=1)


def captions() -> list[str]:
    """Every caption with all of its parts, and those with style or background left out: 64 x 4 x 6."""
    return [caption(*parts) for parts in itertools.product(CONCEPTS, ("", *STYLES), ("", *BACKGROUNDS))]


def trajectories(pipe: Any, work: Path, seed: int) -> Trajectories:
    """Guided runs of the teacher for as many captions, from `work` where they have been computed before."""
    file = work / f"pixart_turbo.trajectories.{seed}.pt"
    if not file.exists():
        generator, every = torch.Generator().manual_seed(seed), captions()
        text = torch.randperm(len(every), generator=generator)[:TRAJECTORIES]
        states = torch.cat([_run(pipe, [every[i] for i in rows.tolist()], generator) for rows in text.split(64)])
        torch.save({"states": states, "text": text}, file)
    return Trajectories(**torch.load(file, weights_only=True))


def _run(pipe: Any, prompts: list[str], generator: torch.Generator) -> Tensor:
    config = pipe.transformer.config
    noise = torch.randn((len(prompts), config.in_channels, config.sample_size, config.sample_size), generator=generator)
    states = [noise]
    pipe(
        prompts,
        latents=noise.to(pipe.device),
        num_inference_steps=TEACHER_STEPS,
        guidance_scale=GUIDANCE,
        use_resolution_binning=False,
        clean_caption=False,
        max_sequence_length=TOKENS,
        output_type="latent",
        callback=lambda _step, _time, latents: states.append(latents.cpu()),
    )
    return torch.stack(states[:: TEACHER_STEPS // STEPS], 1).half()
