"""Effects of a schedule's decisions, against schedules without them that were written by hand."""

import io

import numpy as np
import pytest
from PIL import Image

from search.config.load import config_for_schedule
from search.explain import main
from search.models.base import to_schedule
from search.testing.models import tiny_folder, tiny_model
from search.validate.ablation import Effect, Explanation, evaluator_for, measure_effects

PLAN = {"transformer_blocks.0:attn1": "CRCCRC", "transformer_blocks.2": "CCRRCC"}


def planned(model, rules):
    return to_schedule(model, {"plan": {"rules": [list(rule) for rule in rules.items()]}})


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def evaluator(model):
    off = to_schedule(model, {})
    return evaluator_for(config_for_schedule(off, ["model=pixart"]), model, 3)


def drift(evaluator, schedule):
    return np.array(evaluator.values(schedule)["drift"])


def test_effects_are_those_of_schedules_written_by_hand(model, evaluator):
    schedule = planned(model, PLAN)
    found = measure_effects(schedule, evaluator)
    assert found.drift == pytest.approx(drift(evaluator, schedule).mean())
    by_name = {(e.group, e.name): e for e in found.effects}
    assert list(by_name) == [
        ("part", "plan"), ("mechanism", "reuse"), ("nodes", "attn1"), ("nodes", "transformer_blocks, whole blocks"),
        ("step", "step 1"), ("step", "step 2"), ("step", "step 3"), ("step", "step 4"),
    ]  # fmt: skip
    only = {"transformer_blocks.0:attn1": PLAN["transformer_blocks.0:attn1"]}
    other = {"transformer_blocks.2": PLAN["transformer_blocks.2"]}
    attn = by_name["nodes", "attn1"]
    whole, alone, without = (drift(evaluator, planned(model, p)) for p in (PLAN, only, other))
    assert attn.alone == pytest.approx(alone.mean())
    assert attn.added == pytest.approx((whole - without).mean())
    assert attn.low <= attn.added <= attn.high
    four = {
        "transformer_blocks.0:attn1": "CRCCCC",
        "transformer_blocks.2": PLAN["transformer_blocks.2"],
    }
    assert by_name["step", "step 4"].added == pytest.approx((whole - drift(evaluator, planned(model, four))).mean())
    saved = [1 - evaluator.values(planned(model, p))["macs"][0] for p in (PLAN, other)]
    assert attn.saved == pytest.approx(saved[0] - saved[1])
    assert by_name["mechanism", "reuse"].added == pytest.approx(found.drift)  # nothing else is decided
    assert by_name["part", "plan"].added == pytest.approx(found.drift)


def test_solvers_are_fitted_for_every_variation(model, evaluator):
    schedule = evaluator.fit(planned(model, PLAN))
    assert schedule.sampler["coefficients"]
    found = {e.name: e for e in measure_effects(schedule, evaluator).effects}
    plain = planned(model, PLAN)
    assert found["fitted solver"].added == pytest.approx((drift(evaluator, schedule) - drift(evaluator, plain)).mean())
    without = {k: v for k, v in PLAN.items() if "attn1" not in k}
    refitted = evaluator.fit(planned(model, without))
    assert found["attn1"].added == pytest.approx((drift(evaluator, schedule) - drift(evaluator, refitted)).mean())


def test_parts_beside_the_plan(model, evaluator):
    layers = dict.fromkeys(["transformer_blocks.0.ff.net.0.proj"], "a") | dict.fromkeys(
        ["transformer_blocks.1.ff.net.0.proj"], "b"
    )
    formats = {"a": {"weight": 8}, "b": {"weight": 4}}
    parts = {"bits": {"formats": formats, "layers": layers}}
    parts["guidance"] = {"call": 4.0, "scale": [4.0, 4.0, 4.0, 4.0, 1.0, 1.0]}
    schedule = to_schedule(model, parts)
    found = {e.name: e for e in measure_effects(schedule, evaluator, by=["part", "mechanism"]).effects}
    assert set(found) == {"guidance", "bits", "bits a", "bits b"}
    only = to_schedule(model, {"guidance": parts["guidance"]})
    assert found["guidance"].alone == pytest.approx(drift(evaluator, only).mean())


def test_what_is_worth_computing_again_first():
    cheap = Effect("step", "step 1", 0.1, 0.01, 0.005, 0.02, 0.01)
    dear = Effect("step", "step 2", 0.05, 0.01, 0.005, 0.02, 0.01)
    unsure = Effect("step", "step 3", 0.05, 0.05, -0.01, 0.1, 0.01)
    found = Explanation("s", 0.03, 0.5, 4, [cheap, dear, unsure, Effect("mechanism", "x", *[float("nan")] * 5)])
    assert found.most_expensive_step is dear
    assert Explanation("s", 0.0, 1.0, 4, []).most_expensive_step is None
    assert Image.open(io.BytesIO(found.png())).size[0] > 500


def test_the_command_writes_a_table_and_a_figure(model, tmp_path, capsys):
    file = planned(model, PLAN).save(tmp_path / "s.json")
    out = tmp_path / "figures" / "explain.png"
    given = ["model=pixart", f"model.path={tiny_folder()}", "model.steps=6", "samples=2", "by=nodes", f"out={out}"]
    assert main([str(file), *given]) == 0
    said = capsys.readouterr().out
    assert "attn1" in said and "step 1" not in said and f"figure     {out}" in said
    assert Image.open(out).size[0] > 500


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "type python -m search.explain schedule.json"),
        (["s.json", "by=block"], "by=block: choose from part, mechanism, nodes, step"),
        (["s.json", "by="], "by=: choose from"),
        (["s.json", "samples=1"], "samples=1: give a whole number from 2 to"),
    ],
)
def test_mistakes_say_what_to_type(arguments, text, capsys):
    assert main(arguments) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pixart model.path=/x", "[pixart,dit]", "${oc.env:HOME}", "x" * 201, [1]])
def test_a_model_in_a_file_is_a_name_and_nothing_else(name, model):
    off = to_schedule(model, {}).with_made({"model": name})
    with pytest.raises(ValueError, match="made.model is .*, which is not the name of a model; type model=<name>"):
        config_for_schedule(off)
