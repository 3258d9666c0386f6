"""Training targets from the bundled PixArt, for the other bundled denoisers.

Its velocity at (x_s, s, caption) approximates the mean of the targets of flow matching, so a student that is trained on
it needs far fewer steps than one that is trained on the pictures; it can hardly become better than its teacher.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import PixArtAlphaPipeline
from torch import Tensor

from search.profile.bundled import bundled_model

from . import vae as autoencoder
from .emoji import CONCEPTS, EmojiSet
from .pixart import SHOWN, TOKENS, shown_captions


@dataclass(frozen=True)
class Batch:
    """`clean` and `noise` [B, 8, 16, 16], `sigma` [B] in (0, 1), rows [B] of captions and concepts [B].

    Concept 1000 is no caption at all.
    """

    clean: Tensor
    noise: Tensor
    sigma: Tensor
    text: Tensor
    concept: Tensor

    @property
    def noisy(self) -> Tensor:
        """x_s = (1 - s) x_0 + s n."""
        s = self.sigma[:, None, None, None]
        return (1 - s) * self.clean + s * self.noise


class Teacher:
    """The bundled pipeline, its captioned latents, and its velocity."""

    def __init__(self, pictures: EmojiSet, device: torch.device, path: Path | None = None) -> None:
        self.device = device
        folder = path or bundled_model("pixart")
        self.pipe: Any = PixArtAlphaPipeline.from_pretrained(folder, torch_dtype=torch.float32).to(device)
        self.pipe.transformer.requires_grad_(False).eval()
        with torch.no_grad():
            images, grounds = autoencoder.pictures_on_backgrounds(pictures)
            latents = autoencoder.encode(self.pipe.vae, images, grounds, device)
            self.latents = latents.to(device) * self.pipe.vae.config.scaling_factor
            captions = shown_captions(pictures, grounds)
            self.captions = sorted({text for texts in captions.values() for text in texts})
            row = {text: i for i, text in enumerate(self.captions)}
            self.rows = torch.tensor([[row[text] for text in captions[shown]] for shown in SHOWN])
            self.tokens = self.pipe.tokenizer(
                self.captions, padding="max_length", max_length=TOKENS, return_tensors="pt"
            ).to(device)
            self.mask = self.tokens.attention_mask
            self.states = self.pipe.text_encoder(self.tokens.input_ids, attention_mask=self.mask)[0]
        concepts = [CONCEPTS.index(name) for name in pictures.name]
        self.concepts = torch.tensor(concepts).repeat(len(self.latents) // len(concepts))
        self.empty = row[""]

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        """Pictures, captions with parts left out as in SHOWN, and s: logit-normal(0.3, 1) with 15 % uniform."""
        index = torch.randint(len(self.latents), (size,), generator=generator)
        chances = torch.tensor(list(SHOWN.values()))
        shown = torch.multinomial(chances, size, replacement=True, generator=generator)
        sigma = torch.sigmoid(torch.randn(size, generator=generator) + 0.3)
        uniform = torch.rand(size, generator=generator)
        sigma = torch.where(torch.rand(size, generator=generator) < 0.15, uniform, sigma).clamp(1e-3, 0.999)
        noise = torch.randn((size, *self.latents.shape[1:]), generator=generator)
        text = self.rows[shown, index]
        concept = torch.where(text == self.empty, 1000, self.concepts[index])
        parts = (self.latents[index.to(self.device)], noise, sigma, text, concept)
        return Batch(*(part.to(self.device) for part in parts))

    @torch.no_grad()
    def velocity(self, batch: Batch, scale: Tensor | None = None) -> Tensor:
        """The velocity n - x_0 [B, 8, 16, 16] that the teacher predicts; with `scale` [B] it is guided."""
        conditional = self._call(batch, batch.text)
        if scale is None:
            return conditional
        without = self._call(batch, torch.full_like(batch.text, self.empty))
        return without + scale[:, None, None, None] * (conditional - without)

    def _call(self, batch: Batch, text: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            out = self.pipe.transformer(
                batch.noisy,
                self.states[text],
                batch.sigma * 1000,
                encoder_attention_mask=self.mask[text].float(),
                return_dict=False,
            )[0]
        return out.float()
