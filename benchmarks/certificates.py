"""python -m benchmarks.certificates: how often certificates are false, how often they are given, and what new runs do.

    python -m benchmarks.certificates --quick
    python -m benchmarks.certificates --repetitions 200
    python -m benchmarks.certificates --model pixart --run runs/… --pairs 2000 --store values.json
    python -m benchmarks.certificates --values values.json
    python -m benchmarks.certificates --model pixart --run runs/… --guard --pairs 200 --guidance 7 --lora my_lora

Without --model whole certifications are repeated on made-up runs, a second or so each hundred: what a schedule adds,
what a run adds for all schedules, and noise of both; the order is that of 8 calibration runs. With --values runs are
drawn from stored ones, whose share of misses is then the truth. With --model the front of a finished search runs on new
prompts, made of parts of the lines of both prompt files, with new noise; --pairs counts them. With --guard the
recommended schedule runs with and without `guard=True` on the same pairs, one picture at a time, also under another
guidance scale or with a LoRA: how many runs miss the criterion, and how many were computed in full from some step on.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from search.pareto.certificates import StoppingRule, certify_in_order, greatest_miss_rate

LIMIT, SHARE, CONFIDENCE, BLOCK = 30.0, 0.9, 0.95, 32
MOST = (32, 64, 128)
CALIBRATION = 8  # runs by which schedules are ordered
SEED = 5_000_000  # of the noise of new runs
Draw = Callable[[np.random.Generator, int], np.ndarray]  # values [schedules, runs] in dB


def additive(levels: Sequence[float]) -> Draw:
    """Values that are the sum of what the schedule, the run, and both together add; runs have a long lower tail."""

    def draw(rng: np.random.Generator, runs: int) -> np.ndarray:
        hard = -3 * rng.gumbel(size=runs).clip(-2, 8)
        return np.asarray(levels)[:, None] + hard + rng.normal(0, 1.5, (len(levels), runs))

    return draw


def stored(values: np.ndarray) -> Draw:
    """Runs drawn from stored ones [schedules, runs], with replacement."""
    return lambda rng, runs: values[:, rng.integers(values.shape[1], size=runs)]


def certified(draw: Draw, rng: np.random.Generator, most: int) -> np.ndarray:
    """The numbers of the schedules that one search would certify."""
    rule = StoppingRule.of(SHARE, CONFIDENCE, most)
    order = np.argsort(-draw(rng, CALIBRATION).mean(axis=1))
    missed = draw(rng, rule.looks[-1]) < LIMIT
    edges = [*range(0, rule.looks[-1], BLOCK), rule.looks[-1]]
    tested = certify_in_order(
        len(order),
        lambda number, runs: missed[order[number], runs].tolist(),
        rule,
        [range(a, b) for a, b in itertools.pairwise(edges)],
    )
    return np.array([order[i] for i, t in enumerate(tested) if t is not None and t.certified], dtype=int)


def repeat(name: str, draw: Draw, truth: np.ndarray, repetitions: int) -> None:
    """Print how many of the searches gave a false certificate, and how often the fastest true schedule got one."""
    rng = np.random.default_rng(0)
    true = np.flatnonzero(truth <= 1 - SHARE)
    for most in MOST:
        results = [certified(draw, rng, most) for _ in range(repetitions)]
        false = sum(bool(np.any(truth[numbers] > 1 - SHARE)) for numbers in results)
        upper = greatest_miss_rate(false, repetitions, 0.95)
        given = np.mean([len(np.intersect1d(numbers, true)) for numbers in results])
        print(
            f"{name}, {most} runs: {false} of {repetitions} searches gave a false certificate "
            f"({false / repetitions:.1%}, surely at most {upper:.1%}); {given:.1f} of {len(true)} true ones were given"
        )


def power(repetitions: int) -> None:
    """Print how often one schedule of these miss rates is certified."""
    rng = np.random.default_rng(1)
    for rate, most in itertools.product((0.0, 0.01, 0.03, 0.05, 0.1), MOST):
        rule = StoppingRule.of(SHARE, CONFIDENCE, most)
        decided = [rule.decide((rng.random(most) < rate).tolist()) for _ in range(repetitions)]
        runs = np.mean([t.runs for t in decided if t])
        share = np.mean([bool(t and t.certified) for t in decided])
        print(f"misses {rate:4.0%}, at most {most:3} runs: certified {share:6.1%}, after {runs:.0f} runs on average")


def new_prompts(model: str, count: int) -> list[str]:
    """Prompts of neither file, of parts of their lines: the subject of one and the rest of another.

    Lines without parts, such as names of classes, come as they are, in any order.
    """
    from search.config.compose import compose_config, normalise_overrides
    from search.config.prompts import read_prompts

    files = compose_config(normalise_overrides([f"model={model}"]))["prompts"]
    lines = read_prompts(files["calibration"]) + read_prompts(files["held_out"])
    rng, prompts = np.random.default_rng(SEED), list[str]()
    if not all(", " in line for line in lines):
        return [lines[i] for i in rng.integers(len(lines), size=count)]
    while len(prompts) < count:
        subject, rest = (lines[i] for i in rng.integers(len(lines), size=2))
        prompt = ", ".join([subject.split(", ")[0], *rest.split(", ")[1:]])
        prompts += [prompt] if prompt not in lines else []
    return prompts


def measure(model_name: str, run: Path, pairs: int, names: Sequence[str]) -> dict[str, list[float]]:
    """PSNR of new runs by name of the schedule: of these of a search's front, or of the recommended one."""
    import torch

    from search.config.load import load_model
    from search.results.result import Result
    from search.validate.verifier import Verifier

    model, result = load_model(model_name), Result.load(run, pictures=False)
    entries = [entry for entry in result.of("front") if entry.name in names] or [result.best]
    verifier = Verifier(model, new_prompts(model_name, pairs), [SEED + i for i in range(pairs)], keep=True)
    values: dict[str, list[float]] = {}
    with torch.no_grad():
        for entry in entries[::-1]:  # the truest first
            values[entry.name] = verifier.measure(entry.schedule, pairs, ["psnr"])["psnr"]
            misses = sum(value < LIMIT for value in values[entry.name])
            low = 1 - greatest_miss_rate(pairs - misses, pairs, 0.975)
            high = greatest_miss_rate(misses, pairs, 0.975)
            mark = "certified" if entry.schedule.certificate else "not certified"
            print(
                f"{entry.name} ({mark}): {misses} of {pairs} new runs miss psnr>={LIMIT:g}: {misses / pairs:.1%} "
                f"[{low:.1%}, {high:.1%}], worst {min(values[entry.name]):.1f} dB, "
                f"mean {np.mean(values[entry.name]):.1f}",
                flush=True,
            )
    return values


