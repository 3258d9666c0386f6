"""Networks that turn pictures and prompts into vectors, for the objectives that need one."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search.profile.bundled import bundled_model

AT_ONCE = 32  # pictures


class Network:
    """A transformers checkpoint for pictures and text; it is loaded when it is first used.

    Args:
        path: Folder or hub id; None is the bundled CLIP.
        device: Where it runs; by default the GPU if there is one.
        option: The option that sets the path, for error messages: `objective.clip.path`.
    """

    def __init__(self, path: str | None, device: str | None, option: str) -> None:
        self.path, self.option = path, option
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def weights(self) -> str:
        """A digest of a folder's names, sizes and times, which changes with its weights; empty for a hub id."""
        try:
            folder = Path(self._folder)
        except ValueError:  # the bundled one is not installed: an error when it is used
            return ""
        parts = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.glob("*.*"))]
        identity = (
            parts if self.path else [part[:2] for part in parts]
        )  # times of the bundled one are of its installation
        return hashlib.sha256(repr(identity).encode()).hexdigest()[:16] if identity else ""

    @cached_property
    def model(self) -> nn.Module:
        """The network by the class that its configuration names."""
        import transformers

        def load(folder: str) -> nn.Module:
            config = transformers.AutoConfig.from_pretrained(folder)
            name = (config.architectures or [""])[0]
            kind = getattr(transformers, name, transformers.AutoModel)
            return kind.from_pretrained(folder, dtype=torch.float32)

        return self._load(load).to(self.device).eval()

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return self._load(AutoTokenizer.from_pretrained)

    @cached_property
    def scaling(self) -> dict[str, Any]:
        """How pictures are cut and scaled: `size` and `crop` in pixels, `mean` and `std` [3]."""
        from transformers.image_processing_base import ImageProcessingMixin

        config = self._load(ImageProcessingMixin.get_image_processor_dict)[0]
        size = config.get("size", 224)
        size = size.get("shortest_edge") or size.get("height") if isinstance(size, dict) else size
        crop = config.get("crop_size") or size
        crop = crop.get("height", size) if isinstance(crop, dict) else crop
        return {"size": size, "crop": crop, "mean": config["image_mean"], "std": config["image_std"]}

    def prepared(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] as the network takes them: the middle square, scaled."""
        scaling = self.scaling
        ratio = scaling["size"] / min(pictures.shape[-2:])
        pictures = pictures.float()
        if ratio != 1:
            size = [round(side * ratio) for side in pictures.shape[-2:]]
            pictures = F.interpolate(pictures, size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((side - scaling["crop"]) // 2 for side in pictures.shape[-2:])
        pictures = pictures[..., top : top + scaling["crop"], left : left + scaling["crop"]]
        mean, std = (torch.tensor(scaling[name])[:, None, None] for name in ("mean", "std"))
        return ((pictures - mean) / std).to(self.device)

    def tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and masks [B, L]; ValueError names a word that is not in the vocabulary of the bundled network."""
        limit = getattr(getattr(self.model.config, "text_config", None), "max_position_embeddings", None)
        if self.path is None and (word := self._unknown_word(prompts)):
            raise ValueError(
                f"the bundled CLIP knows the words of the bundled models only, and {word!r} is not one of them; type "
                f"{self.option}=<folder or hub id of a CLIPModel>, for example openai/clip-vit-large-patch14"
            )
        encoded = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=limit, return_tensors="pt"
        )
        return {name: value.to(self.device) for name, value in encoded.items() if name != "token_type_ids"}

    @torch.no_grad()
    def pictures(self, pictures: Tensor) -> Tensor:
        """Vectors [B, D] of pictures [B, 3, H, W] in [0, 1], not normalised, in fp64 on the CPU."""
        parts = [_vectors(self.model.get_image_features(self.prepared(part))) for part in pictures.split(AT_ONCE)]
        return torch.cat(parts).double().cpu()

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Vectors [B, D] of prompts, not normalised, in fp64 on the CPU."""
        return _vectors(self.model.get_text_features(**self.tokens(prompts))).double().cpu()

    def _unknown_word(self, prompts: Sequence[str]) -> str | None:
        vocabulary = self.tokenizer.get_vocab()
        words = (word for prompt in prompts for word in prompt.replace(",", " ").split())
        return next((word for word in words if f"▁{word}" not in vocabulary), None)

    @property
    def _folder(self) -> str:
        return str(self.path or bundled_model("clip", self.option))

    def _load(self, load: Callable[[str], Any]) -> Any:
        """Load from the folder without progress bars; ValueError with what to type if it fails."""
        folder = self._folder
        try:
            with _quiet():
                return load(folder)
        except Exception as error:  # errors of files, configurations and hubs are of many kinds
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(
                f"{self.option}={self.path} cannot be loaded: {lines[0][:200]}. Type {self.option}=<folder of a "
                "transformers checkpoint>, or a hub id with access to the internet"
            ) from None


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines [B] of vectors [B, D], row by row."""
    return F.cosine_similarity(a, b, dim=1)


def _vectors(output: Any) -> Tensor:
    """The vectors [B, D] that `get_..._features` returns: a tensor, or in transformers 5 a field of its output."""
    return output if isinstance(output, Tensor) else output.pooler_output


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and hints while transformers loads."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
