"""The bundled CLIP, trained on pictures of emoji and their captions, for the objectives `clip`, `mmd` and `fid`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase

from .emoji import BACKGROUNDS, STYLES, EmojiSet, caption
from .loop import Recipe, train
from .pixart import SHOWN, TOKENS, build_tokenizer

RECIPE = Recipe(steps=1200, rate=1e-3, warmup=100, decay=1.0, weight_decay=0.05, ema=0.99, checkpoint_every=100)
BATCH = 96
WIDTH, PATCH, JOINT = 128, 8, 64
LAYERS = {"vision": 4, "text": 2}
WARMEST = 4.6  # of the logarithm of the logits' scale: 100, as in arXiv:2103.00020


def fit(pictures: EmojiSet, work: Path, device: torch.device, out: Path, recipe: Recipe = RECIPE) -> float:
    """Train both towers from scratch, write the fp16 weights to `out`, return the last running loss.

    Every drawing is left out on one of the five backgrounds; `retrieval` measures on those.
    """
    torch.manual_seed(recipe.seed)
    seen = torch.tensor([pair for pair in pairs(pictures) if not held_out(pictures, *pair)])
    texts = Captions(pictures)
    model = build(len(texts.tokenizer)).to(device)
    chances = torch.tensor([chance for shown, chance in SHOWN.items() if shown != "nothing"])

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        index, ground = seen[torch.randint(len(seen), (BATCH,), generator=generator)].unbind(1)
        shown = torch.multinomial(chances, BATCH, replacement=True, generator=generator)
        parts = texts.parts(index, ground)
        said = torch.where(texts.says(shown), parts, -1)
        images = augment(pictures.composite(index, ground), generator).to(device)
        tokens = texts.tokens([texts.write(row) for row in said.tolist()]).to(device)
        logits = model(pixel_values=images, **tokens).logits_per_text
        with torch.no_grad():
            model.logit_scale.clamp_(max=WARMEST)
        return contrastive(logits, matches(said, parts).to(device))

    loss = train("clip", model, loss_at, recipe, work)
    save(model, texts.tokenizer, out)
    return loss


class Captions:
    """Names, styles and backgrounds as numbers, and captions that name some of them."""

    def __init__(self, pictures: EmojiSet) -> None:
        self.pictures = pictures
        self.names, self.styles, self.grounds = sorted(set(pictures.name)), list(STYLES), list(BACKGROUNDS)
        every = [caption(name, style, ground) for name in self.names for style in STYLES for ground in BACKGROUNDS]
        self.tokenizer = build_tokenizer(every)

    def parts(self, index: Tensor, ground: Tensor) -> Tensor:
        """Numbers [B, 3] of the name, the style and the background of pictures."""
        names = [self.names.index(self.pictures.name[i]) for i in index.tolist()]
        styles = [self.styles.index(self.pictures.style[i]) for i in index.tolist()]
        return torch.stack([torch.tensor(names), torch.tensor(styles), ground], dim=1)

    @staticmethod
    def says(shown: Tensor) -> Tensor:
        """Which of the three parts [B, 3] a caption names, by its number in SHOWN."""
        return torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.bool)[shown]

    def write(self, said: Sequence[int]) -> str:
        """A caption of three numbers; -1 leaves a part out."""
        name, style, ground = said
        return caption(
            self.names[name], self.styles[style] if style >= 0 else "", self.grounds[ground] if ground >= 0 else ""
        )

    def tokens(self, texts: list[str]) -> Any:
        """Token ids and masks [B, 16] of captions."""
        return self.tokenizer(texts, padding="max_length", max_length=TOKENS, return_tensors="pt")


def matches(said: Tensor, parts: Tensor) -> Tensor:
    """Whether caption i describes picture j, [B, B]; a part that is -1 in a caption describes every picture."""
    return ((said[:, None] == parts[None]) | (said[:, None] < 0)).all(dim=2)


def contrastive(logits: Tensor, true: Tensor) -> Tensor:
    """Symmetric cross-entropy, a scalar, where several captions fit a picture (arXiv:2204.03610, eq. 3).

    Args:
        logits: Similarity of caption i and picture j, [B, B].
        true: Whether they belong together, [B, B].
    """
    return sum(
        -(F.log_softmax(z, dim=1) * (t / t.sum(dim=1, keepdim=True))).sum(dim=1).mean() / 2
        for z, t in ((logits, true.float()), (logits.T, true.T.float()))
    )


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures [B, 3, 64, 64] in [-1, 1], moved by up to 6 pixels, scaled by 0.8 to 1.2, mirrored, with noise."""
    b = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand((b, *shape), generator=generator)

    turn = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    scale, shift = uniform(0.8, 1.2), uniform(-0.19, 0.19, 2)
    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = turn * scale, scale, shift
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    light = uniform(0.85, 1.15, 3, 1, 1) * moved + uniform(-0.1, 0.1, 1, 1, 1)
    noise = torch.randn(images.shape, generator=generator) * uniform(0, 0.15, 1, 1, 1)
    return (light + noise).clamp(-1, 1)


def pairs(pictures: EmojiSet) -> list[tuple[int, int]]:
    """Every drawing on every background."""
    return [(i, g) for i in range(len(pictures.name)) for g in range(len(BACKGROUNDS))]


def held_out(pictures: EmojiSet, index: int, ground: int) -> bool:
    """Whether this drawing is never shown on this background."""
    names, styles = sorted(set(pictures.name)), list(STYLES)
    return (names.index(pictures.name[index]) + styles.index(pictures.style[index])) % len(BACKGROUNDS) == ground


@torch.no_grad()
def retrieval(model: CLIPModel, pictures: EmojiSet) -> dict[str, float]:
    """Of the pictures that were held out: the share whose full caption is the nearest one, and the share of captions
    whose picture is the nearest one.
    """
    texts = Captions(pictures)
    index, ground = torch.tensor([pair for pair in pairs(pictures) if held_out(pictures, *pair)]).unbind(1)
    tokens = texts.tokens([texts.write(row) for row in texts.parts(index, ground).tolist()])
    logits = model(pixel_values=pictures.composite(index, ground), **tokens).logits_per_image
    numbers = torch.arange(len(logits))
    return {
        "pictures": len(numbers),
        "caption of picture": float((logits.argmax(1) == numbers).float().mean()),
        "picture of caption": float((logits.argmax(0) == numbers).float().mean()),
    }


def build(words: int) -> CLIPModel:
    """Two towers of width 128; pictures of 64 pixels in patches of 8, captions of at most 16 words."""
    both = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4, "projection_dim": JOINT}
    text = {"vocab_size": words, "max_position_embeddings": TOKENS, "pad_token_id": 0, "eos_token_id": 1}
    vision = {"image_size": 64, "patch_size": PATCH, "num_hidden_layers": LAYERS["vision"]}
    return CLIPModel(
        CLIPConfig(
            text_config=both | text | {"num_hidden_layers": LAYERS["text"], "bos_token_id": 2},
            vision_config=both | vision,
            projection_dim=JOINT,
        )
    )


def save(model: CLIPModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Weights in fp16, configuration, tokenizer, and how pictures are scaled."""
    weights = {name: weight.half() for name, weight in model.state_dict().items()}
    model.save_pretrained(out, state_dict=weights)
    tokenizer.save_pretrained(out)
    scaling = {"size": {"shortest_edge": 64}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (out / "preprocessor_config.json").write_text(json.dumps(scaling, indent=2) + "\n", encoding="utf-8")
    for file in out.glob("*.json"):
        data = json.loads(file.read_text(encoding="utf-8"))
        data.pop("_name_or_path", None)
        file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