@dataclass
class Guarded:
    """Runs of one schedule with the guard and without it: PSNR, and whether a run was found unusual."""

    plain: list[float] = field(default_factory=list)
    guarded: list[float] = field(default_factory=list)
    unusual: list[bool] = field(default_factory=list)
    blocks: int = 0  # executed in guarded runs, and in the plain ones
    blocks_plain: int = 0

    def __str__(self) -> str:
        runs, noticed = len(self.plain), sum(self.unusual)
        misses = [value < LIMIT for value in self.plain]
        both = sum(miss and unusual for miss, unusual in zip(misses, self.unusual, strict=True))
        return (
            f"{runs} runs: {sum(misses)} miss psnr>={LIMIT:g} without the guard, "
            f"{sum(value < LIMIT for value in self.guarded)} with it; {noticed} runs were unusual, {both} of these "
            f"would have missed; {self.blocks / self.blocks_plain - 1:+.1%} block executions; "
            f"mean {np.mean(self.plain):.1f} and {np.mean(self.guarded):.1f} dB"
        )


def measure_guard(model_name: str, run: Path, pairs: int, changes: Sequence[str], lora: str) -> Guarded:
    """The recommended schedule with and without its guard, under these options of the model and this LoRA."""
    import torch

    from search.config.load import load_model
    from search.models.lora import merge
    from search.objectives.psnr import Psnr
    from search.results.result import Result
    from search.schedule import Schedule

    model = load_model(model_name, *changes)
    schedule = Schedule.load(run) if run.is_file() else Result.load(run, pictures=False).best.schedule
    if lora:
        merge(model, lora)
    found = Guarded()
    with torch.no_grad():
        for prompt, number in zip(new_prompts(model_name, pairs), range(pairs), strict=True):
            given = [prompt], [SEED + number]
            teacher = model.decode(model.sample(*given), *given)
            with model.apply(schedule, strict=False) as handle:
                plain = model.sample(*given)
                found.blocks_plain += handle.stats()["block_executions"]
            with model.apply(schedule, strict=False, guard=True) as handle:
                guarded = model.sample(*given)
                stats = handle.stats()
            found.blocks += stats["block_executions"]
            found.unusual.append(stats["unusual_runs"] > 0)
            for values, latents in ((found.plain, plain), (found.guarded, guarded)):
                values += Psnr()(model.decode(latents, *given), teacher, given[0]).tolist()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 repetitions")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--values", type=Path, help="file that --store wrote")
    parser.add_argument("--model", help="measure new runs on this bundled model")
    parser.add_argument("--run", type=Path, help="folder of a finished search on it, with --guard also a schedule file")
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--schedules", nargs="*", default=[], help="names; by default the recommended one")
    parser.add_argument("--store", type=Path, help="where to write the values of new runs")
    parser.add_argument("--guard", action="store_true", help="measure what guard=True changes")
    parser.add_argument("--guidance", type=float, help="another guidance scale, with --guard")
    parser.add_argument("--lora", default="", help="weights to merge, with --guard")
    given = parser.parse_args()
    if given.guard:
        changes = [] if given.guidance is None else [f"model.guidance_scale={given.guidance}"]
        print(measure_guard(given.model, given.run, given.pairs, changes, given.lora))
        return
    if given.model:
        values = measure(given.model, given.run, given.pairs, given.schedules)
        if given.store:
            rounded = {name: [round(value, 2) for value in runs] for name, runs in values.items()}
            given.store.write_text(json.dumps(rounded), encoding="utf-8")
        return
    repetitions = 20 if given.quick else given.repetitions
    if given.values:
        values = np.array(list(json.loads(given.values.read_text(encoding="utf-8")).values()))
        repeat("stored values", stored(values), (values < LIMIT).mean(axis=1), repetitions)
        return
    draw = additive([50, 44, 40, 38.5, 37, 36, 33, 30])
    truth = (draw(np.random.default_rng(2), 200_000) < LIMIT).mean(axis=1)
    print("additive model, miss rates:", ", ".join(f"{rate:.1%}" for rate in truth))
    repeat("additive model", draw, truth, repetitions)
    power(10 * repetitions)


if __name__ == "__main__":
    main()
