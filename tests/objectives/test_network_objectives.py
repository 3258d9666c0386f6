"""Objectives that judge by a network: against transformers called directly, loops by hand, scipy and torchmetrics."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from transformers import (
    BlipConfig,
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from search.objectives.clip import Clip
from search.objectives.fid import Fid, frechet
from search.objectives.lpips import Lpips
from search.objectives.mmd import Mmd
from search.objectives.network import Network
from search.objectives.reward import Preference
from search.pareto.intervals import bootstrap_interval
from search.profile.bundled import bundled_model
from search.profile.costs import Costs
from search.testing import QualityContract
from search.testing.pipelines import tokenizer

COSTS = Costs(6, {}, 1, {})
PROMPTS = ["red apple", "tulip, flat style", "sailboat, pink background", "key", "lion, 3d style", "pizza"]


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def damaged(pictures: torch.Tensor) -> torch.Tensor:
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))
    return (pictures + 0.3 * noise).clamp(0, 1)


def scaling(folder: Path, size: int) -> None:
    config = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    config |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIPModel of pictures of 16 pixels, as a user would have it in a folder."""
    torch.manual_seed(0)
    folder, words = tmp_path_factory.mktemp("clip"), tokenizer()
    both = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = {"vocab_size": len(words), "max_position_embeddings": 8, "pad_token_id": 0, "eos_token_id": 1}
    vision = {"image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=both | text, vision_config=both | vision, projection_dim=8)).save_pretrained(
        folder
    )
    words.save_pretrained(folder)
    scaling(folder, 16)
    return folder


