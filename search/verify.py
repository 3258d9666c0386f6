"""python -m search.verify: whether a schedule still holds, on this device, checkpoint, LoRA, resolution, step count.

    python -m search.verify schedule.json lora=my_lora model.steps=30

schedule=      the schedule file
criterion=     such as "drift<=0.1 and psnr>=30"; also ssim and speedup. By default what the file itself claims:
               drift at most `tolerance` times the upper end of its interval
tolerance=1.25 how much more drift than claimed
seconds=60     time that it may take, without loading
samples=256    pictures at most
lora=          weights to merge before: a folder that peft has saved, or what pipe.load_lora_weights takes
lora_scale=1   how much of them
guidance=      the guidance scale, for model.guidance_scale
model=         the pipeline, by default the one that the schedule was searched on, called as it was there; also
               model.path=, model.steps=, model.height=, prompts.held_out=, prompts.batch=, compute.device=

The pipeline runs with and without the schedule on held-out prompts from the same noise. After 8 pictures, 16, 32, … the
95 % bootstrap interval of each mean is looked at. The schedule holds where the whole interval is within the limit, and
does not where the whole interval is beyond it; while the limit lies inside, more pictures are taken, until the time is
over. Nothing is corrected for having looked several times. A speed-up is the median of three timed rounds, and its
interval their range. Exit code: 0 it holds, 1 it does not, 2 a mistake in what was typed, 3 undecided.
"""

import html
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search import command
from search.pick import Condition, conditions
from search.result import Score, Speedup

if TYPE_CHECKING:
    from torch import Tensor

    from search.models.base import Model
    from search.objectives.drift import Drift
    from search.objectives.psnr import Psnr
    from search.objectives.ssim import Ssim
    from search.schedule import Schedule

DEFAULTS = {
    "schedule": "", "criterion": "", "tolerance": "1.25", "seconds": "60", "samples": "256", "lora": "",
    "lora_scale": "1", "guidance": "",
}  # fmt: skip
FEWEST = 8  # pictures before anything is decided
ROUNDS = 3  # of timing
DIGITS = {"dB": ".1f", "×": ".2f"}  # of a score, by its unit; others have four
EXIT = {True: 0, False: 1, None: 3}
WORDS = {True: "holds", False: "does not hold", None: "undecided"}


@dataclass(frozen=True)
class Verdict:
    """Whether a schedule holds: `passed` is None where the pictures that there was time for do not decide it.

    `scores` are measured here, `claimed` are the file's; `values` the scores of each picture. `differences` says of
    what the file records (architecture, library versions, device, the pipeline's call) what it is there and here.
    """

    passed: bool | None
    reason: str
    criterion: str
    scores: Mapping[str, Score] = field(default_factory=dict)
    claimed: Mapping[str, Score] = field(default_factory=dict)
    differences: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def samples(self) -> int:
        """Pictures that were compared."""
        return len(next(iter(self.values.values()), ()))

    @property
    def exit_code(self) -> int:
        return EXIT[self.passed]

    def __str__(self) -> str:
        lines = [f"{WORDS[self.passed]}: {self.reason}"]
        for name, score in self.scores.items():
            claim = f"   the file: {_words(name, self.claimed[name])}" if name in self.claimed else ""
            lines.append(f"  {name:<8} {_words(name, score)}{claim}")
        lines += [f"  {name}: {there} in the file, {here} here" for name, (there, here) in self.differences.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        colour = {True: "#1a7f37", False: "#b42318", None: "#8a6100"}[self.passed]
        rows = [
            f"<tr><td>{name}</td><td>{_words(name, score)}</td>"
            f"<td>{_words(name, self.claimed[name]) if name in self.claimed else ''}</td></tr>"
            for name, score in self.scores.items()
        ]
        rows += [
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(here)}</td><td>{html.escape(there)}</td></tr>"
            for name, (there, here) in self.differences.items()
        ]
        return (
            f'<p><b style="color:{colour}">{WORDS[self.passed]}</b>: {html.escape(self.reason)}</p>'
            f"<table><tr><th></th><th>here</th><th>in the file</th></tr>{''.join(rows)}</table>"
        )


