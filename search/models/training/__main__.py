"""python -m search.models.training --out FOLDER: train the bundled pixart pipeline from nothing.

Stops and resumes at any time (checkpoints in --work); the same seed and device give the same weights.
"""

import argparse
import dataclasses
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from . import emoji, pixart, vae


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m search.models.training", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/training/pixart"), help="the pipeline goes here")
    parser.add_argument("--work", type=Path, default=Path("runs/training/work"), help="data and checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=pixart.RECIPE.steps, help="of the transformer")
    parser.add_argument("--vae-steps", type=int, default=vae.RECIPE.steps)
    given = parser.parse_args()

    device = torch.device(given.device)
    given.work.mkdir(parents=True, exist_ok=True)
    pictures = emoji.load(given.work)
    trained = given.work / "vae"
    if trained.exists():
        autoencoder = AutoencoderKL.from_pretrained(trained).to(device).eval()
    else:
        recipe = dataclasses.replace(vae.RECIPE, steps=given.vae_steps, seed=given.seed)
        autoencoder = vae.fit(pictures, given.work, device, recipe)
        autoencoder.save_pretrained(trained)
    images, _ = vae.everything(pictures)
    print(f"vae reconstructs at {vae.psnr(autoencoder, images, device):.1f} dB")
    recipe = dataclasses.replace(pixart.RECIPE, steps=given.steps, seed=given.seed)
    loss = pixart.fit(pictures, autoencoder, given.work, device, given.out, recipe)
    print(f"pixart loss {loss:.4f}; the pipeline is in {given.out}")


if __name__ == "__main__":
    main()
