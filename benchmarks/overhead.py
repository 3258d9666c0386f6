"""python benchmarks/overhead.py: what an applied schedule costs, and what it gains.

Times of the bare pipeline, of a schedule that computes everything, and of FORA N=2, one picture each, taking
turns; medians and quartiles of the ratios round by round. `--path` takes any PixArt checkpoint.
"""

import argparse

import numpy as np
import torch

from search.calibration import count_costs
from search.evaluate.evaluator import to_schedule
from search.evaluate.timing import measure
from search.models.pixart import PixArt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=40)
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    model = PixArt(path=given.path, device=given.device)
    off = to_schedule(model, {})
    half = to_schedule(model, {"plan": {"rules": [["transformer_blocks.*:*", f"(CR)*{model.steps // 2}"]]}})
    costs = count_costs(model.denoiser, model.target.tree, model.target.steps, model.once)
    bare, all_computed, fora = np.array(measure(model, [None, off, half], given.repeats, decode=False))
    print(f"bare pipeline            {np.median(bare):.1f} ms a picture, {model.steps} steps, without decoding")
    _row("all computed / bare", all_computed / bare)
    _row("bare / FORA N=2", bare / fora)
    print(f"MACs allow               {costs.teacher_macs / costs.macs(half):.3f}")


def _row(name: str, ratios: np.ndarray) -> None:
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    print(f"{name:<24} {middle:.3f} (quartiles {low:.3f} to {high:.3f}, {len(ratios)} rounds)")


if __name__ == "__main__":
    main()
