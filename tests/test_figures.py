import io

import numpy as np
import pytest
from PIL import Image

from search import figures
from tests.results import made_result


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return made_result(tmp_path_factory.mktemp("runs"))


def picture(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_pareto_html_works_offline_and_names_everything(result):
    html = figures.pareto_html(result)
    assert "cdn.plot.ly" not in html.split("<script")[0] and len(html) > 1_000_000
    for word in ("FORA", "TaylorSeer", "searched front", "recommended"):
        assert word in html


def test_pareto_png_is_readable_in_a_page(result):
    image = picture(figures.pareto_png(result))
    assert image.shape[1] >= 900
    blue = (np.abs(image.astype(int) - [0x00, 0x72, 0xB2]).sum(axis=2) < 30).sum()
    assert blue > 500  # the front is drawn


def test_heatmap_shows_the_plan(result):
    forecast = next(e for e in result.entries if e.name.startswith("TaylorSeer"))
    orange = np.array([0xE6, 0x9F, 0x00])
    with_forecast, without = (picture(figures.heatmap_png(e)).astype(int) for e in (forecast, result.entries[0]))
    assert (np.abs(with_forecast - orange).sum(axis=2) < 10).sum() > 1000
    assert (np.abs(without - orange).sum(axis=2) < 10).sum() == 0


def test_grids_show_every_prompt(result):
    for png in (figures.grid_png(result, result.entries[0]), figures.overview_png(result)):
        assert picture(png).shape[1] > 100 * len(result.shown)


def test_a_preset_without_pictures_is_refused(result):
    with pytest.raises(ValueError, match="'FORA N=2' has no pictures to show"):
        figures.grid_png(result, result.of("preset")[0])
