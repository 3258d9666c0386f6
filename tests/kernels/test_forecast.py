"""Weighted sums of values against float64."""

import pytest
import torch

from search.kernels.forecast import bytes_moved, combine
from tests.helpers.kernel_forms import ALL, DEVICE, DTYPES, FORMS, TRITON


def kept(count: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(count)
    return [torch.randn(*shape, generator=rng).to(DEVICE, dtype) for _ in range(count)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("count", "shape"), [(1, (1,)), (2, (3, 5, 7)), (4, (1500,)), (10, (2, 0))])
@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_weighted_sum(form, count, shape, dtype):
    compare(form, count, shape, dtype)


@pytest.mark.parametrize("form", ALL)
def test_every_form_gives_it(form):
    compare(form, 3, (1500,), torch.bfloat16)


def compare(form: str, count: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values, weights = kept(count, shape, dtype), [1.5 - 0.7 * k for k in range(count)]
    found = combine(values, weights, form)
    assert found.dtype == dtype and found.shape == shape
    exact = sum(v.double() * w for v, w in zip(values, weights, strict=True))
    # one rounding to the type (Triton's interpreter cuts bf16 off: twice that), and fp32 sums that cancel
    torch.testing.assert_close(found.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_of_one_gives_the_value_and_order_of_memory_does_not_matter(form):
    (value,) = kept(1, (4, 6), torch.float32)
    assert torch.equal(combine([value], [1.0], form), value)
    assert torch.equal(combine([value.T, value.T], [0.5, 0.5], form), value.T)


@pytest.mark.parametrize("form", [TRITON])
def test_values_of_unlike_shapes_are_told(form):
    with pytest.raises(ValueError, match=r"one shape and type, got \[2\] in torch.float32 and \[3\] in torch.float32"):
        combine([*kept(1, (2,), torch.float32), *kept(1, (3,), torch.float32)], [1.0, 1.0], form)


def test_bytes_are_one_read_of_each_value_and_one_write():
    assert bytes_moved(kept(3, (5, 2), torch.float16)) == 4 * 10 * 2