def verify(
    schedule: "Schedule | str | Path",
    model: "Model | str | None" = None,
    prompts: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    tolerance: float = 1.25,
    criterion: str = "",
    seconds: float = 60.0,
    samples: int = 256,
    batch: int = 8,
    told: Callable[[str], None] = lambda text: None,
) -> Verdict:
    """Whether a schedule holds on a model, see the module. ValueError says what to type where nothing can be held.

    `model` is an adapter, as it is loaded (with a LoRA, other steps, another size), or an option such as "pixart"; by
    default the one that the file names. Prompts are by default its held-out ones; where there are fewer than pictures
    they come again with other noise. `told` gets a line after every batch.
    """
    from search.loaded import config_for, model_of
    from search.schedule import Schedule

    seed = 0
    schedule = schedule if isinstance(schedule, Schedule) else Schedule.load(schedule)
    limits = criteria(schedule, tolerance, criterion)
    if model is None or isinstance(model, str) or prompts is None:
        named = [f"model={model}"] if isinstance(model, str) else []
        config = config_for(schedule, named)
        prompts, seed = (held_out(config), config.prompts.seed) if prompts is None else (prompts, 0)
        model = model_of(config) if model is None or isinstance(model, str) else model
    return Verifier(model, prompts, seeds, batch, seed).verify(schedule, limits, seconds, samples, told)


def criteria(schedule: "Schedule", tolerance: float = 1.25, criterion: str = "") -> list[Condition]:
    """What a schedule is held to: what was typed, or `tolerance` times what its file claims."""
    if criterion:
        units = measured_units()
        known: dict[str, Any] = {"held_out": dict.fromkeys(units)}
        return conditions(criterion, [known], units)
    if not 1 <= tolerance <= 100:
        raise ValueError(f"tolerance={tolerance:g}: give 1 to 100, of the drift that the file claims; for example 1.25")
    if (claim := claims(schedule).get("drift")) is None:
        raise ValueError(
            "this schedule has no scores to hold it to; say what is good enough: "
            'criterion="drift<=0.1" or criterion="drift<=0.1 and psnr>=30"'
        )
    return [Condition("drift", "<=", tolerance * (claim.value if claim.high is None else claim.high))]


def _measured_qualities() -> "tuple[type[Drift], type[Psnr], type[Ssim]]":
    """Classes of the qualities that can be measured without a search."""
    from search.objectives.drift import Drift
    from search.objectives.psnr import Psnr
    from search.objectives.ssim import Ssim

    return Drift, Psnr, Ssim


@cache
def measured_units() -> dict[str, str]:
    """Names and units of the scores that are measured here."""
    return {about.key: about.unit for about in (*_measured_qualities(), Speedup)}


def claims(schedule: "Schedule") -> dict[str, Score]:
    """The scores of a schedule's file that can be measured again."""
    found = {}
    for name, part in schedule.scores.items():
        if name in measured_units() and part.get("split") != "calibration":
            found[name] = Score(part["value"], *(part.get("ci") or (None, None)))
    return found


