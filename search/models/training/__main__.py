"""python -m search.models.training --model NAME --out FOLDER: train a bundled network.

`pixart`, `policy` and `clip` are trained from scratch, `pixart_one` from the bundled pixart_turbo, the others from the
bundled pixart. Every run stops and resumes
at any time (checkpoints in --work); the same seed and device give the same weights.
"""

import argparse
import dataclasses
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from . import clip, dit, emoji, flux, pixart, pixart_one, pixart_small, pixart_turbo, policy, sd, vae
from .emoji import EmojiSet

STUDENTS = {
    "sd": sd,
    "flux": flux,
    "dit": dit,
    "pixart_small": pixart_small,
    "pixart_turbo": pixart_turbo,
    "pixart_one": pixart_one,
    "clip": clip,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m search.models.training", description=__doc__)
    parser.add_argument("--model", choices=["pixart", "policy", *STUDENTS], default="pixart")
    parser.add_argument("--out", type=Path, help="the pipeline goes here; runs/training/NAME unless given")
    parser.add_argument("--work", type=Path, default=Path("runs/training/work"), help="data and checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="of the denoiser; its recipe's unless given")
    parser.add_argument("--vae-steps", type=int, default=vae.RECIPE.steps, help="of pixart's autoencoder")
    given = parser.parse_args()

    device, out = torch.device(given.device), given.out or Path("runs/training") / given.model
    given.work.mkdir(parents=True, exist_ok=True)
    if given.model == "policy":
        recipe = dataclasses.replace(policy.RECIPE, seed=given.seed, steps=given.steps or policy.RECIPE.steps)
        print(f"policy loss {policy.fit(given.work, out, recipe):.4f}; the pipeline is in {out}")
        return
    pictures = emoji.load(given.work)
    network = STUDENTS.get(given.model, pixart)
    recipe = dataclasses.replace(network.RECIPE, seed=given.seed, steps=given.steps or network.RECIPE.steps)
    if given.model == "pixart":
        autoencoder = _autoencoder(pictures, given.work, device, given.vae_steps, given.seed)
        loss = pixart.fit(pictures, autoencoder, given.work, device, out, recipe)
    else:
        loss = network.fit(pictures, given.work, device, out, recipe)
    print(f"{given.model} loss {loss:.4f}; the pipeline is in {out}")


def _autoencoder(pictures: EmojiSet, work: Path, device: torch.device, steps: int, seed: int) -> AutoencoderKL:
    trained = work / "vae"
    if trained.exists():
        autoencoder = AutoencoderKL.from_pretrained(trained).to(device).eval()
    else:
        autoencoder = vae.fit(pictures, work, device, dataclasses.replace(vae.RECIPE, steps=steps, seed=seed))
        autoencoder.save_pretrained(trained)
    images, _ = vae.pictures_on_backgrounds(pictures)
    print(f"vae reconstructs at {vae.psnr(autoencoder, images, device):.1f} dB")
    return autoencoder


if __name__ == "__main__":
    main()
