"""Pictures before and after a schedule."""

import io

import numpy as np
import pytest
from PIL import Image

from search import generate
from search.generate import main
from search.models.base import to_schedule
from search.profile.plans import plan_schedule
from search.testing.models import tiny_folder, tiny_model
from search.validate.before_after import Generated, _pictures


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def schedule(model):
    return plan_schedule(model.target, {"transformer_blocks.1": ["C", "R", "C", "R", "C", "R"]})


def test_the_pictures_are_those_of_the_stock_pipeline(model, schedule):
    prompts = ["red apple", "blue fish"]
    found = generate(schedule, model, prompts=prompts, seed=3, repeats=1)
    bare = model.stock(prompts, [3, 4], output_type="np")[0]
    with model.apply(schedule):
        applied = model.stock(prompts, [3, 4], output_type="np")[0]
    assert np.array_equal(found.before, (bare * 255).round().astype(np.uint8))
    assert np.array_equal(found.after, (applied * 255).round().astype(np.uint8))
    assert len(found.milliseconds_before) == len(found.milliseconds_after) == 1


def test_off_changes_no_picture(model):
    found = generate(to_schedule(model, {}), model, prompts="red apple", repeats=2)
    assert np.array_equal(found.before, found.after) and found.psnr == [100.0]
    assert len(found.milliseconds_after) == 2


def test_speedup_and_psnr_by_hand():
    black, grey = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 51, np.uint8)
    found = Generated(["a"], [black], [grey], [90.0, 100.0, 110.0], [45.0, 50.0, 110.0])
    assert found.speedup == 2.0
    assert found.psnr == [pytest.approx(-20 * np.log10(51 / 255))]
    assert Image.open(io.BytesIO(found.png())).size[0] > 8


def test_the_middle_frame_of_a_film():
    film = np.zeros((1, 3, 8, 8, 3))
    film[:, 1] = 1
    assert _pictures(film)[0].min() == 255
    with pytest.raises(ValueError, match=r"arrays of shape \[2, 16\], which are not pictures"):
        _pictures(np.zeros((2, 16)))


def test_the_command_writes_the_picture(schedule, tmp_path, capsys):
    file, out = schedule.save(tmp_path / "s.json"), tmp_path / "new" / "out.png"
    folder = f"model.path={tiny_folder()}"
    given = ["model=pixart", folder, "model.steps=6", "prompt=red apple", "repeats=1", f"out={out}"]
    assert main([str(file), *given]) == 0
    said = capsys.readouterr().out
    assert "a picture:" in said and f"pictures   {out}" in said
    assert Image.open(out).size[0] > 64


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], 'type python -m search.generate schedule.json prompt="what to draw"'),
        (["none.json", "prompt=x"], "cannot read 'none.json'"),
        (["none.json", "prompt=x", "repeats=0"], "repeats=0: give a whole number from 1 to 1000"),
        (["none.json", "prompt=x", "seed=-1"], "seed=-1: give a whole number from 0 to"),
        (["none.json", "promt=x"], "'promt=x' is not an option. Did you mean prompt?"),
    ],
)
def test_mistakes_say_what_to_type(arguments, text, capsys):
    assert main(arguments) == 2
    assert text in capsys.readouterr().err


def test_a_file_that_names_no_model(schedule, tmp_path, capsys):
    assert main([str(schedule.save(tmp_path / "s.json")), "prompt=x"]) == 2
    assert "does not say which model it is for; type model=<name>" in capsys.readouterr().err
