"""The bundled pipelines: loaded without anything of ours, small, and planned like any other."""

import json

import diffusers
import pytest

from search import Schedule, load_model
from search.config.compose import list_options
from search.config.prompts import read_prompts
from search.models.training.emoji import CONCEPTS, caption
from search.profile.bundled import bundled_model

EMOJI = ["red apple, 3d style, white background", "cat face, flat style, blue background"]
PIPELINES = {
    file.parent.name: json.loads(file.read_text(encoding="utf-8"))["_class_name"]
    for file in sorted(bundled_model("").glob("*/model_index.json"))
}


def test_every_bundled_pipeline_is_an_option_of_its_name():
    assert {"pixart", "pixart_turbo", "pixart_one", "dit", "flux", "sd"} <= set(PIPELINES) <= set(list_options("model"))


@pytest.mark.parametrize("name", PIPELINES)
def test_the_bundled_pipeline_loads_without_anything_of_ours(name):
    getattr(diffusers, PIPELINES[name]).from_pretrained(bundled_model(name), local_files_only=True)
    assert sum(f.stat().st_size for f in bundled_model(name).rglob("*") if f.is_file()) < 15 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "prompts", "rules"),
    [
        ("pixart", EMOJI, [["transformer_blocks.*:*", "(CR)*10"], ["transformer_blocks.2:ff", "CC F1*18"]]),
        ("pixart_small", EMOJI, [["transformer_blocks.*:*", "(CR)*10"]]),
        ("pixart_turbo", EMOJI, [["transformer_blocks.*:attn1", "CRCC"], ["transformer_blocks.*:attn2", "CRCR"]]),
        ("pixart_one", EMOJI, [["transformer_blocks.5", "S"]]),
        ("dit", ["red apple", "cat face"], [["transformer_blocks.*:*", "(CR)*10"]]),
        ("flux", EMOJI, [["transformer_blocks.*:*", "(CR)*10"], ["single_transformer_blocks.*:attn", "(CR)*10"]]),
        ("sd", EMOJI, [["up_blocks.*:*", "(CR)*10"]]),
    ],
)
def test_a_plan_moves_the_bundled_models_latents_a_little(name, prompts, rules):
    model = load_model(name)
    bare = model.sample(prompts, [0, 1])
    with Schedule.from_dict(model.target.schedule({"plan": {"rules": rules}})).apply(model.pipe):
        planned = model.sample(prompts, [0, 1])
    assert 0 < (planned - bare).norm() / bare.norm() < 0.7
    assert model.decode(planned, prompts, [0, 1]).shape == (2, 3, 64, 64)


def test_the_bundled_dit_knows_the_classes_of_its_prompts():
    labels = diffusers.DiTPipeline.load_config(bundled_model("dit"))["id2label"]
    assert [labels[number].split(", ")[0] for number in ("0", "63")] == ["red apple", "camera"]
    names = read_prompts("classes_calibration.txt") + read_prompts("classes_held_out.txt")
    assert (
        set(names)
        <= {caption(name) for name in CONCEPTS}
        <= {n for label in labels.values() for n in label.split(", ")}
    )


@pytest.mark.parametrize("kind", ["classes", "imagenet"])
def test_class_names_to_search_and_to_report_on_are_enough_and_disjoint(kind):
    calibration, held_out = (read_prompts(f"{kind}_{part}.txt") for part in ("calibration", "held_out"))
    assert len(calibration) >= 8 and len(held_out) >= 16
    assert len(set(calibration + held_out)) == len(calibration) + len(held_out)
