"""python -m benchmarks.model_card NAME --steps N --loss X: measure a bundled pipeline and write its model card.

The card shows what the model draws (a grid of 40 prompts), and how much schedules matter on it: PSNR of 20
random plans at half of the compute against all of it.
"""

import argparse
import importlib
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from PIL import Image

from search.config.compose import compose_config, normalise_overrides
from search.config.prompts import read_prompts
from search.config.settings import Config
from search.models.base import Model
from search.objectives.drift import Drift
from search.objectives.psnr import Psnr
from search.schedule import Schedule

BUNDLED = Path(__file__).parent.parent / "search" / "models" / "bundled"
PLANS = 20

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: {tag}
---

# {title}

A `diffusers.{pipeline}` of {millions:.1f} M parameters ({parts}), trained so that schedules can be searched on a real
pipeline without a GPU and without a download. It is a test object: good at 64 emoji, and at nothing else.

```python
{code}
```

![40 pictures, seeds 0 to 39](grid.png)

{about_grid}

## Words

{words}

## Data

Drawings of Noto Emoji (Apache-2.0), Fluent Emoji flat and 3D (MIT), fetched from npm as {packages}; 192 drawings,
64x64 pixels, on five backgrounds: 960 captioned pictures. No picture is stored in the repository. Licence of
the weights: Apache-2.0; the notices of the art are in NOTICE.

## Training

{training} Seed 0, CPU, {precision}. Weights are stored in float16.

## How much schedules matter

PSNR in dB against the full computation, 8 calibration prompts, {steps}, {guidance}, paired noise; {plans}:

| plans | worst | mean | best |
|---|---|---|---|
{rows}
{more}
## Limits

One training run, one seed. Pictures are recognisable, small and imperfect. The data are few and the model has seen
each of them often, so it says nothing about generalisation.{limits}
"""

NEARNESS = """
## How near it is to the model that it was distilled from

PSNR in dB against {teacher}, on the {prompts} prompts of the grid with the same noise:

| run | PSNR, mean | worst |
|---|---|---|
{table}

In bfloat16 its latents drift by {drift:.4f} from those in float32 (mean of the relative distance).
"""

FEW_STEPS = ("pixart_turbo", "pixart_one")
TITLES = {
    "pixart": "A small PixArt that draws emoji",
    "pixart_small": "A smaller PixArt that draws emoji",
    "pixart_turbo": "A PixArt that draws emoji in four steps",
    "pixart_one": "A PixArt that draws emoji in one step",
    "dit": "A small DiT that draws emoji",
    "sd": "A small Stable Diffusion that draws emoji",
    "flux": "A small Flux that draws emoji",
}
CODE = {
    "pixart": """from diffusers import {pipeline}

pipe = {pipeline}.from_pretrained("search/models/bundled/{name}")
pipe(
    "red apple, 3d style, pink background",
    guidance_scale={guidance:.1f},
    num_inference_steps={steps},
    use_resolution_binning=False,
    clean_caption=False,
    max_sequence_length=16,
).images[0]""",
    "dit": """from diffusers import DiTPipeline

pipe = DiTPipeline.from_pretrained("search/models/bundled/dit")
pipe(pipe.get_label_ids(["red apple"]), guidance_scale=4.0, num_inference_steps=20).images[0]""",
    "sd": """from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("search/models/bundled/sd")
pipe("red apple, 3d style, pink background", guidance_scale=4.0, num_inference_steps=20).images[0]""",
    "flux": """from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained("search/models/bundled/flux")
