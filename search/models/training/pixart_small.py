"""The small PixArt: three blocks of the bundled one, trained to replace all eight (T-Stitch, arXiv:2402.14167)."""

from pathlib import Path

import torch
from diffusers import PixArtTransformer2DModel

from .distil import Teacher
from .emoji import EmojiSet
from .loop import Recipe, train
from .pixart import build_scheduler, save

RECIPE = Recipe(steps=2500, rate=1.5e-3, warmup=100, decay=0.7, weight_decay=0.01, ema=0.998)
BATCH = 64
KEPT = (0, 4, 7)  # blocks of the large model that it starts from


def fit(pictures: EmojiSet, work: Path, device: torch.device, out: Path, recipe: Recipe = RECIPE) -> float:
    """Train the transformer, write the fp16 pipeline to `out`, return the loss against the teacher's velocity."""
    from diffusers import PixArtAlphaPipeline

    torch.manual_seed(recipe.seed)
    teacher = Teacher(pictures, device)
    student = build(teacher.pipe.transformer).to(device)

    def loss_at(step: int, generator: torch.Generator) -> torch.Tensor:
        batch = teacher.draw(generator, BATCH)
        with torch.autocast(device.type, torch.bfloat16):
            velocity = student(
                batch.noisy,
                teacher.states[batch.text],
                batch.sigma * 1000,
                encoder_attention_mask=teacher.mask[batch.text].float(),
                return_dict=False,
            )[0]
        return (velocity.float() - teacher.velocity(batch)).square().mean()

    def export() -> None:
        pipe = teacher.pipe
        save(PixArtAlphaPipeline(pipe.tokenizer, pipe.text_encoder, pipe.vae, student, build_scheduler()), out)

    loss = train("pixart_small", student, loss_at, recipe, work, export)
    export()
    return loss


def build(large: PixArtTransformer2DModel) -> PixArtTransformer2DModel:
    """The large transformer without the blocks that are not in KEPT."""
    small = PixArtTransformer2DModel.from_config({**large.config, "num_layers": len(KEPT)})
    weights = {}
    for name, weight in large.state_dict().items():
        if not name.startswith("transformer_blocks."):
            weights[name] = weight
        elif (block := int(name.split(".")[1])) in KEPT:
            weights[name.replace(f".{block}.", f".{KEPT.index(block)}.", 1)] = weight
    small.load_state_dict(weights)
    return small
