"""python -m benchmarks.faults.live: thousands of calls on pipelines with schedules, beside twins without any.

The calls are the rules of `tests/helpers/live_machine.py`; a failure prints the sequence that shows it.
`--write` puts the count into docs/reliability.md.
"""

import argparse
from collections import Counter

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from benchmarks.faults import reliability
from tests.helpers.live_machine import KINDS, machine


def try_calls(kind: str, pipelines: int, calls: int, number: int | None = None) -> Counter[str]:
    """Make random calls on pipelines of a kind, one after the other.

    Args:
        kind: One of KINDS.
        pipelines: How many pipelines.
        calls: How many calls on each.
        number: Of the random sequence; None for the same one always.

    Returns:
        How often each rule ended in which way.

    Raises:
        AssertionError: Something was lost or differs; hypothesis prints the calls.
    """
    tried: Counter[str] = Counter()
    bounds = settings(
        max_examples=pipelines,
        stateful_step_count=calls,
        deadline=None,
        derandomize=number is None,
        database=None,
        phases=[Phase.generate],  # to shorten a failing sequence takes minutes
        suppress_health_check=list(HealthCheck),
    )
    kind_of_machine = machine(kind, tried)
    run_state_machine_as_test(kind_of_machine if number is None else seed(number)(kind_of_machine), settings=bounds)
    return tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipelines", type=int, default=40, help="of each kind")
    parser.add_argument("--calls", type=int, default=50, help="on each pipeline")
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--write", action="store_true", help="put the count into docs/reliability.md")
    given = parser.parse_args()
    all_tried: Counter[str] = Counter()
    for kind in given.kinds:
        tried = try_calls(kind, given.pipelines, given.calls, given.seed)
        print(f"{kind}: {sum(tried.values()):,} calls")
        for name, count in sorted(tried.items()):
            print(f"  {count:6,} {name.removeprefix(f'{kind}: ')}")
        all_tried += tried
    made = sum(count for name, count in all_tried.items() if name.endswith(": pipelines"))
    runs = sum(count for name, count in all_tried.items() if ": run: done" in name)
    refused = sum(count for name, count in all_tried.items() if name.endswith((": refused", ": ScheduleError")))
    text = (
        f"{sum(all_tried.values()) - made:,} calls on {made} tiny pipelines ({', '.join(given.kinds)}): "
        f"{refused:,} refused in one sentence, {runs:,} runs equal bit for bit "
        f"(`--pipelines {given.pipelines} --calls {given.calls}`)"
    )
    print(text)
    if given.write:
        reliability.write("live", text)


if __name__ == "__main__":
    main()
