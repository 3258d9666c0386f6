"""Distances of all step pairs against loops by hand, the old way by inner products, and what every distance obeys."""

import numpy as np
import pytest
import torch

from search.calibrate.drifts import Drifts
from search.kernels.pairwise import COLUMNS, bytes_moved, pairwise
from search.schedule import ScheduleError
from search.schedule.apply.forecast import newton_weights
from tests.helpers.kernel_forms import ALL, DEVICE, DTYPES, FORMS


def drifting(steps: int, width: int, by: float = 0.05, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Values that change by little from step to step."""
    rng = torch.Generator().manual_seed(steps * width)
    walk = by * torch.randn(steps, width, generator=rng).cumsum(0)
    return (torch.randn(width, generator=rng) + walk).to(DEVICE, dtype)


def by_hand(values: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = values.double().cpu().numpy()
    differences = [[a - b for b in rows] for a in rows]
    l1 = np.array([[np.abs(d).sum() for d in row] for row in differences])
    return l1, np.array([[(d**2).sum() for d in row] for row in differences]), (rows**2).sum(1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("steps", "width"), [(1, 7), (16, 100), (20, COLUMNS + 17)])
@pytest.mark.parametrize("form", FORMS)
def test_distances_are_those_of_a_loop_over_all_pairs(form, steps, width, dtype):
    compare(form, steps, width, dtype)


@pytest.mark.parametrize("form", ALL)
def test_every_form_gives_them(form):
    compare(form, 5, COLUMNS + 33, torch.bfloat16)


def compare(form: str, steps: int, width: int, dtype: torch.dtype) -> None:
    values = drifting(steps, width, dtype=dtype)
    found, (l1, squares, energy) = pairwise(values, l1=True, implementation=form), by_hand(values)
    rtol = 3e-6 if form == "triton" else 1e-11  # inputs are exact in all forms; Triton sums in fp32
    for mine, expected in ((found.l1, l1), (found.squares, squares), (found.energy, energy)):
        np.testing.assert_allclose(mine, expected, rtol=rtol, atol=0)
    assert (np.diag(found.l1) == 0).all() and (np.diag(found.squares) == 0).all()
    assert (found.l1 == found.l1.T).all()


@pytest.mark.parametrize(("steps", "band"), [(20, 1), (20, 15), (20, 17), (20, 100), (40, 3)])
@pytest.mark.parametrize("form", FORMS)
def test_a_band_leaves_out_what_is_further_apart(form, steps, band):
    values = drifting(steps, 50)
    whole, found = pairwise(values, l1=True), pairwise(values, band, True, form)
    near = np.abs(np.subtract.outer(np.arange(steps), np.arange(steps))) <= band
    assert np.isnan(found.squares[~near]).all() and np.isnan(found.l1[~near]).all()
    np.testing.assert_allclose(found.squares[near], whole.squares[near], rtol=3e-6)
    np.testing.assert_allclose(found.l1[near], whole.l1[near], rtol=3e-6)
    np.testing.assert_allclose(found.energy, whole.energy, rtol=3e-6)


@pytest.mark.parametrize("form", FORMS)
def test_distances_obey_the_triangle_inequality(form):
    found = pairwise(drifting(9, 300, by=1.0), l1=True, implementation=form)
    for d in (found.l1, np.sqrt(found.squares)):
        assert (d[:, None, :] <= (d[:, :, None] + d[None, :, :]) * (1 + 1e-6)).all()


@pytest.mark.parametrize("form", FORMS)
def test_neighbours_keep_their_digits_in_bf16(form):
    """By inner products in the values' own type nothing of this distance is left."""
    values = drifting(2, 3000, by=0.01, dtype=torch.bfloat16)
    exact = float((values[0].double() - values[1].double()).square().sum())
    gram = (values @ values.T).double()
    assert abs(float(gram[0, 0] + gram[1, 1] - 2 * gram[0, 1]) - exact) > 0.5 * exact
    assert pairwise(values, implementation=form).squares[0, 1] == pytest.approx(exact, rel=1e-6)


def test_absolute_distances_are_for_those_who_ask():
    assert pairwise(drifting(3, 5)).l1 is None


def test_what_follows_from_distances():
    values = drifting(6, 500)
    found, rows = pairwise(values), values.double().cpu().numpy()
    norms = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(found.inner, rows @ rows.T, rtol=1e-12)
    np.testing.assert_allclose(found.cosine, (rows @ rows.T) / np.outer(norms, norms), rtol=1e-12)
    assert found.relative[1, 4] == pytest.approx(np.linalg.norm(rows[1] - rows[4]) / norms[4], rel=1e-12)


def test_tables_are_those_of_inner_products():
    """What `Drifts` gave from inner products in float64, to 1e-9."""
    values, places = drifting(7, 4000), [0.0, 1.0, 2.5, 3.0, 4.0, 7.0, 7.5]
    drifts, rows = Drifts({"a": pairwise(values)}, places), values.double().cpu()
    gram = (rows @ rows.T).numpy()
    d = np.diag(gram)
    reuse = np.triu(np.sqrt(np.clip(d[:, None] + d - 2 * gram, 0, None) / d), 1)
    np.testing.assert_allclose(drifts.reuse(["a"]), reuse, rtol=1e-9)
    forecast = drifts.forecast(["a"])
    for t in range(7):
        for s in range(7):
            for p in range(7):
                if not p < s < t:
                    assert forecast[p, s, t] == 0
                    continue
                c, index = np.array([*newton_weights([places[p], places[s]], places[t]), -1]), [p, s, t]
                expected = np.sqrt(c @ gram[np.ix_(index, index)] @ c / gram[t, t])
                assert forecast[p, s, t] == pytest.approx(expected, rel=1e-9)


def test_a_line_through_equal_places_is_refused():
    with pytest.raises(ScheduleError, match=r"equal places \[0.0, 1.0, 1.0\]; use axis 'index'"):
        Drifts({"a": pairwise(drifting(4, 10))}, [0.0, 1.0, 1.0, 2.0]).forecast(["a"])


def test_bytes_are_counted_and_mistakes_told():
    assert bytes_moved(torch.zeros(5, 7, dtype=torch.bfloat16)) == 70
    with pytest.raises(ValueError, match=r"\[T, D\], got \[3\]"):
        pairwise(torch.zeros(3))
    with pytest.raises(ValueError, match="band 0 has no pair; use at least 1"):
        pairwise(torch.zeros(3, 2), 0)