class Verifier:
    """One model, prompts and noise, on which any number of schedules are verified."""

    def __init__(
        self,
        model: "Model",
        prompts: Sequence[str],
        seeds: Sequence[int] | None = None,
        batch: int = 8,
        seed: int = 0,
        keep: bool = False,
    ) -> None:
        """`seeds` of the noise by picture: there are as many pictures. Without them `seed` is that of a search.

        With `keep` the teacher's results stay in memory for the next schedule.
        """
        if not prompts or (seeds is not None and not seeds):
            raise ValueError("there is nothing to verify on; give at least one prompt, and one seed or None")
        if batch < 1:
            raise ValueError(f"prompts.batch={batch}: give 1 or more pictures to denoise together")
        self.model, self.prompts, self.batch = model, list(prompts), batch
        self.seeds, self.seed, self.keep = None if seeds is None else list(seeds), seed, keep
        self._known: dict[range, tuple[Any, Tensor, Tensor, Tensor]] = {}

    def verify(
        self,
        schedule: "Schedule",
        limits: Sequence[Condition],
        seconds: float = 60.0,
        samples: int = 256,
        told: Callable[[str], None] = lambda text: None,
        timed: bool = True,
    ) -> Verdict:
        """The verdict within some seconds, on `samples` pictures at most; without timing it says nothing of speed."""
        from search.schedule.errors import ScheduleError

        most = samples if self.seeds is None else min(samples, len(self.seeds))
        if most < FEWEST or not 0 < seconds < float("inf"):
            raise ValueError(
                f"{most} pictures in {seconds:g} s decide nothing; give samples={FEWEST} or more (as many seeds), and "
                "seconds=60 or what you have"
            )
        text = " and ".join(f"{c.name}{c.sign}{c.limit:.4g}" for c in limits)
        fixed = (text, claims(schedule), differences(schedule, self.model))
        start = time.monotonic()
        try:
            passed, reason, scores, values = self._decide(schedule, limits, start + seconds, most, told, timed)
        except ScheduleError as error:  # what apply refuses
            return _verdict(False, f"the schedule cannot run here: {error}{_remedy(fixed[2])}", *fixed, start=start)
        return _verdict(passed, reason, *fixed, scores=scores, values=values, start=start)

    def measure(self, schedule: "Schedule", count: int, names: Sequence[str] = ("drift",)) -> dict[str, list[float]]:
        """Scores of the first pictures by name: drift, psnr, ssim."""
        values: dict[str, list[float]] = {name: [] for name in names}
        for first in range(0, count, self.batch):
            for name, own in self._measure(schedule, range(first, min(first + self.batch, count)), names).items():
                values[name] += own
        return values

    def _decide(
        self,
        schedule: "Schedule",
        limits: Sequence[Condition],
        end: float,
        most: int,
        told: Callable[[str], None],
        timed: bool,
    ) -> tuple[bool | None, str, dict[str, Score], dict[str, list[float]]]:
        from search.compare import interval

        names = ["drift", "psnr", *(["ssim"] if any(c.name == "ssim" for c in limits) else [])]
        values: dict[str, list[float]] = {name: [] for name in names}
        scores: dict[str, Score] = {}
        slowest, look, first = 0.0, FEWEST, 0
        if timed or any(c.name == "speedup" for c in limits):
            told("timing, side by side")
            scores["speedup"] = self._speedup(schedule)
        passed: bool | None = None
        while first < most:
            began = time.monotonic()
            if first and began + slowest > end:
                break
            part = range(first, min(first + self.batch, most))
            for name, own in self._measure(schedule, part, names).items():
                values[name] += own
            first, slowest = part.stop, max(slowest, time.monotonic() - began)
            scores |= {name: interval(own) for name, own in values.items()}
            told(f"{first} pictures: " + ", ".join(f"{n} {_words(n, s)}" for n, s in scores.items()))
            if first >= look:
                look = 2 * first
                if (passed := _passed(limits, scores)) is not None:
                    break
        if first >= FEWEST:  # the last look, at whatever there is
            passed = _passed(limits, scores)
        return passed, _reason(passed, limits, scores, first, most), scores, values

    def _measure(self, schedule: "Schedule", part: range, names: Sequence[str]) -> dict[str, list[float]]:
        """Values by name for some of the pictures; latents and pictures of the teacher are known from then on."""
        conditions, noise, teacher, images = self._teacher(part)
        with self.model.apply(schedule):
            latents = self.model.sample(conditions, noise).cpu()
        pairs = {"latents": (latents, teacher), "images": (self.model.decode(latents).cpu(), images)}
        qualities = {name: self._qualities[name] for name in names}
        return {name: [float(v) for v in quality(*pairs[quality.of])] for name, quality in qualities.items()}

    def _teacher(self, part: range) -> "tuple[Any, Tensor, Tensor, Tensor]":
        if part in self._known:
            return self._known[part]
        from search.loaded import HELD_OUT_SEED

        conditions = self.model.encode([self.prompts[i % len(self.prompts)] for i in part])
        noise = self.model.noise([self.seeds[i] if self.seeds else HELD_OUT_SEED + self.seed + i for i in part])
        latents = self.model.sample(conditions, noise).cpu()
        found = conditions, noise, latents, self.model.decode(latents).cpu()
        if self.keep:
            self._known[part] = found
        return found

    @cached_property
    def _qualities(self) -> dict[str, Any]:
        return {kind.key: kind() for kind in _measured_qualities()}

    def _speedup(self, schedule: "Schedule") -> Score:
        import statistics

        from search.evaluate.timing import measure

        with_it, without = measure(self.model, [schedule, None], ROUNDS)
        ratios = [b / a for a, b in zip(with_it, without, strict=True)]
        return Score(statistics.median(ratios), min(ratios), max(ratios))


def differences(schedule: "Schedule", model: "Model") -> dict[str, tuple[str, str]]:
    """What the file records and is another here, by name: (there, here)."""
    made, own = schedule.made, schedule.to_dict()["model"]
    there = {name: own.get(name) for name in ("class", "fingerprint")}
    here = {name: model.target.model.get(name) for name in there}
    here |= {"model": model.name} | environment(model)
    there |= {name: made.get(name) for name in ("model", "python", "torch", "diffusers")}
    there["device"] = re.sub(r"\s*\d+ threads$", "", str(made.get("device", "")))
    call = made.get("call")
    for name, value in (call if isinstance(call, dict) else {}).items():
        there[name], here[name] = value, model.arguments.get(name, value)
    return {k: (str(v), str(here[k])) for k, v in there.items() if v not in (None, "") and str(v) != str(here[k])}


def environment(model: "Model") -> dict[str, str]:
    """Library versions and device, as a search records them."""
    import platform

    import diffusers
    import torch

    chip = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else platform.processor()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__}
    return versions | {"device": f"{model.device} {chip}".strip()}


def decided(limit: Condition, score: Score) -> bool | None:
    """Whether a limit is surely kept, surely not, or neither is sure."""
    whole = {"value": score.value, "low": score.low, "high": score.high}
    if limit.surely({"held_out": {limit.name: whole}}):
        return True
    ends = [v for v in whole.values() if v is not None]
    return None if any(limit.holds({"held_out": {limit.name: {"value": v}}}) for v in ends) else False


