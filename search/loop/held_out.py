"""Score the front and the baselines on held-out prompts and noise."""

import itertools
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from search.calibrate.propose.baselines import shorter_runs
from search.calibrate.timing import time_schedules
from search.config.load import HELD_OUT_SEED
from search.evaluate.evaluator import Evaluator
from search.evaluate.execute.jobs import Job
from search.evaluate.guard import Guard
from search.loop.progress import OnProgress
from search.models.base import to_schedule
from search.objectives.base import Objective, Reward
from search.objectives.drift import Drift
from search.objectives.latency import Latency
from search.objectives.macs import Macs
from search.objectives.memory import Memory
from search.objectives.psnr import Psnr
from search.objectives.ssim import Ssim
from search.pareto.domination import thin
from search.results.compare import held_out_gaps, mark_dominated, recommended_name, reward_warnings, summarise_scores
from search.results.result import Entry, Result
from search.results.scores import Score, Speedup
from search.schedule import Schedule

if TYPE_CHECKING:
    from search.loop.search import Search


MOST_ON_FRONT = 12
SHOWN = 8
HIGHEST = 512  # pixels of a picture that is kept: there are SHOWN of them for every entry
REPEATS = 3
SHORTER = (15, 12, 10, 8, 6)
VISIBLE = 30.0  # dB of PSNR against the teacher: differences below are usually seen


def collect_result(search: "Search", stopped: str, told: OnProgress = lambda what, done, total: None) -> Result:
    """The result with all its scores; `told` hears how far it is."""
    config, state, target = search.config, search.state, search.target
    objectives: dict[str, Objective] = {o.key: o for o in (Drift(), Psnr(), Ssim(), Macs(), Latency(), Memory())}
    seeds = [HELD_OUT_SEED + config.prompts.seed + i for i in range(len(search.held_out))]
    held_out = Evaluator(
        search.model,
        search.held_out,
        seeds,
        objectives,
        state.costs,
        search.memo,
        config.prompts.batch,
        search.workers or search.local,
        Guard(config.budget.patience, config.budget.failures, search.tell, "held-out"),
    )
    usable, left_out = held_out.usable(search.objectives | search.unused)
    held_out.add(usable)
    teacher = to_schedule(search.model, {})

    archive = list(state.archive.values())
    worst = [o.minimised(o.worst(state.costs)) for o in search.objectives.values()]
    front = thin([a["scores"] for a in archive], worst, MOST_ON_FRONT) if archive else []
    picked = [archive[i] for i in front]
    found = dict.fromkeys(_corrected(search, search.chosen(a), search.plain(a["x"])) for a in picked)
    found.pop(teacher, None)
    presets = {name: search.plain(x) for name, x in state.presets.items()}
    presets |= shorter_runs(target, search.model.shorter, SHORTER)

    everyone = [*found, *presets.values(), teacher]
    times = dict(
        zip(everyone, time_schedules(search.model, everyone, REPEATS, done=partial(told, "timing")), strict=True)
    )
    band = _seed_band(held_out, seeds)

    left_out |= _score(held_out, everyone, partial(told, "held-out prompts"))  # values are known from here on
    objectives = held_out.objectives
    searched = [name for name in search.objectives if name in objectives]
    unused = [name for name in search.unused if name in objectives]

    drawn = itertools.count(1)

    def entry(name: str, role: str, schedule: Schedule) -> Entry:
        held = held_out.values(schedule)
        calibration = state.archive.get(schedule.digest, {}).get("values")
        calibration = calibration or search.evaluator.values(schedule)
        scores = summarise_scores(held, objectives) | _times(times[schedule], times[teacher])
        told("pictures", next(drawn), len(everyone))
        return Entry(
            name or f"{scores['speedup'].value:.1f}× · drift {scores['drift'].value:.3f}",
            role,
            _with_scores(search, schedule, scores),
            summarise_scores(calibration, search.objectives),
            scores,
            _pictures(held_out.decode(held_out.latents(schedule)[:SHOWN])),
            held_out_gaps(held, calibration, search.objectives),
            samples=held,
        )

    entries = [entry("", "front", schedule) for schedule in found if schedule.digest not in held_out.failed]
    entries.sort(key=lambda e: e.held_out["macs"].value)
    _make_unique(entries)
    sound = {name: schedule for name, schedule in presets.items() if schedule.digest not in held_out.failed}
    entries += [entry(name, "preset", schedule) for name, schedule in sound.items()]
    entries.append(entry("teacher", "teacher", teacher))
    mark_dominated(entries, objectives, searched)
    held_out.guard.save(search.quarantine)
    described: dict[str, Objective | type[Speedup]] = {**objectives, Speedup.key: Speedup}
    return Result(
        search_id=search.folder.name,
        folder=search.folder,
        model=config.model["name"],
        space="+".join(config.space),
        objectives=searched,
        units={name: about.unit for name, about in described.items()},
        better={name: about.better for name, about in described.items()},
        kinds={name: about.kind for name, about in described.items()},
        labels={name: about.label or name for name, about in described.items()},
        shares=[name for name, about in described.items() if about.share],
        entries=entries,
        history=state.history,
        points=[
            {k: float(np.mean(v)) for k, v in a["values"].items()} | {"generation": a["generation"], "digest": digest}
            for digest, a in state.archive.items()
        ],
        prompts={"calibration": search.calibration, "held_out": search.held_out},
        shown=search.held_out[:SHOWN],
        recommended=recommended_name(entries, VISIBLE),
        no_visible_loss=VISIBLE,
        config=config.model_dump(mode="json"),
        environment=environment_of(search)
        | {"seed_to_seed_psnr_db": f"{band[0]:.1f} (90 % in {band[1]:.1f} to {band[2]:.1f})"},
        stopped=stopped,
        guard=unused,
        notes=_notes(search, held_out, entries, left_out, searched, unused),
    )


