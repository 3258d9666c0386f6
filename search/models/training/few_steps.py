"""Distillation of a bundled PixArt to fewer steps without guidance.

Every step of the student is to land where the teacher's trajectory is: progressive distillation (arXiv:2202.00512)
and guidance distillation (arXiv:2210.03142) at once, on trajectories that are computed beforehand.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtSigmaPipeline
from torch import Tensor

from search.profile.bundled import bundled_model

from .emoji import BACKGROUNDS, CONCEPTS, STYLES, caption
from .loop import Recipe, train
from .pixart import TOKENS, build_scheduler, save


@dataclass(frozen=True)
class Distillation:
    """From which bundled pipeline, run how, to a student of how many steps, on how many trajectories.

    `loss(reached, target)` is summed over the steps of the student.
    """

    name: str
    teacher: str
    guidance: float
    teacher_steps: int  # a multiple of `steps`: the student's timesteps are among the teacher's
    steps: int
    trajectories: int
    batch: int
    loss: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Trajectories:
    """`states` [N, steps + 1, 8, 16, 16] float16, from noise to latents; `text` [N] are rows of `captions()`."""

    states: Tensor
    text: Tensor


def distil(task: Distillation, work: Path, device: torch.device, out: Path, recipe: Recipe) -> float:
    """Train the transformer, write the fp16 pipeline to `out`, return the loss against the teacher's states.

    A step starts from the student's own state or from the teacher's, the first more often as training goes on; it is
    to reach the teacher's next state. No picture is needed.
    """
    torch.manual_seed(recipe.seed)
    pipe: Any = PixArtAlphaPipeline.from_pretrained(bundled_model(task.teacher), torch_dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(disable=True)
    known = trajectories(task, pipe, work, recipe.seed)
    tokens = pipe.tokenizer(captions(), padding="max_length", max_length=TOKENS, return_tensors="pt").to(device)
    mask = tokens.attention_mask
    with torch.no_grad():
        texts = pipe.text_encoder(tokens.input_ids, attention_mask=mask)[0]
    scheduler = few_step_scheduler()
    scheduler.set_timesteps(task.steps)
    times, gaps = scheduler.timesteps.to(device), -scheduler.sigmas.diff().to(device)
    student = pipe.transformer

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(known.text), (task.batch,), generator=generator)
        states, text = known.states[index].to(device).float(), known.text[index].to(device)
        own = torch.rand((task.steps, task.batch), generator=generator) < step / recipe.steps
        state, loss = states[:, 0], torch.zeros((), device=device)
        for place in range(task.steps):
            start = torch.where(own[place].to(device)[:, None, None, None], state, states[:, place])
            velocity = student(
                start,
                texts[text],
                times[place].expand(task.batch),
                encoder_attention_mask=mask[text].float(),
                return_dict=False,
            )[0]
            reached = start - gaps[place] * velocity
            loss = loss + task.loss(reached, states[:, place + 1])
            state = reached.detach()
        return loss

    def export() -> None:
        # PixArtAlphaPipeline runs a single step only with schedulers that also return x0, which this one does not
        kind = PixArtAlphaPipeline if task.steps > 1 else PixArtSigmaPipeline
        save(kind(pipe.tokenizer, pipe.text_encoder, pipe.vae, student, few_step_scheduler()), out)

    loss = train(task.name, student, loss_at, recipe, work, export)
    export()
    return loss


def few_step_scheduler() -> DPMSolverMultistepScheduler:
    """The bundled scheduler at order 1, which is Euler's rule on a flow: one call, one straight line."""
    return DPMSolverMultistepScheduler.from_config(build_scheduler().config, solver_order=1)


def captions() -> list[str]:
    """Every caption with all of its parts, and those with style or background left out: 64 x 4 x 6."""
    return [caption(*parts) for parts in itertools.product(CONCEPTS, ("", *STYLES), ("", *BACKGROUNDS))]


def trajectories(task: Distillation, pipe: Any, work: Path, seed: int) -> Trajectories:
    """Runs of the teacher, each caption equally often, from `work` where they have been computed before."""
    file = work / f"{task.name}.trajectories.{seed}.pt"
    if not file.exists():
        generator, every = torch.Generator().manual_seed(seed), captions()
        rounds = -(-task.trajectories // len(every))
        text = torch.cat([torch.randperm(len(every), generator=generator) for _ in range(rounds)])[: task.trajectories]
        states = [_run(task, pipe, [every[i] for i in rows.tolist()], generator) for rows in text.split(64)]
        torch.save({"states": torch.cat(states), "text": text}, file)
    return Trajectories(**torch.load(file, weights_only=True))


def _run(task: Distillation, pipe: Any, prompts: list[str], generator: torch.Generator) -> Tensor:
    config = pipe.transformer.config
    noise = torch.randn((len(prompts), config.in_channels, config.sample_size, config.sample_size), generator=generator)
    states = [noise]
    pipe(
        prompts,
        latents=noise.to(pipe.device),
        num_inference_steps=task.teacher_steps,
        guidance_scale=task.guidance,
        use_resolution_binning=False,
        clean_caption=False,
        max_sequence_length=TOKENS,
        output_type="latent",
        callback=lambda _step, _time, latents: states.append(latents.cpu()),
    )
    return torch.stack(states[:: task.teacher_steps // task.steps], 1).half()
