"""The public PixArt checkpoints' architectures, without their weights: names, shapes, bytes of kept values."""

import json

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

from search import Schedule
from search.schedule.model.identity import model_part
from search.schedule.model.nodes import ROOT, Tree
from tests.helpers.pixart_by_hand import ByHand

# transformer/config.json of PixArt-XL-2-256x256, -512x512 and -1024-MS, as far as it differs from the class's defaults
COMMON = {"caption_channels": 4096, "cross_attention_dim": 1152, "num_layers": 28, "out_channels": 8}
SIZES = {
    "PixArt-XL-2-256x256": {"sample_size": 32, "interpolation_scale": 0.5, "use_additional_conditions": False},
    "PixArt-XL-2-512x512": {"sample_size": 64, "use_additional_conditions": False},
    "PixArt-XL-2-1024-MS": {"sample_size": 128, "interpolation_scale": 2},
}
KINDS = ("attn1", "attn2", "ff")


def build(name: str, **changed: object) -> PixArtTransformer2DModel:
    return PixArtTransformer2DModel(**COMMON | SIZES[name] | changed).eval()


@pytest.fixture(scope="module", params=SIZES)
def denoiser(request) -> PixArtTransformer2DModel:
    with torch.device("meta"):
        return build(request.param)


def inputs(denoiser: PixArtTransformer2DModel, batch: int, device: str) -> dict:
    side = denoiser.config.sample_size
    extra = denoiser.use_additional_conditions
    with torch.device(device):
        return {
            "hidden_states": torch.zeros(batch, 4, side, side),
            "encoder_hidden_states": torch.zeros(batch, 120, 4096),
            "encoder_attention_mask": torch.ones(batch, 120),
            "timestep": torch.full((batch,), 500),
            "added_cond_kwargs": {
                "resolution": torch.ones(batch, 2) if extra else None,
                "aspect_ratio": torch.ones(batch, 1) if extra else None,
            },
        }


def test_the_nodes_are_those_of_28_blocks(denoiser):
    tree = Tree.of(denoiser)
    assert tree.stacks == {"transformer_blocks": 28} and denoiser.inner_dim == 1152
    blocks = [f"transformer_blocks.{i}" for i in range(28)]
    expected = {ROOT, "transformer_blocks", *blocks, *(f"{b}:{c}" for b in blocks for c in KINDS)}
    assert set(tree.nodes) == expected and len(expected) == 114
    assert denoiser.transformer_blocks[27].attn1.heads == 16
    assert sum(p.numel() for p in denoiser.parameters()) == pytest.approx(6.1e8, rel=0.02)
    part = model_part(denoiser)
    assert part["class"] == "PixArtTransformer2DModel" and len(part["fingerprint"]) == 16


@pytest.mark.slow
def test_every_kept_value_has_the_shape_of_the_tokens(denoiser):
    """On the meta device: shapes, contracts and peak bytes of the real model, no arithmetic."""
    tokens = (denoiser.config.sample_size // 2) ** 2
    seen = set()
    for node in Tree.of(denoiser):
        if node.kind in ("block", "component"):
            module = Tree.of(denoiser).module(denoiser, node)
            module.register_forward_hook(
                lambda m, given, out, name=node.name: seen.add((name, tuple(given[0].shape), tuple(out.shape)))
            )
    pipe = PixArtAlphaPipeline(None, None, None, denoiser, DPMSolverMultistepScheduler())
    rules = [["transformer_blocks.*:*", "C (C R)*9 C"], ["denoiser", "C*18 RC"]]
    data = {"format": "schedule/1", "model": model_part(denoiser), "steps": 20, "plan": {"rules": rules}}
    with torch.no_grad(), Schedule.from_dict(data).apply(pipe) as handle:
        pipe.scheduler.set_timesteps(20)
        for t in pipe.scheduler.timesteps[:3]:
            out = denoiser(**inputs(denoiser, 2, "meta")).sample
            pipe.scheduler.step(torch.zeros(1), t, torch.zeros(1))
        assert out.shape == (2, 8, denoiser.config.sample_size, denoiser.config.sample_size)
        stats = handle.stats()
    shape = (2, tokens, 1152)
    assert seen == {(n, shape, shape) for n in Tree.of(denoiser).nodes if "." in n}
    assert stats["peak_bytes"] == 84 * 2 * tokens * 1152 * 4  # every component of every block, fp32
    assert stats["block_executions"] == 3 * 28


def test_a_free_plan_of_the_real_model_is_a_small_file(denoiser, tmp_path):
    generator = torch.Generator().manual_seed(0)
    rules = []
    for i in range(28):
        for kind in KINDS:
            bits = torch.randint(0, 2, (19,), generator=generator).tolist()
            rules.append([f"transformer_blocks.{i}:{kind}", "C" + "".join("CR"[b] for b in bits)])
    data = {"format": "schedule/1", "model": model_part(denoiser), "steps": 20, "plan": {"rules": rules}}
    schedule = Schedule.from_dict(data)
    assert Schedule.load(schedule.save(tmp_path / "s.json")) == schedule
    assert len(json.dumps(schedule.to_dict())) < 6_000


def test_one_block_of_real_width_computes_what_a_loop_by_hand_does():
    """A 16x16-latent run through one block of 16 heads x 72, captions of 4096 channels, in fp32."""
    torch.manual_seed(0)
    denoiser = build("PixArt-XL-2-256x256", num_layers=1)
    pipe = PixArtAlphaPipeline(None, None, None, denoiser, DPMSolverMultistepScheduler())
    pipe.set_progress_bar_config(disable=True)
    rules = [
        ["transformer_blocks.0:attn1", "CRC"],
        ["transformer_blocks.0:ff", "CCF1"],
        ["transformer_blocks.0:attn2", "CSR"],
    ]
    data = {"format": "schedule/1", "model": model_part(denoiser), "steps": 3, "plan": {"rules": rules}}
    schedule = Schedule.from_dict(data)
    hand = ByHand(pipe, schedule.plan.tokens, "index")
    generator = torch.Generator().manual_seed(3)
    text = torch.randn(1, 5, 4096, generator=generator)
    hand.embeddings = {"prompt_embeds": text, "prompt_attention_mask": torch.ones(1, 5)}
    expected = hand(steps=3, batch=1, guidance=1.0)
    with torch.no_grad(), schedule.apply(pipe) as handle:
        found = pipe(
            prompt_embeds=text, prompt_attention_mask=torch.ones(1, 5), negative_prompt=None, guidance_scale=1.0,
            num_inference_steps=3, height=64, width=64, use_resolution_binning=False, output_type="latent",
            generator=torch.Generator().manual_seed(1),
        ).images  # fmt: skip
        assert handle.stats()["peak_bytes"] == 3 * 16 * 1152 * 4  # attn2 throughout, ff twice, attn1 freed between
    assert (found - expected).norm() < 1e-5 * expected.norm()
