"""python -m benchmarks.compare RUN [RUN ...]: hypervolumes of finished searches, at equal search cost.

For every run folder: the hypervolume of drift and MACs (calibration prompts, reference point 1 and 1) of all
candidates, of the front after as many block executions as the cheapest run spent, and of its presets alone.
"""

import sys
from pathlib import Path

import numpy as np

from search.pareto.domination import hypervolume
from search.results.front import read_front


def main(folders: list[str]) -> None:
    runs = {Path(folder).name: read_front(Path(folder)) for folder in folders}
    least = min(run["history"][-1]["block_executions"] for run in runs.values())
    print(f"{'run':<44} {'evaluations':>11} {'blocks':>9} {'all':>7} {'at ' + str(round(least)):>12} {'presets':>8}")
    for name, run in runs.items():
        last = run["history"][-1]
        fair = max(
            (h["generation"] for h in run["history"] if h["block_executions"] <= least),
            default=run["history"][0]["generation"],
        )
        presets = [e["calibration"] for e in run["entries"] if e["role"] == "preset"]
        rows = [
            [[p["macs"], p["drift"]] for p in run["points"]],
            [[p["macs"], p["drift"]] for p in run["points"] if p["generation"] <= fair],
            [[s["macs"]["value"], s["drift"]["value"]] for s in presets],
        ]
        found = [hypervolume(np.array(r), np.ones(2)) for r in rows]
        print(
            f"{name:<44} {last['evaluations']:>11.0f} {last['block_executions']:>9.0f} "
            f"{found[0]:>7.4f} {found[1]:>12.4f} {found[2]:>8.4f}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
