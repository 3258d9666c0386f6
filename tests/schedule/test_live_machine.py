"""Whatever a user calls on a pipeline to which schedules are applied, beside a twin without schedules."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.helpers.live_machine import KINDS, machine


def run_machine(kind: str, examples: int, steps: int) -> Counter[str]:
    tried: Counter[str] = Counter()
    bounds = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine(kind, tried), settings=bounds)
    return tried


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_calls_lose_nothing(kind: str) -> None:
    tried = run_machine(kind, 2, 8)
    assert sum(tried.values()) >= 12


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_calls_lose_nothing(kind: str) -> None:
    tried = run_machine(kind, 25, 30)
    print(f"\n{sum(tried.values())} calls on {kind}: {dict(sorted(tried.items()))}")
