"""Whatever a user calls on a pipeline to which schedules are applied, beside a twin without schedules."""

import pytest

from benchmarks.faults.live import try_calls
from tests.helpers.live_machine import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_calls_lose_nothing(kind: str) -> None:
    assert sum(try_calls(kind, 1, 7).values()) >= 7


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_hundreds_of_calls_lose_nothing(kind: str) -> None:
    tried = try_calls(kind, 5, 30)
    print(f"\n{sum(tried.values())} calls on {kind}: {dict(sorted(tried.items()))}")