@torch.no_grad()
def called_directly(folder: Path, pictures: torch.Tensor, prompts: list[str]) -> tuple[CLIPModel, torch.Tensor]:
    model = CLIPModel.from_pretrained(folder).eval()
    words = tokenizer()(prompts, padding="max_length", max_length=8, truncation=True, return_tensors="pt")
    small = torch.nn.functional.interpolate(pictures, (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    pixels = (small - mean[:, None, None]) / std[:, None, None]
    out = model(pixel_values=pixels, input_ids=words.input_ids, attention_mask=words.attention_mask)
    return model, out.logits_per_image.diagonal()


# CLIP


def test_clip_is_the_cosine_that_the_model_gives(tiny_clip, pictures):
    prompts = ["red apple", "blue boat", "flat style", "3d boat", "red", "apple"]
    model, logits = called_directly(tiny_clip, pictures, prompts)
    expected = 100 * logits / model.logit_scale.exp()
    own = Clip(str(tiny_clip))
    assert own.score(pictures, prompts).tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert own(pictures, pictures * 0, prompts).tolist() == own.score(pictures, prompts).tolist()  # no teacher in it


def test_pictures_are_prepared_as_by_the_processor_of_the_checkpoint(tiny_clip):
    from transformers import CLIPImageProcessorPil

    wide = torch.rand(1, 3, 40, 60, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    image = Image.fromarray((wide[0] * 255).byte().permute(1, 2, 0).numpy())
    expected = CLIPImageProcessorPil.from_pretrained(tiny_clip)(image, return_tensors="pt").pixel_values
    found = Network(str(tiny_clip), "cpu", "x").prepared(wide)
    assert found.shape == expected.shape == (1, 3, 16, 16)
    assert float((found - expected).abs().max()) < 0.03  # Pillow rounds to bytes in between


def test_the_bundled_clip_tells_captions_apart(pictures):
    own = Clip()
    assert own.score(pictures, PROMPTS).shape == (6,)
    with pytest.raises(
        ValueError, match=r"knows the words of the bundled models only, and 'photo' is not one of them.*clip\.path="
    ):
        own.score(pictures[:1], ["photo of a tulip"])


def test_what_cannot_be_loaded_says_what_to_type(tmp_path, pictures):
    with pytest.raises(ValueError, match=r"objective\.clip\.path=.* cannot be loaded: .*Type objective\.clip\.path="):
        Clip(str(tmp_path)).score(pictures[:1], ["tulip"])


def test_other_weights_in_a_folder_are_another_objective(tmp_path, tiny_clip):
    assert Clip(str(tiny_clip)).weights == Clip(str(tiny_clip)).weights != Clip().weights
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = Clip(str(tmp_path)).weights
    (tmp_path / "model.safetensors").write_bytes(b"12")
    assert Clip(str(tmp_path)).weights != before


@pytest.mark.slow
def test_the_bundled_clip_prefers_what_the_bundled_model_draws_for_a_prompt():
    from search.testing.models import pixart

    model, prompts = pixart(), ["tulip, flat style, pink background", "basketball, 3d style", "cactus, blue background"]
    drawn = model.decode(model.sample(prompts, [0, 1, 2]))
    own = Clip()
    scores = torch.stack([own.score(drawn, [prompt] * 3) for prompt in prompts], dim=1)
    assert scores.argmax(dim=1).tolist() == [0, 1, 2]
    assert (own.score(drawn * 0 + 0.5, prompts) < own.score(drawn, prompts)).all()


# Rewards


def test_a_reward_with_two_towers_is_the_logit(tiny_clip, pictures):
    prompts = ["red apple", "blue boat", "flat style", "3d boat", "red", "apple"]
    _, logits = called_directly(tiny_clip, pictures, prompts)
    own = Preference(str(tiny_clip), floor=-3.0)
    assert own.score(pictures, prompts).tolist() == pytest.approx(logits.tolist(), abs=1e-4)
    assert own.worst(COSTS) == -3.0 and own.minimised(2.0) == -2.0


class TestPreference(QualityContract):
    prompts: ClassVar[list[str]] = ["red apple", "blue boat", "flat style", "3d boat", "red"]

    @pytest.fixture
    def objective(self, tiny_clip: Path) -> Preference:
        return Preference(str(tiny_clip), floor=-100.0)


def test_a_reward_with_a_head_is_the_probability_of_its_last_column(tmp_path, pictures):
    torch.manual_seed(0)
    words = tokenizer()
    both = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = {"vocab_size": len(words), "max_position_embeddings": 8, "encoder_hidden_size": 16, "pad_token_id": 0}
    config = BlipConfig(
        text_config=both | text | {"bos_token_id": 2, "sep_token_id": 1, "eos_token_id": 1},
        vision_config=both | {"image_size": 16, "patch_size": 8},
        projection_dim=8,
        image_text_hidden_size=8,
    )
    model = BlipForImageTextRetrieval(config).eval()
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    scaling(tmp_path, 16)
    own, prompts = Preference(str(tmp_path)), ["red apple", "blue boat"]
    found = own.score(pictures[:2], prompts)
    with torch.no_grad():
        said = own._network.tokens(prompts)
        expected = model(pixel_values=own._network.prepared(pictures[:2]), **said).itm_score.softmax(dim=1)[:, 1]
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-6) and 0 < float(found[0]) < 1


def test_a_network_without_a_score_is_refused(tmp_path, pictures):
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=1, image_size=16, patch_size=8
    )
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    scaling(tmp_path, 16)
    with pytest.raises(ValueError, match=r"is a CLIPVisionModelWithProjection, which gives no score of a picture"):
        Preference(str(tmp_path)).score(pictures[:1], ["red apple"])


def test_a_reward_without_weights_says_what_to_type():
    with pytest.raises(ValueError, match=r"type objective\.reward\.path=<folder or hub id of a reward model>"):
        Preference()


# Sets


def vectors(objective: Mmd | Fid, images: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(objective._network.pictures(images), dim=1).numpy()


def mmd_by_hand(x: np.ndarray, y: np.ndarray, width: float) -> float:
    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a - b) ** 2).sum() / (2 * width**2)))

    n, total = len(x), 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                total += k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i])
    return 1000 * total / (n * (n - 1))


@pytest.mark.parametrize("width", [10.0, 0.5])
def test_mmd_by_hand(pictures, damaged, width):
    own = Mmd(width=width)
    x, y = vectors(own, damaged), vectors(own, pictures)
    values = own(damaged, pictures, PROMPTS)
    assert float(values.mean()) == pytest.approx(mmd_by_hand(x, y, width), rel=1e-6)
    whole, without = own.distances(damaged, pictures)
    for i in range(6):
        rest = np.arange(6) != i
        assert float(without[i]) == pytest.approx(mmd_by_hand(x[rest], y[rest], width), rel=1e-6)
        assert float(values[i]) == pytest.approx(6 * whole - 5 * float(without[i]), rel=1e-9)
    assert own.worst(COSTS) > whole


