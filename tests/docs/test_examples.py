"""The files of docs/examples are what docs/objectives.md shows, and they work."""

import sys

import pytest
import torch
from hydra.utils import instantiate

from search.compose import composed, mistake, normalise
from search.config import Config
from tests.helpers.models import tiny_folder
from tests.helpers.repository import ROOT

CONF = ROOT / "docs" / "examples" / "my_conf"


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("colourful", None)


def test_the_page_shows_the_files_as_they_are():
    page = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
    for file in ("colourful.py", "objective/colourful.yaml"):
        assert (CONF / file).read_text(encoding="utf-8").strip() in page


def test_two_files_make_an_objective():
    raw = composed(normalise(["objective=[colourful,macs]", "objective.colourful.pull=0.5"]), str(CONF))
    own = instantiate(raw["objective"]["colourful"])
    pictures = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for picture, value in zip(pictures, own.score(pictures, ["a"] * 3), strict=True):
        red, green, blue = (plane.flatten() for plane in picture)
        rg, yb = red - green, 0.5 * (red + green) - blue
        expected = (rg.std() ** 2 + yb.std() ** 2) ** 0.5 + 0.5 * (rg.mean() ** 2 + yb.mean() ** 2) ** 0.5
        assert float(value) == pytest.approx(float(expected), rel=1e-5)
    assert float(own.score(pictures[:1].mean(1, keepdim=True).expand(1, 3, 8, 8), ["a"])) == pytest.approx(0, abs=1e-6)


def test_a_class_that_is_not_found_says_where_it_belongs(tmp_path):
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective" / "mine.yaml").write_text("# @package objective.mine\n_target_: mine.Missing\n")
    raw = composed(normalise(["objective=[mine,macs]"]), str(tmp_path))
    with pytest.raises(Exception) as error:
        instantiate(raw["objective"]["mine"])
    assert "belongs into the folder of --config-dir, or into one on PYTHONPATH" in str(mistake(error.value))


@pytest.mark.slow
def test_the_example_searches(tmp_path):
    from search.run import run

    for name, lines in (("calibration", "red apple\nblue boat\n"), ("held_out", "blue apple\n3d boat\n")):
        (tmp_path / f"{name}.txt").write_text(lines)
    given = [
        "objective=[colourful,macs]",
        f"model.path={tiny_folder()}",
        "model.steps=6",
        "model.max_sequence_length=8",
        f"prompts.calibration={tmp_path / 'calibration.txt'}",
        f"prompts.held_out={tmp_path / 'held_out.txt'}",
        f"runs={tmp_path / 'runs'}",
        "tracking.enabled=false",
        "budget.evaluations=12",
    ]
    result = run(Config.check(composed(normalise(given), str(CONF))))
    assert result.objectives == ["colourful", "macs"] and result.of("front")
    assert {"colourful"} == set(result.of("front")[0].gap) == set(result.of("front")[0].change)
