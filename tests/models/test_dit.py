"""DiT: names of classes in place of prompts, guidance away from no class, and the bundled model."""

import pytest
import torch
from diffusers import DiTPipeline

from search.config.prompts import read_prompts
from search.models.dit import DiT
from search.models.training.emoji import CONCEPTS, caption
from search.profile.bundled import bundled_model
from search.testing.model_contract import ModelContract
from search.testing.models import saved, tiny_family
from search.testing.pipelines import dit
from tests.helpers.bundled_models import bundled_loops_agree, bundled_size


class TestDiT(ModelContract):
    prompts = ["apple", "sailing boat"]

    def make(self, **arguments):
        return tiny_family("dit", self.steps, **arguments)

    def test_own_loop_gives_the_stock_pipelines_latents_at_another_size(self):
        with pytest.raises(ValueError, match="model=dit makes pictures of 16x16 only; leave height and width out"):
            self.make(height=32, width=32)

    def test_names_and_other_names_of_a_class_are_its_number(self):
        model = self.make()
        assert model.encode(["boat", "sailing boat", ""])["class_labels"].tolist() == [1, 1, 1000] + [1000] * 3
        assert self.make(guidance_scale=1.0).encode(["cat face"])["class_labels"].tolist() == [2]

    def test_an_unknown_class_is_told_with_those_spelled_alike(self):
        model = self.make()
        with pytest.raises(ValueError, match="'aple' is not one of the 4 class names of model=dit; did you mean apple"):
            model.encode(["aple"])
        with pytest.raises(ValueError, match="'xyz' is not one .*; for example apple, boat, cat face, sailing boat"):
            model.stock(["xyz"], [0])

    def test_the_scheduler_is_as_it_was_after_latents_were_asked_for(self):
        model = self.make()
        before = dict(vars(model.pipe.scheduler))
        self.stock(model)
        assert set(vars(model.pipe.scheduler)) == set(before)


def test_a_pipeline_without_names_says_what_is_missing(tmp_path):
    def nameless():
        pipe = dit()
        return DiTPipeline(pipe.transformer, pipe.vae, pipe.scheduler)

    model = DiT(path=saved(nameless, tmp_path / "dit"))
    with pytest.raises(ValueError, match="model=dit has no class names; its model_index.json needs id2label"):
        model.encode(["apple"])
    assert model.encode([""])["class_labels"].tolist() == [1000, 1000]


def test_the_bundled_pipeline_loads_without_anything_of_ours():
    pipe = DiTPipeline.from_pretrained(bundled_model("dit"), local_files_only=True)
    assert pipe.get_label_ids(["red apple", "camera"]) == [0, 63]
    assert bundled_size(bundled_model("dit")) < 12 * 2**20


def test_the_bundled_model_knows_the_classes_of_its_prompts():
    names = read_prompts("classes_calibration.txt") + read_prompts("classes_held_out.txt")
    assert set(names) <= {caption(name) for name in CONCEPTS}
    assert sorted(DiT().encode(names)["class_labels"][: len(names)].tolist()) == sorted(
        [caption(name) for name in CONCEPTS].index(name) for name in names
    )


@pytest.mark.slow
def test_the_bundled_model_searched_loop_is_the_stock_call():
    bundled_loops_agree(DiT(), ["red apple", "cat face"], [["transformer_blocks.*:*", "(CR)*10"]])


@pytest.mark.parametrize("kind", ["classes", "imagenet"])
def test_class_names_to_search_and_to_report_on_are_enough_and_disjoint(kind):
    calibration, held_out = (read_prompts(f"{kind}_{part}.txt") for part in ("calibration", "held_out"))
    assert len(calibration) >= 8 and len(held_out) >= 16
    assert len(set(calibration + held_out)) == len(calibration) + len(held_out)


def test_guidance_moves_away_from_the_class_of_no_class():
    """By hand: the second half of the batch is class 1000, and the result is null + scale * (class - null)."""
    model = tiny_family("dit", guidance_scale=3.0)
    latents = model.noise([0])
    t = torch.tensor(500)
    with torch.no_grad():
        both = [
            model.denoiser(latents, timestep=t[None], class_labels=torch.tensor([label])).sample[:, :4]
            for label in (2, 1000)
        ]
    expected = both[1] + 3.0 * (both[0] - both[1])
    assert torch.allclose(model.denoise(model.encode(["cat face"]), latents, t), expected, atol=1e-5)