def test_frechet_by_scipy_and_torchmetrics(pictures, damaged):
    own = Fid()
    x, y = vectors(own, damaged), vectors(own, pictures)
    s, r = np.cov(x.T), np.cov(y.T)
    by_hand = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + r - 2 * sqrtm(s @ r).real)
    assert frechet(torch.tensor(x), torch.tensor(y)) == pytest.approx(by_hand, rel=1e-4)
    many = np.random.default_rng(0).normal(size=(2, 50, 4)) * [[[1.0]], [[1.5]]]
    s, r = np.cov(many[0].T), np.cov(many[1].T)
    by_hand = ((many[0].mean(0) - many[1].mean(0)) ** 2).sum() + np.trace(s + r - 2 * sqrtm(s @ r).real)
    assert frechet(*torch.tensor(many)) == pytest.approx(by_hand, rel=1e-9)

    from torchmetrics.image.fid import FrechetInceptionDistance

    class Same(torch.nn.Module):
        num_features = 4

        def forward(self, found: torch.Tensor) -> torch.Tensor:
            return found

    metric = FrechetInceptionDistance(feature=Same(), normalize=True)
    metric.update(torch.tensor(many[0]), real=False)
    metric.update(torch.tensor(many[1]), real=True)
    assert float(metric.compute()) == pytest.approx(by_hand, rel=1e-4)


def test_the_jackknife_takes_most_of_the_bias_away():
    """Two sets of one distribution are 0 apart; 24 pictures are not enough to see that without it."""
    rng = np.random.default_rng(0)
    plain, corrected = [], []
    for _ in range(40):
        x, y = torch.tensor(rng.normal(size=(2, 24, 4)))
        whole = frechet(x, y)
        left = [frechet(x[torch.arange(24) != i], y[torch.arange(24) != i]) for i in range(24)]
        plain.append(whole)
        corrected.append(24 * whole - 23 * float(np.mean(left)))
    assert abs(np.mean(corrected)) < 0.25 * np.mean(plain)


@pytest.mark.parametrize("kind", [Mmd, Fid])
def test_sets_are_nothing_apart_from_themselves_and_more_with_damage(kind, pictures):
    own = kind()
    assert own(pictures, pictures, PROMPTS).tolist() == pytest.approx([0] * 6, abs=1e-6)
    whole = [own.distances(images, pictures)[0] for images in (pictures, 0.6 * pictures, 0.2 * pictures)]
    assert whole[0] == pytest.approx(0, abs=1e-6) and whole[0] < whole[1] < whole[2]
    with pytest.raises(ValueError, match=r"needs at least \d prompts, not 2; type prompts\.calibration_count="):
        own(pictures[:2], pictures[:2], PROMPTS[:2])


def test_the_interval_of_a_set_score_is_that_of_the_statistic():
    """Pseudo-values spread as the statistic does over repeated samples; the same in 200 fresh samples of 60."""
    rng, n = np.random.default_rng(0), 60

    def sample() -> tuple[np.ndarray, np.ndarray]:
        y = rng.normal(size=(n, 3))
        return y + 0.5 * rng.normal(size=(n, 3)) + 1.0, y

    def statistic(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
        def k(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return np.exp(-((a[:, None] - b[None]) ** 2).sum(2) / 2)

        h = k(x, x) + k(y, y) - k(x, y) - k(y, x)
        np.fill_diagonal(h, 0)
        whole, rows = h.sum(), h.sum(1)
        d = whole / (n * (n - 1))
        return d, n * d - (n - 1) * (whole - 2 * rows) / ((n - 1) * (n - 2))

    spread = np.std([statistic(*sample())[0] for _ in range(200)])
    widths = [np.ptp(bootstrap_interval(statistic(*sample())[1], rng)) for _ in range(20)]
    assert np.mean(widths) / (2 * 1.96) == pytest.approx(spread, rel=0.25)


def test_mistakes_of_set_scores():
    with pytest.raises(ValueError, match=r"objective\.mmd\.width=0 is not a valid width of a kernel"):
        Mmd(width=0)
    if find_spec("torch_fidelity") is None:
        with pytest.raises(ValueError, match=r"needs torch-fidelity and its weights: pip install torch-fidelity"):
            Fid("inception")


# LPIPS


def test_lpips_says_what_it_needs():
    with pytest.raises(ValueError, match=r"objective\.lpips\.network=net is not one of alex, vgg, squeeze"):
        Lpips("net")  # type: ignore[arg-type]
    if find_spec("torchvision") is None:
        with pytest.raises(ValueError, match="objective=lpips needs torchvision: pip install torchvision"):
            Lpips()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not there")
def test_lpips_is_zero_for_the_same_picture(pictures, damaged):
    try:
        values = Lpips()(torch.cat([pictures[:1], damaged[:1]]), torch.cat([pictures[:1]] * 2))
    except ValueError as error:
        pytest.skip(str(error))
    assert float(values[0]) == pytest.approx(0, abs=1e-6) and float(values[1]) > 0.01


def test_the_bundled_network_is_complete():
    assert {f.name for f in bundled_model("clip").iterdir()} >= {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
