"""python benchmarks/model_card.py FOLDER: measure a trained pipeline and write its model card.

The card shows what the model draws (a grid of 40 prompts), and how much schedules matter on it: PSNR of 20
random plans at half of the compute against all of it.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from search.config import read_prompts
from search.models.pixart import PixArt
from search.objectives.psnr import Psnr
from search.schedule import Schedule

PROMPTS = "emoji_held_out.txt"
PLANS = 20

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# A small PixArt that draws emoji

A `diffusers.PixArtAlphaPipeline` of {millions:.1f} M parameters (transformer {transformer:.2f} M: {blocks} blocks of
width {width}; autoencoder {vae:.2f} M: 64x64 pictures to 16x16 latents of 8 channels; T5 text encoder {text:.2f} M),
trained from nothing so that schedules can be searched on a real text-to-image model without a GPU and without a
download. It is a test object: good at 64 emoji in three styles on five backgrounds, and at nothing else.

```python
from diffusers import PixArtAlphaPipeline
pipe = PixArtAlphaPipeline.from_pretrained("search/models/bundled/pixart")
pipe("red apple, 3d style, pink background", guidance_scale=4.0, use_resolution_binning=False,
     clean_caption=False, max_sequence_length=16).images[0]
```

![40 held-out prompts, seeds 0 to 39](grid.png)

The prompts of the grid, row by row: {prompts}.

## Words

`<name>, <style>, <background>`; style and background may be left out and then vary with the seed. A word that is
not among these falls apart into letters that were never trained. Names: {names}. Styles: {styles}. Backgrounds:
{backgrounds} (`pink background`).

## Data

Drawings of Noto Emoji (Apache-2.0), Fluent Emoji flat and 3D (MIT), fetched from npm as {packages}; 192 drawings,
64x64 pixels, on five backgrounds: 960 captioned pictures. No picture is stored in the repository. Licence of
the weights: Apache-2.0; the notices of the art are in NOTICE.

## Training

`python -m search.models.training --steps {steps}`: autoencoder 6000 steps (L1 + L2 + gradient loss, 32-pixel crops,
then whole pictures; reconstruction {reconstruction:.1f} dB), then transformer and text encoder together {steps} steps
of 64 by flow matching, AdamW 1.5e-3, EMA 0.998, 10 % of the captions dropped, last running loss {loss}. Seed 0, two CPU
cores, bfloat16 autocast. Weights are stored in float16.

## How much schedules matter

PSNR in dB against the full computation, 8 calibration prompts, 20 steps, guidance 4, paired noise; {plans} random
plans each, at about half of the compute:

| plans | worst | mean | best |
|---|---|---|---|
{rows}

## Limits

One training run, one seed. Pictures are recognisable, small and imperfect. The data are few and the model has seen
each of them often, so it says nothing about generalisation.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--loss", required=True)
    parser.add_argument("--reconstruction", type=float, required=True, help="dB, as the training printed it")
    given = parser.parse_args()
    from search.models.training.emoji import BACKGROUNDS, CONCEPTS, PACKAGES, STYLES

    model = PixArt(path=given.folder)
    prompts = read_prompts(PROMPTS)[:40]
    grid(model, prompts).save(given.folder / "grid.png")
    rows = [
        f"| {name} | {min(values):.1f} | {np.mean(values):.1f} | {max(values):.1f} |"
        for name, values in spread(model).items()
    ]

    def count(part: torch.nn.Module) -> float:
        return sum(p.numel() for p in part.parameters()) / 1e6

    parts = {name: count(getattr(model.pipe, name)) for name in ("transformer", "vae", "text_encoder")}
    card = CARD.format(
        millions=sum(parts.values()),
        transformer=parts["transformer"],
        vae=parts["vae"],
        text=parts["text_encoder"],
        blocks=len(model.denoiser.transformer_blocks),
        width=model.denoiser.inner_dim,
        prompts="; ".join(prompts),
        names=", ".join(c.replace("-", " ") for c in CONCEPTS),
        styles=", ".join(STYLES.values()),
        backgrounds=", ".join(BACKGROUNDS),
        packages=", ".join(f"`{p}`" for p in PACKAGES.values()),
        steps=given.steps,
        loss=given.loss,
        reconstruction=given.reconstruction,
        plans=PLANS,
        rows="\n".join(rows),
    )
    (given.folder / "README.md").write_text(card, encoding="utf-8")


def grid(model: PixArt, prompts: list[str], columns: int = 10) -> Image.Image:
    """Pictures of the prompts, seeds 0, 1, ..."""
    parts = [
        model.decode(model.sample(model.encode(prompts[i : i + 8]), model.noise(range(i, min(i + 8, len(prompts))))))
        for i in range(0, len(prompts), 8)
    ]
    images = torch.cat(parts)
    rows = [torch.cat(list(images[i : i + columns]), 2) for i in range(0, len(images), columns)]
    pixels = (torch.cat(rows, 1).permute(1, 2, 0) * 255).round().byte().numpy()
    return Image.fromarray(pixels).resize((2 * pixels.shape[1], 2 * pixels.shape[0]), Image.Resampling.BICUBIC)


def spread(model: PixArt) -> dict[str, list[float]]:
    """PSNR of random plans of whole steps, and of single components, by kind of plan."""
    prompts = read_prompts("emoji_calibration.txt")[:8]
    conditions, noise = model.encode(prompts), model.noise(range(8))
    teacher = model.decode(model.sample(conditions, noise))

    def psnr(rules: list[list[str]]) -> float:
        schedule = Schedule.from_dict(model.target.schedule({"plan": {"rules": rules}}))
        with schedule.apply(model.pipe):
            return float(Psnr()(model.decode(model.sample(conditions, noise)), teacher).mean())

    return {
        "whole steps reused": [psnr(rules) for rules in _step_plans(model)],
        "single components reused": [psnr(rules) for rules in _component_plans(model)],
    }


def _step_plans(model: PixArt) -> Iterator[list[list[str]]]:
    rng = np.random.default_rng(0)
    for _ in range(PLANS):
        reused = set((1 + rng.permutation(model.steps - 1)[: model.steps // 2]).tolist())
        yield [["transformer_blocks.*:*", "".join("R" if t in reused else "C" for t in range(model.steps))]]


def _component_plans(model: PixArt) -> Iterator[list[list[str]]]:
    rng = np.random.default_rng(0)
    names = [node.name for node in model.target.tree if node.kind == "component"]
    for _ in range(PLANS):
        plan = np.where(rng.random((len(names), model.steps)) < 0.5 * model.steps / (model.steps - 1), "R", "C")
        plan[:, 0] = "C"
        yield [[name, "".join(row)] for name, row in zip(names, plan, strict=True)]


if __name__ == "__main__":
    main()