def _score(held_out: Evaluator, schedules: Sequence[Schedule], told: Callable[[int, int], None]) -> dict[str, str]:
    """Score a population; objectives that fail too often are given up, and why is what is returned."""
    held_out.evaluate([Job(schedule) for schedule in schedules], done=lambda count: told(count, len(schedules)))
    if not held_out.guard.exhausted:
        return {}
    given_up = {failure.objective: failure.reason for failure in held_out.guard.failures}
    for name in given_up:
        held_out.objectives.pop(name)
    held_out.guard.most = None
    held_out.failed.clear()
    held_out.evaluate([Job(schedule) for schedule in schedules])
    return given_up


def _notes(
    search: "Search",
    held_out: Evaluator,
    entries: Sequence[Entry],
    left_out: Mapping[str, str],
    searched: Sequence[str],
    unused: Sequence[str],
) -> list[str]:
    """What a reader should know before believing the scores."""
    notes = reward_warnings(entries, held_out.objectives, searched, unused)
    if not any(isinstance(held_out.objectives[name], Reward) for name in unused):
        instead = f"; reported instead: {', '.join(unused)}" if unused else ""
        why = next(iter((search.unusable | dict(left_out)).values()), "every reward of guard= is searched")
        notes.append(f"no reward that was not searched is reported{instead} ({why})")
    notes += [
        f"{name} is not reported on held-out prompts: {why}" for name, why in left_out.items() if name in searched
    ]
    for guard in (search.guard, held_out.guard):
        notes += [f"{guard.summary}; see {search.quarantine.name}"] if guard.failures else []
    if behind := [entry for entry in entries if entry.behind]:
        notes.append(f"{len(behind)} on the front are surely dominated by others on held-out prompts, and marked so")
    return notes


def _corrected(search: "Search", schedule: Schedule, plain: Schedule) -> Schedule:
    """The schedule, or with its reused values corrected and then its solver fitted, whichever drifts less."""
    if not search.config.correct or (corrected := search.corrector.fit(plain)) == plain:
        return schedule
    if search.config.refit and search.fits:
        corrected = search.evaluator.fit(corrected)
    return min(corrected, schedule, key=lambda option: mean_drift(search, option))


def mean_drift(search: "Search", schedule: Schedule) -> float:
    """Mean drift on the calibration prompts."""
    evaluator = search.evaluator
    return float(Drift()(evaluator.latents(schedule), evaluator.teacher).mean())


def _times(own: Sequence[float], teacher: Sequence[float]) -> dict[str, Score]:
    """Milliseconds and speed-up over the bare pipeline's schedule: medians with their range, round by round."""
    ratios = [b / a for a, b in zip(own, teacher, strict=True)]
    return {
        "latency": Score(statistics.median(own), min(own), max(own)),
        "speedup": Score(statistics.median(ratios), min(ratios), max(ratios)),
    }


def _with_scores(search: "Search", schedule: Schedule, scores: Mapping[str, Score]) -> Schedule:
    def part(name: str, s: Score) -> dict[str, Any]:
        split = "device" if name in ("latency", "speedup") else "held_out"
        ci = {} if s.low is None or s.high is None else {"ci": [s.low, s.high]}
        return {"value": s.value, "split": split} | ci

    made = {
        "search": search.folder.name,
        "model": search.config.model["name"],
        "call": dict(search.model.arguments),
        "prompts": {"calibration": len(search.calibration), "held_out": len(search.held_out)},
        "seed": search.config.seed,
        "block_executions": round(search.state.block_executions),
        **environment_of(search),
    }
    return schedule.with_scores({k: part(k, s) for k, s in scores.items()}).with_made(made)


def _pictures(images: Tensor) -> list[np.ndarray]:
    """Pictures [B, 3, H, W] in 0..1 as those that people look at: bytes [H, W, 3], at most HIGHEST high."""
    if (height := images.shape[-2]) > HIGHEST:
        size = HIGHEST, max(1, round(images.shape[-1] * HIGHEST / height))
        images = torch.nn.functional.interpolate(images.float(), size, mode="bilinear", antialias=True).clamp(0, 1)
    return list((images * 255).round().byte().permute(0, 2, 3, 1).numpy())


def _seed_band(held_out: Evaluator, seeds: Sequence[int]) -> tuple[float, float, float]:
    """PSNR in dB between the teacher's pictures of one prompt and two seeds: mean, 5 % and 95 % quantile."""
    model = held_out.model
    count = min(len(seeds), 16)
    conditions = model.encode(held_out.prompts[:count])
    other = model.decode(model.sample(conditions, model.noise([s + 5_000 for s in seeds[:count]]))).cpu()
    values = Psnr()(other, held_out.teacher_images[:count]).numpy()
    return float(values.mean()), *np.quantile(values, [0.05, 0.95]).tolist()


def _make_unique(entries: Sequence[Entry]) -> None:
    seen: dict[str, int] = {}
    for e in entries:
        seen[e.name] = seen.get(e.name, 0) + 1
        if seen[e.name] > 1:
            e.name += f" ({seen[e.name]})"


def environment_of(search: "Search") -> dict[str, str]:
    import diffusers

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    gpu = torch.cuda.get_device_name() if search.model.device.type == "cuda" else platform.processor()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "device": f"{search.model.device} {gpu} {torch.get_num_threads()} threads".replace("  ", " "),
        "git": commit,
    }
