"""A forecast: the weighted sum of a node's kept values.

Weights are numbers at run time: a search visits thousands of schedules, and none of them compiles anything anew.
Nothing is refreshed when a node is computed: values are kept as they are, and the divided differences of Newton's
form are in the weights. TaylorSeer (arXiv:2503.06923) keeps differences, and rewrites all of them.
"""

from collections.abc import Sequence

from torch import Tensor

from search.kernels.dispatch import Kernel


def combine(values: Sequence[Tensor], weights: Sequence[float], implementation: str | None = None) -> Tensor:
    """Weighted sum of values of one shape and type: accumulated in float32, returned in that type.

    Moves (K + 1) N itemsize bytes for K values of N elements.

    Args:
        values: K tensors.
        weights: K numbers; they are data, so that no list of weights compiles anything anew.
        implementation: The form of the kernel, see `search.kernels.dispatch.choose`.

    Raises:
        ValueError: In Triton's form, the values have different shapes or types.

    Example:
        >>> import torch
        >>> from search.kernels.forecast import combine
        >>> combine([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])], [-1.0, 2.0])
        tensor([5., 8.])
    """
    return KERNEL.of(values[0], implementation)(values, weights)


def bytes_moved(values: Sequence[Tensor]) -> int:
    """Each value is read once, the sum is written once."""
    return (len(values) + 1) * int(values[0].nbytes)


def weighted_sum(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """One value after the other."""
    total = values[0].float() * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total.add_(value.float(), alpha=weight)
    return total.to(values[0].dtype)


KERNEL = Kernel(weighted_sum, "search.kernels.forecast_triton")
