"""Errors of many grids at once against a loop by hand, and what every grid obeys."""

import pytest
import torch

from search.kernels.fakequant import affine, bytes_moved, ends, sweep
from search.schedule.apply.rounding import SHRINK, round_weight
from search.schedule.parts.bits import FormatPart
from tests.helpers.kernel_forms import ALL, DEVICE, FORMS

BITS = (2, 3, 4, 6, 8)


def rows(count: int, width: int) -> torch.Tensor:
    found = torch.randn(count, width, generator=torch.Generator().manual_seed(count + width))
    found[0] = found[0].abs() + 1  # a row that does not hold 0
    return found.to(DEVICE)


def by_hand(row: list[float], bits: int, factor: float) -> float:
    low, high = min(*row, 0.0), max(*row, 0.0)
    scale = (high - low) * factor / (2**bits - 1)
    zero = round(-low * factor / scale)
    grid = [(min(max(round(x / scale) + zero, 0), 2**bits - 1) - zero) * scale for x in row]
    return sum((g - x) ** 2 for g, x in zip(grid, row, strict=True))


@pytest.mark.parametrize(("count", "width"), [(1, 2), (5, 3), (7, 64), (3, 1152), (2, 4609)])
@pytest.mark.parametrize("form", FORMS)
def test_errors_are_those_of_a_loop_over_bits_and_factors(form, count, width):
    values = rows(count, width)
    found = sweep(values, BITS, SHRINK, form)
    assert found.shape == (len(BITS), len(SHRINK), count)
    for i, bits in enumerate(BITS):
        for j, factor in enumerate(SHRINK):
            expected = [by_hand(row, bits, factor) for row in values.tolist()]
            assert found[i, j].tolist() == pytest.approx(expected, rel=2e-3, abs=1e-9)  # ties may round apart


@pytest.mark.parametrize("form", ALL)
def test_every_form_finds_a_best_factor(form):
    values = rows(40, 200)
    exact, found = sweep(values, BITS, SHRINK), sweep(values, BITS, SHRINK, form)
    chosen = exact.gather(1, found.argmin(1, keepdim=True))
    torch.testing.assert_close(chosen, exact.amin(1, keepdim=True), rtol=1e-5, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_more_bits_and_more_clippings_never_cost(form):
    errors = sweep(rows(30, 128), BITS, SHRINK, form)
    assert (errors.amin(1).diff(dim=0) <= 0).all()
    zeros = sweep(torch.zeros(3, 8, device=DEVICE), BITS, SHRINK, form)
    assert (zeros == 0).all()


@pytest.mark.parametrize(("bits", "group"), [(2, 64), (4, None), (6, 32)])
def test_round_weight_takes_the_first_best_factor(bits, group):
    """Bit for bit what trying them one after the other gives."""
    weight = rows(12, 192)
    groups = weight.reshape(12, -1, group or 192)
    low, high = ends(groups)
    best, least = groups, torch.full_like(low, torch.inf)
    for factor in SHRINK:
        tried = affine(groups, low, high, bits, factor)
        error = (tried - groups).square().sum(-1, keepdim=True)
        best, least = torch.where(error < least, tried, best), torch.minimum(error, least)
    assert torch.equal(round_weight(weight, FormatPart(weight=bits, group=group)), best.reshape(12, 192))


def test_bytes_are_counted_and_mistakes_told():
    assert bytes_moved(torch.zeros(5, 7), (2, 4), SHRINK) == 4 * (35 + 5 * 2 * 5)
    with pytest.raises(ValueError, match=r"float32, got \[2, 3, 4\]"):
        sweep(torch.zeros(2, 3, 4), (4,), SHRINK)
    with pytest.raises(ValueError, match=r"bits \[0, 4\] cannot be swept; give some from 1 to 16"):
        sweep(torch.zeros(2, 3), (0, 4), SHRINK)
