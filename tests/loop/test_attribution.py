"""What the parts of the recommended schedule contribute, against schedules without them that were fitted by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from search.config.load import config_for_schedule
from search.figures.report.content import summary_sentences
from search.loop.attribution import attribution_of
from search.loop.progress import ignore_progress
from search.models.base import to_schedule
from search.pareto.intervals import paired_difference_interval
from search.results.attribution import attribution_sentence
from search.results.result import Entry, Result
from search.testing.models import tiny_model
from search.tracking.notes import describe_search
from search.validate.ablation import evaluator_for
from tests.helpers.finished_search import made_result


def test_each_part_is_left_out_and_the_others_stay():
    model = tiny_model()
    bits = {"formats": {"w4": {"weight": 4}}, "layers": {"transformer_blocks.1.ff.net.0.proj": "w4"}}
    plan = {"rules": [["transformer_blocks.*:attn1", "CRRCRC"]]}
    plain = to_schedule(model, {"plan": plan, "bits": bits})
    config = config_for_schedule(plain, ["model=pixart"])
    held_out = evaluator_for(config, model, 3)
    calibration = evaluator_for(config, model, 5)  # other prompts, and so another fit
    schedule = calibration.fit(plain)
    entry = Entry("best", "front", schedule, {}, {})
    found = attribution_of(entry, SimpleNamespace(evaluator=calibration), held_out, ignore_progress)
    by_hand = {
        "fitted solver": plain,
        "bits": calibration.fit(to_schedule(model, {"plan": plan})),
        "plan": calibration.fit(to_schedule(model, {"bits": bits})),
    }
    assert by_hand["plan"] != held_out.fit(to_schedule(model, {"bits": bits}))
    best = np.array(held_out.values(schedule)["drift"])
    assert found["drift"] == pytest.approx(best.mean()) and found["block_executions"] > 0
    assert [part["name"] for part in found["parts"]] == list(by_hand)
    for part, without in zip(found["parts"], by_hand.values(), strict=True):
        values = held_out.values(without)
        drift = np.array(values["drift"])
        assert part["drift"] == pytest.approx(drift.mean()) and part["macs"] == pytest.approx(values["macs"][0])
        interval = paired_difference_interval(drift, best, np.random.default_rng(0))
        assert (part["low"], part["high"]) == pytest.approx(interval, abs=1e-3)
        assert part["low"] <= part["difference"] <= part["high"]
    assert attribution_of(Entry("x", "teacher", schedule, {}, {}), None, held_out, ignore_progress) is None


def test_the_sentence_names_drift_and_macs_without_each_part(tmp_path):
    result = made_result(tmp_path)
    expected = (
        "drift 0.040 at 50% of the MACs; without the fitted solver 0.090 (+0.050, 95 % +0.030 to +0.070) at 50%; "
        "without the plan 0.000 (-0.040, 95 % -0.050 to -0.030) at 100%"
    )
    assert attribution_sentence(Result.load(result.folder, pictures=False)) == expected
    sentence = f"{expected[0].upper()}{expected[1:]}."
    assert summary_sentences(result)[-1] == sentence and sentence in describe_search(result)
    result.attribution = None
    assert attribution_sentence(result) == ""