pipe(
    "red apple, 3d style, pink background",
    guidance_scale=3.5,
    num_inference_steps=20,
    max_sequence_length=16,
    height=64,
    width=64,
).images[0]""",
}
DISTILLED = (
    "`python -m search.models.training --model {name} --steps {count}`: the autoencoder and the vocabulary are those "
    "of the bundled pixart. {how} {count} steps of {batch}, AdamW {rate:g}, EMA {ema}, last running loss {loss} "
    "({measure}).{note}"
)
MEASURES = {
    "pixart_turbo": "sum over the four steps of the mean square distance to the teacher's states",
    "pixart_one": "mean distance to the teacher's latents",
}
HOW = {
    "pixart": "",
    "pixart_small": "It starts as blocks 0, 4 and 7 of the bundled pixart, whose velocity on noised pictures is its "
    "target; the text encoder is the same.",
    "pixart_turbo": "It starts as the bundled pixart and learns where pixart's runs lead that are guided with scale 4 "
    "and take 8 steps, one for each of 768 captions: each of the four steps is to land where every second one of the "
    "teacher's does, from the teacher's state or, more and more often, from its own. The text encoder is the same.",
    "pixart_one": "It starts as the bundled pixart_turbo and learns where runs of its four steps lead from 6144 "
    "noises, each of 1536 captions four times: its only call is to land there from the noise. The text encoder is the "
    "same.",
    "dit": "It starts as the bundled pixart without cross-attention; the target is pixart's velocity for the whole "
    "caption, of which it sees the emoji's name as a class.",
    "sd": "The UNet starts from nothing; its target is the bundled pixart's velocity, turned into v at the noise "
    "levels of Stable Diffusion; the text encoder is pixart's T5.",
    "flux": "The transformer and the pooled CLIP encoder start from nothing, T5 from pixart's. The target is the "
    "bundled pixart's velocity under classifier-free guidance of a scale between 1 and 6, which the model gets as "
    "its guidance embedding: it is guidance-distilled, as FLUX.1-dev is.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(TITLES))
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--loss", required=True)
    parser.add_argument("--reconstruction", type=float, default=38.5, help="dB of the autoencoder, as training said")
    parser.add_argument("--note", default="", help="a sentence about this training run")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    config = Config.check(compose_config(normalise_overrides([f"model={given.name}"])))
    model, folder = instantiate(dict(config.model) | {"device": "cpu"}), BUNDLED / given.name
    prompts = read_prompts(config.prompts.calibration) + read_prompts(config.prompts.held_out)
    prompts = (prompts * 40)[:40] if given.name == "dit" else read_prompts(config.prompts.held_out)[:40]
    grid(model, prompts).save(folder / "grid.png")
    calibration = read_prompts(config.prompts.calibration)[:8]
    rows = [
        f"| {name} | {min(values):.1f} | {np.mean(values):.1f} | {max(values):.1f} |"
        for name, values in spread(model, calibration).items()
    ]
    more = nearness(model, prompts) if given.name in FEW_STEPS else ""
    (folder / "README.md").write_text(card(given, model, prompts, rows, more), encoding="utf-8")


def nearness(model: Model, prompts: list[str]) -> str:
    """How near a distilled model is to its teacher, beside the teacher with as few steps, and to itself in bfloat16."""
    seeds, steps = range(len(prompts)), model.target.steps

    def run(name: str, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
        config = compose_config(normalise_overrides([f"model={name}", *(f"model.{k}={v}" for k, v in options.items())]))
        other = instantiate(dict(config["model"]) | {"device": "cpu"})
        latents = other.sample(prompts, seeds)
        return latents, other.decode(latents)

    calls = f"{_counted(steps, 'step')}, {_counted(steps, 'call')}"
    latents, pictures = run(model.name)
    coarse, _ = run(model.name, dtype="bfloat16")
    rows = {f"{model.name}, {calls}": pictures}
    if steps == 1:
        (_, teacher), against = run("pixart_turbo"), "pixart_turbo with its four steps"
        rows[f"pixart_turbo, {calls}"] = run("pixart_turbo", steps=1)[1]
    else:
        (_, teacher), against = run("pixart"), "pixart with 20 steps and guidance 4, which is 40 calls of the denoiser"
        rows[f"pixart, {steps} steps, guidance 4, {2 * steps} calls"] = run("pixart", steps=steps)[1]
        rows[f"pixart without guidance, {calls}"] = run("pixart", steps=steps, guidance_scale=1.0)[1]
    scores = {name: Psnr()(drawn, teacher) for name, drawn in rows.items()}
    table = "\n".join(f"| {name} | {psnr.mean():.1f} | {psnr.min():.1f} |" for name, psnr in scores.items())
    drift = float(Drift()(coarse.float(), latents).mean())
    return NEARNESS.format(teacher=against, prompts=len(prompts), table=table, drift=drift)


def card(given: argparse.Namespace, model: Model, prompts: list[str], rows: list[str], more: str) -> str:
    from search.models.training.emoji import BACKGROUNDS, CONCEPTS, PACKAGES, STYLES

    parts = {
        name: sum(p.numel() for p in part.parameters()) / 1e6
        for name, part in model.pipe.components.items()
        if isinstance(part, torch.nn.Module)
    }
    names = ", ".join(c.replace("-", " ") for c in CONCEPTS)
    words = "`<name>, <style>, <background>`; style and background may be left out and then vary with the seed. A word "
    words += "that is not among these falls apart into letters that were never trained. Names: "
    words += (
        f"{names}. Styles: {', '.join(STYLES.values())}. Backgrounds: {', '.join(BACKGROUNDS)} (`pink background`)."
    )
    if given.name == "dit":
        words = f"Classes, numbered from 0 (no class is 1000); style and background vary with the seed: {names}."
    trained = importlib.import_module(f"search.models.training.{given.name}")
    training = DISTILLED.format(
        name=given.name, count=given.steps, how=HOW[given.name], batch=trained.BATCH, loss=given.loss,
        measure=MEASURES.get(given.name, "mean square against the teacher's prediction"),
        rate=trained.RECIPE.rate, ema=trained.RECIPE.ema, note=f" {given.note}" if given.note else "",
    )  # fmt: skip
    if given.name == "pixart":
        training = (
            f"`python -m search.models.training --steps {given.steps}`: autoencoder 6000 steps (L1 + L2 + gradient "
            f"loss, 32-pixel crops, then whole pictures; reconstruction {given.reconstruction:.1f} dB), then "
            f"transformer and text encoder together {given.steps} steps of 64 by flow matching, AdamW 1.5e-3, EMA "
            f"0.998, 10 % of the captions dropped, last running loss {given.loss}."
        )
    text = CARD.format(
        tag="text-to-image" if given.name != "dit" else "unconditional-image-generation",
        title=TITLES[given.name],
        pipeline=type(model.pipe).__name__,
        millions=sum(parts.values()),
        parts=", ".join(f"{name} {millions:.2f} M" for name, millions in parts.items()),
        code=CODE.get(given.name, CODE["pixart"]).format(
            name=given.name,
            pipeline=type(model.pipe).__name__,
            steps=model.target.steps,
            guidance=model.arguments["guidance_scale"],
        ),
        about_grid=_wrapped(
            f"The {'classes' if given.name == 'dit' else 'prompts'}, row by row: {'; '.join(prompts)}."
        ),
        words=_wrapped(words),
        packages=", ".join(f"`{p}`" for p in PACKAGES.values()),
        training=_wrapped(training),
        precision="float32" if given.name in FEW_STEPS else "bfloat16 autocast",
        steps=_counted(model.target.steps, "step"),
        guidance=f"guidance {model.arguments['guidance_scale']:g}",
        plans=f"{PLANS} random plans\neach, at about half of the compute"
        if model.target.steps > 1
        else "every such plan",
        rows="\n".join(rows),
        more=more,
        limits="" if given.name == "pixart" else " What the bundled pixart draws is its ceiling.",
    )
    return text


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count > 1)}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def grid(model: Model, prompts: list[str], columns: int = 10) -> Image.Image:
    """Pictures of the prompts, seeds 0, 1, ..."""
    parts = [
        model.decode(model.sample(prompts[i : i + 8], range(i, min(i + 8, len(prompts)))))
        for i in range(0, len(prompts), 8)
    ]
    images = torch.cat(parts)
    rows = [torch.cat(list(images[i : i + columns]), 2) for i in range(0, len(images), columns)]
    pixels = (torch.cat(rows, 1).permute(1, 2, 0) * 255).round().byte().numpy()
    return Image.fromarray(pixels).resize((2 * pixels.shape[1], 2 * pixels.shape[0]), Image.Resampling.BICUBIC)


def spread(model: Model, prompts: list[str]) -> dict[str, list[float]]:
    """PSNR of random plans, by kind: of whole steps, and of single components; of one step, of each single skip."""
    seeds = range(len(prompts))
    teacher = model.decode(model.sample(prompts, seeds))

    def psnr(rules: list[list[str]]) -> float:
        schedule = Schedule.from_dict(model.target.schedule({"plan": {"rules": rules}}))
        with schedule.apply(model.pipe):
            latents = model.sample(prompts, seeds)
        return float(Psnr()(model.decode(latents), teacher).mean())

    if model.target.steps == 1:
        names = [node.name for node in model.target.tree if node.kind == "block"]
        parts = [node.name for node in model.target.tree if node.kind == "component" and not node.nested]
        return {
            "one block skipped": [psnr([[name, "S"]]) for name in names],
            "one component skipped": [psnr([[name, "S"]]) for name in parts],
        }
    return {
        "whole steps reused": [psnr(rules) for rules in _step_plans(model)],
        "single components reused": [psnr(rules) for rules in _component_plans(model)],
    }


def _step_plans(model: Model) -> Iterator[list[list[str]]]:
    rng, steps, tree = np.random.default_rng(0), model.target.steps, model.target.tree
    for _ in range(PLANS):
        reused = set((1 + rng.permutation(steps - 1)[: steps // 2]).tolist())
        actions = "".join("R" if t in reused else "C" for t in range(steps))
        yield [[f"{stack}.*:*", actions] for stack in tree.stacks if tree.components(stack)]


def _component_plans(model: Model) -> Iterator[list[list[str]]]:
    rng, steps = np.random.default_rng(0), model.target.steps
    names = [node.name for node in model.target.tree if node.kind == "component" and not node.nested]
    for _ in range(PLANS):
        plan = np.where(rng.random((len(names), steps)) < 0.5 * steps / (steps - 1), "R", "C")
        plan[:, 0] = "C"
        yield [[name, "".join(row)] for name, row in zip(names, plan, strict=True)]


if __name__ == "__main__":
    main()
