"""A PixArt denoising loop that calls the model's parts one by one, without any hook."""

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from search.schedule.model.nodes import ROOT
from tests.helpers import pipelines


def polynomial(values: list[tuple[float, Tensor]], at: float) -> Tensor:
    """Lagrange's form, written out: another road to the same polynomial."""
    total = torch.zeros_like(values[0][1])
    for j, (x, value) in enumerate(values):
        total += value * math.prod((at - y) / (x - y) for i, (y, _) in enumerate(values) if i != j)
    return total


class ByHand:
    """A PixArt denoising loop that calls the model's parts one by one, without any hook."""

    def __init__(self, pipe, tokens: Mapping[str, tuple[str, ...]], axis: str) -> None:
        self.pipe, self.model, self.tokens, self.axis = pipe, pipe.transformer, tokens, axis
        self.embeddings: dict[str, Tensor] | None = None
        self.kept: dict[str, list[tuple[int, Tensor]]] = {}
        self.ran: list[tuple[int, str]] = []

    def act(self, name: str, compute: Callable[[], Tensor], skip: Tensor | None = None) -> Tensor:
        token = self.tokens[name][self.step]
        if token == "C":
            self.ran.append((self.step, name))
            value = compute()
            self.kept.setdefault(name, []).append((self.step, value))
            return value
        if token == "S":
            return skip
        if token == "R":
            return self.kept[name][-1][1]
        history = [(self.places[s], v) for s, v in self.kept[name][-int(token[1]) - 1 :]]
        return polynomial(history, self.places[self.step])

    def block(self, i: int, hidden: Tensor, time: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        block, name = self.model.transformer_blocks[i], f"transformer_blocks.{i}"
        shift, scale, gate, shift_ff, scale_ff, gate_ff = (
            block.scale_shift_table[None] + time.reshape(len(hidden), 6, -1)
        ).chunk(6, dim=1)
        first = block.norm1(hidden) * (1 + scale) + shift
        zero = torch.zeros_like(hidden)
        hidden = gate * self.act(f"{name}:attn1", lambda: block.attn1(first), zero) + hidden
        second = hidden
        cross = self.act(
            f"{name}:attn2", lambda: block.attn2(second, encoder_hidden_states=text, attention_mask=mask), zero
        )
        hidden = cross + hidden
        third = block.norm2(hidden) * (1 + scale_ff) + shift_ff
        return gate_ff * self.act(f"{name}:ff", lambda: block.ff(third), zero) + hidden

    def stack(self, hidden: Tensor, *inputs: Tensor) -> Tensor:
        for i in range(len(self.model.transformer_blocks)):
            name, before = f"transformer_blocks.{i}", hidden
            hidden = self.act(name, lambda i=i, before=before: self.block(i, before, *inputs), before)
        return hidden

    def denoiser(self, latents: Tensor, t: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        model, batch = self.model, len(latents)
        hidden = model.pos_embed(latents)
        time, embedded = model.adaln_single(
            t.expand(batch), {"resolution": None, "aspect_ratio": None}, batch_size=batch, hidden_dtype=torch.float32
        )
        text = model.caption_projection(text).view(batch, -1, hidden.shape[-1])
        bias = ((1 - mask) * -10000.0)[:, None]
        entering = hidden
        hidden = self.act("transformer_blocks", lambda: self.stack(entering, time, text, bias), entering)
        shift, scale = (model.scale_shift_table[None] + embedded[:, None]).chunk(2, dim=1)
        hidden = model.proj_out(model.norm_out(hidden) * (1 + scale) + shift)
        side = latents.shape[-1] // 2
        hidden = hidden.reshape(batch, side, side, 2, 2, 8)
        return torch.einsum("nhwpqc->nchpwq", hidden).reshape(batch, 8, 2 * side, 2 * side)

    @torch.no_grad()
    def __call__(self, steps: int = 6, batch: int = 2, guidance: float = 3.0) -> Tensor:
        scheduler = copy.deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(steps)
        sigmas = scheduler.sigmas.tolist()
        self.places = {
            "index": list(range(steps)),
            "timestep": scheduler.timesteps.tolist(),
            "sigma": sigmas[:-1],
            "logsnr": [-math.log(s) for s in sigmas[:-1]],
        }[self.axis]
        given = self.embeddings or pipelines.embeddings(batch)
        text, mask = given["prompt_embeds"], given["prompt_attention_mask"]
        if guidance > 1:
            text = torch.cat([given["negative_prompt_embeds"], text])
            mask = torch.cat([mask, mask])
        latents = torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        for self.step, t in enumerate(scheduler.timesteps):
            twice = torch.cat([latents] * 2) if guidance > 1 else latents
            noise = self.act(ROOT, lambda twice=twice, t=t: self.denoiser(twice, t, text, mask))
            if guidance > 1:
                empty, conditioned = noise.chunk(2)
                noise = empty + guidance * (conditioned - empty)
            latents = scheduler.step(noise.chunk(2, dim=1)[0], t, latents).prev_sample
        return latents