def _passed(limits: Sequence[Condition], scores: Mapping[str, Score]) -> bool | None:
    found = [decided(limit, scores[limit.name]) for limit in limits]
    return False if False in found else None if None in found else True


def _reason(
    passed: bool | None, limits: Sequence[Condition], scores: Mapping[str, Score], count: int, most: int
) -> str:
    kept = {True: "is surely", False: "is surely not", None: "may be or not be"}
    parts = []
    for limit in limits:
        found = decided(limit, scores[limit.name])
        if found is passed:
            measured = f"{limit.name} {_words(limit.name, scores[limit.name])}"
            parts.append(f"{measured} {kept[found]} {limit.sign} {limit.limit:.4g}")
    text = f"{' and '.join(parts)}, {count} pictures"
    if passed is not None:
        return text
    more = "longer with seconds=" if count < most else "more with samples="
    few = f", of which {FEWEST} are needed" if count < FEWEST else ""
    return f"{text}{few}; look {more}, or say what is good enough with criterion="


def _remedy(differing: Mapping[str, tuple[str, str]]) -> str:
    if "class" in differing:
        return ""
    if {"num_inference_steps", "fingerprint", "height", "width", "guidance_scale"} & set(differing):
        return "; python -m search.transfer carries it over"
    return ""


def _verdict(
    passed: bool | None,
    reason: str,
    criterion: str,
    claimed: Mapping[str, Score],
    differing: Mapping[str, tuple[str, str]],
    scores: Mapping[str, Score] | None = None,
    values: Mapping[str, Sequence[float]] | None = None,
    start: float = 0.0,
) -> Verdict:
    return Verdict(passed, reason, criterion, scores or {}, claimed, differing, values or {}, time.monotonic() - start)


def _words(name: str, score: Score) -> str:
    unit = measured_units().get(name, "")
    digits, unit = DIGITS.get(unit, ".4f"), {"ratio": "", "dB": " dB"}.get(unit, unit)
    span = "" if score.low is None else f" [{score.low:{digits}}, {score.high:{digits}}]"
    return f"{score.value:{digits}}{unit}{span}"


def loaded(options: command.Options, steps: str = "") -> "tuple[Schedule, Model, Any]":
    """What the options of this command and of transfer name: schedule, model with its LoRA, and configuration."""
    from search.loaded import config_for, model_of
    from search.lora import merge
    from search.schedule import Schedule

    if not options["schedule"]:
        raise ValueError("which schedule? Type its file first: schedule.json, as python -m search.export writes it")
    schedule = Schedule.load(options["schedule"])
    overrides = list(options.overrides)
    overrides += [f"++model.guidance_scale={options['guidance']}"] if options["guidance"] else []
    overrides += [f"++model.steps={steps}"] if steps else []
    config = config_for(schedule, overrides)
    model = model_of(config)
    if options["lora"]:
        merge(model, options["lora"], number("lora_scale", options, DEFAULTS))
    return schedule, model, config


def held_out(config: Any, overrides: Sequence[str] = ()) -> list[str]:
    """All held-out prompts of the file, those that searches report on first; fewer where that was typed."""
    from search.loaded import prompts_of

    typed = any("prompts.held_out_count=" in override for override in overrides)
    return prompts_of(config.prompts if typed else config.prompts.model_copy(update={"held_out_count": None}))[1]


def number(name: str, options: command.Options, defaults: Mapping[str, str]) -> float:
    """A number that was typed; ValueError names it."""
    try:
        return float(options[name])
    except ValueError:
        raise ValueError(f"{name}={options[name]!r} is no number; type for example {name}={defaults[name]}") from None


def main(arguments: list[str]) -> int:
    """Parse `key=value`, verify, print the verdict; the exit code says it too."""
    return command.run(arguments, __doc__, _work, DEFAULTS, first="schedule", configurable=True)


def _work(options: command.Options) -> int:
    from rich.console import Console

    from search.schedule import Schedule

    given = {name: number(name, options, DEFAULTS) for name in ("tolerance", "seconds", "samples")}
    if options["schedule"]:  # what there is nothing to hold to need not be loaded
        limits = criteria(Schedule.load(options["schedule"]), given["tolerance"], options["criterion"])
    with Console(stderr=True).status("loading") as status:
        schedule, model, config = loaded(options)
        prompts = held_out(config, options.overrides)
        verifier = Verifier(model, prompts, batch=config.prompts.batch, seed=config.prompts.seed)
        verdict = verifier.verify(schedule, limits, given["seconds"], int(given["samples"]), status.update)
    print(verdict)
    print(f"  {verdict.seconds:.0f} s; criterion {verdict.criterion}")
    return verdict.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
