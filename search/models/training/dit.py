"""The bundled DiTPipeline: a class-conditional DiTTransformer2DModel of 64 emoji (arXiv:2212.09748)."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTPipeline, DiTTransformer2DModel

from .distil import Teacher
from .emoji import CONCEPTS, EmojiSet, caption
from .loop import Recipe, train
from .pixart import BLOCKS, HEAD, WIDTH, build_scheduler, save

RECIPE = Recipe(steps=2000, rate=1.5e-3, warmup=100, decay=0.7, weight_decay=0.01, ema=0.998)
BATCH = 64


def fit(pictures: EmojiSet, work: Path, device: torch.device, out: Path, recipe: Recipe = RECIPE) -> float:
    """Train the transformer, write the fp16 pipeline to `out`, return the loss against the teacher's velocity.

    The teacher is given the whole caption and the student its concept alone, so the student is trained on the mean over
    captions of what the teacher predicts.
    """
    torch.manual_seed(recipe.seed)
    teacher = Teacher(pictures, device)
    student = build(teacher.pipe.transformer).to(device).eval()  # eval: captions are dropped by `draw`

    def loss_at(step: int, generator: torch.Generator) -> torch.Tensor:
        batch = teacher.draw(generator, BATCH)
        with torch.autocast(device.type, torch.bfloat16):
            velocity = student(batch.noisy, batch.sigma * 1000, batch.concept, return_dict=False)[0]
        return (velocity.float() - teacher.velocity(batch)).square().mean()

    def export() -> None:
        save(DiTPipeline(student, teacher.pipe.vae, build_scheduler()), out)
        file = out / "model_index.json"  # where the public checkpoints have the names of their classes
        names = {str(number): caption(name) for number, name in enumerate(CONCEPTS)}
        index = json.loads(file.read_text(encoding="utf-8")) | {"id2label": names}
        file.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    loss = train("dit", student, loss_at, recipe, work, export)
    export()
    return loss


def build(teacher: Any) -> DiTTransformer2DModel:
    """A DiT that starts as the teacher without its cross-attention and without classes."""
    model = DiTTransformer2DModel(
        num_attention_heads=WIDTH // HEAD,
        attention_head_dim=HEAD,
        in_channels=teacher.config.in_channels,
        out_channels=teacher.config.out_channels,
        num_layers=BLOCKS,
        sample_size=16,
        patch_size=2,
        num_embeds_ada_norm=1000,  # the pipeline's empty class is number 1000
    )
    model.pos_embed.load_state_dict(teacher.pos_embed.state_dict())
    model.proj_out_2.load_state_dict(teacher.proj_out.state_dict())
    torch.nn.init.normal_(model.proj_out_1.weight, std=0.02)
    with torch.no_grad():
        model.proj_out_1.bias.copy_(teacher.scale_shift_table.flatten())
        for block, source in zip(model.transformer_blocks, teacher.transformer_blocks, strict=True):
            block.attn1.load_state_dict(source.attn1.state_dict())
            block.ff.load_state_dict(source.ff.state_dict())
            time = block.norm1.emb.timestep_embedder
            time.load_state_dict(teacher.adaln_single.emb.timestep_embedder.state_dict())
            torch.nn.init.zeros_(block.norm1.emb.class_embedder.embedding_table.weight)
            block.norm1.linear.weight.copy_(teacher.adaln_single.linear.weight)
            block.norm1.linear.bias.copy_(teacher.adaln_single.linear.bias + source.scale_shift_table.flatten())
    return model
