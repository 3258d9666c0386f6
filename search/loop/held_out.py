"""Score the front and the baselines on held-out prompts and noise."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from search.calibrate.propose.baselines import shorter_runs
from search.calibrate.timing import time_schedules
from search.config.load import HELD_OUT_SEED
from search.evaluate.evaluator import Evaluator
from search.evaluate.execute.jobs import Job
from search.evaluate.guard import Guard
from search.loop.attribution import attribution_of
from search.loop.certification import Certification
from search.loop.entries import SHOWN, EntryBuilder, make_names_unique
from search.loop.finished import FinishedSearch
from search.loop.progress import OnProgress, ignore_progress
from search.models.base import to_schedule
from search.objectives.base import Objective, Reward
from search.objectives.drift import Drift
from search.objectives.latency import Latency
from search.objectives.macs import Macs
from search.objectives.memory import Memory
from search.objectives.psnr import Psnr
from search.objectives.ssim import Ssim
from search.pareto.domination import non_dominated, thin
from search.results.compare import mark_dominated, recommended_name, reward_warnings, tuned_reward_warning
from search.results.result import FITTED, Entry, Result
from search.results.scores import Speedup
from search.schedule import Schedule
from search.validate.environment import search_environment

MOST_ON_FRONT = 12
REPEATS = 3  # rounds of timing
SHORTER = (15, 12, 10, 8, 6)  # steps of the teacher with fewer steps, which are reported as presets


def collect_result(finished: FinishedSearch, on_progress: OnProgress = ignore_progress) -> Result:
    """Score the front, the presets and the teacher on held-out prompts, with timing and pictures."""
    model = finished.model
    seeds = [HELD_OUT_SEED + finished.config.prompts.seed + i for i in range(len(finished.held_out_prompts))]
    held_out, left_out = _held_out_evaluator(finished, seeds)
    teacher = to_schedule(model, {})
    front, presets = _front_schedules(finished, teacher), _preset_schedules(finished)
    presets |= _fitted_presets(finished, presets)

    schedules = [*front, *presets.values(), teacher]
    on_time = partial(on_progress, "timing")
    times = dict(zip(schedules, time_schedules(model, schedules, REPEATS, on_done=on_time), strict=True))
    band = _psnr_between_seeds(held_out, seeds)
    left_out |= _score(held_out, schedules, partial(on_progress, "held-out prompts"))  # values are known from here on

    builder = EntryBuilder(finished, held_out, times, teacher, len(schedules), on_progress)
    entries = _entries(builder, front, presets)
    searched = [name for name in finished.objectives if name in held_out.objectives]
    reported = [name for name in finished.reported if name in held_out.objectives]
    mark_dominated(entries, held_out.objectives, searched)
    certification = Certification(finished, held_out, entries)
    certify = certification.certify(on_progress)
    recommended = recommended_name(entries)
    best = next(entry for entry in entries if entry.name == recommended)
    attribution = attribution_of(best, finished, held_out, on_progress)
    held_out.guard.save(finished.quarantine)
    return Result(
        search_id=finished.folder.name,
        folder=finished.folder,
        model=finished.config.model["name"],
        space="+".join(finished.config.space),
        objectives=searched,
        **_descriptions(held_out.objectives),
        entries=entries,
        history=finished.state.history,
        points=_points(finished),
        prompts={"calibration": finished.evaluator.prompts, "held_out": list(finished.held_out_prompts)},
        shown=list(finished.held_out_prompts[:SHOWN]),
        recommended=recommended,
        config=finished.config.model_dump(mode="json"),
        environment=search_environment(model)
        | {"seed_to_seed_psnr_db": f"{band[0]:.1f} (90 % in {band[1]:.1f} to {band[2]:.1f})"},
        certify=certify,
        attribution=attribution,
        stopped=finished.stopped,
        guard=reported,
        notes=_notes(finished, held_out, entries, left_out, searched, reported)
        + ([certification.problem] if certification.problem else []),
    )


def _held_out_evaluator(finished: FinishedSearch, seeds: Sequence[int]) -> tuple[Evaluator, dict[str, str]]:
    """The evaluator of the held-out prompts, and why it leaves out some of the search's objectives."""
    config, calibration = finished.config, finished.evaluator
    always: dict[str, Objective] = {o.key: o for o in (Drift(), Psnr(), Ssim(), Macs(), Latency(), Memory())}
    held_out = Evaluator(
        finished.model,
        finished.held_out_prompts,
        seeds,
        always,
        finished.state.costs,
        calibration.memo,
        config.prompts.batch,
        calibration.runner,
        Guard(config.budget.patience, config.budget.failures, finished.on_message, "held-out"),
    )
    usable, left_out = held_out.scorer.usable({**finished.objectives, **finished.reported})
    held_out.scorer.add(usable)
    return held_out, left_out


def _front_schedules(finished: FinishedSearch, teacher: Schedule) -> list[Schedule]:
    """At most MOST_ON_FRONT schedules of the front, corrected where the search asks for it, without the teacher."""
    archive, candidates = list(finished.state.archive.values()), finished.candidates
    if not archive:
        return []
    worst = [o.minimised(o.worst(finished.state.costs)) for o in finished.objectives.values()]
    picked = [archive[i] for i in thin([entry["scores"] for entry in archive], worst, MOST_ON_FRONT)]
    schedules = dict.fromkeys(
        candidates.corrected(candidates.schedule_of(entry), candidates.plain_schedule(entry["x"])) for entry in picked
    )
    schedules.pop(teacher, None)
    return list(schedules)


def _preset_schedules(finished: FinishedSearch) -> dict[str, Schedule]:
    """The published rules, and the teacher with fewer steps, by name."""
    presets = {name: finished.candidates.plain_schedule(row) for name, row in finished.state.presets.items()}
    return presets | shorter_runs(finished.model.target, finished.model.shorter, SHORTER)


def _fitted_presets(finished: FinishedSearch, presets: Mapping[str, Schedule]) -> dict[str, Schedule]:
    """Presets with their solvers fitted like those of candidates, where the search fits these.

    Only those that no other one is ahead of on the calibration prompts: each of them is scored, timed and drawn.
    """
    if not finished.config.refit or not finished.candidates.solvers_can_be_fitted:
        return {}
    pairs = [(name, schedule, finished.evaluator.fit(schedule)) for name, schedule in presets.items()]
    fitted = {name + FITTED: fitted for name, schedule, fitted in pairs if fitted != schedule}
    if not fitted:
        return {}
    scored = finished.evaluator.evaluate([Job(schedule) for schedule in fitted.values()])
    best = non_dominated(np.array([each.minimised for each in scored]))
    return {name: schedule for (name, schedule), is_best in zip(fitted.items(), best, strict=True) if is_best}


def _entries(builder: EntryBuilder, front: Sequence[Schedule], presets: Mapping[str, Schedule]) -> list[Entry]:
    """The front by cost, then the presets, the teacher last; schedules that could not be scored are left out."""
    failed = builder.held_out.scorer.failed
    entries = [builder.entry("", "front", schedule) for schedule in front if schedule.digest not in failed]
    entries.sort(key=lambda entry: entry.held_out["macs"].value)
    make_names_unique(entries)
    scored = {name: schedule for name, schedule in presets.items() if schedule.digest not in failed}
    entries += [builder.entry(name, "preset", schedule) for name, schedule in scored.items()]
    return [*entries, builder.entry("teacher", "teacher", builder.teacher)]


def _descriptions(objectives: Mapping[str, Objective]) -> dict[str, Any]:
    """The fields of a result that describe its scores by name, as their classes state them."""
    described: dict[str, Objective | type[Speedup]] = {**objectives, Speedup.key: Speedup}
    return {
        "units": {name: about.unit for name, about in described.items()},
        "better": {name: about.better for name, about in described.items()},
        "kinds": {name: about.kind for name, about in described.items()},
        "labels": {name: about.label or name for name, about in described.items()},
        "shares": [name for name, about in described.items() if about.share],
    }


def _points(finished: FinishedSearch) -> list[dict[str, Any]]:
    """Every evaluated candidate: its mean values on the calibration prompts, its generation and digest."""
    return [
        {name: float(np.mean(values)) for name, values in entry["values"].items()}
        | {"generation": entry["generation"], "digest": digest}
        for digest, entry in finished.state.archive.items()
    ]


def _score(
    held_out: Evaluator, schedules: Sequence[Schedule], on_progress: Callable[[int, int], None]
) -> dict[str, str]:
    """Score the schedules; returns the objectives that failed too often and are given up, each with its reason."""
    jobs = [Job(schedule) for schedule in schedules]
    held_out.evaluate(jobs, on_done=lambda count: on_progress(count, len(jobs)))
    if not held_out.guard.exhausted:
        return {}
    given_up = {failure.objective: failure.reason for failure in held_out.guard.failures}
    for name in given_up:
        held_out.objectives.pop(name)
    held_out.guard.most = None
    held_out.scorer.failed.clear()
    held_out.evaluate([Job(schedule) for schedule in schedules])
    return given_up


def _notes(
    finished: FinishedSearch,
    held_out: Evaluator,
    entries: Sequence[Entry],
    left_out: Mapping[str, str],
    searched: Sequence[str],
    reported: Sequence[str],
) -> list[str]:
    """What a reader should know before believing the scores."""
    tuned_on, every = finished.model.tuned_on, held_out.objectives
    notes = [text] if (text := tuned_reward_warning(tuned_on, every, searched, reported)) else []
    notes += reward_warnings(entries, every, searched, reported)
    if not any(isinstance(held_out.objectives[name], Reward) for name in reported):
        instead = f"; reported instead: {', '.join(reported)}" if reported else ""
        why = next(iter({**finished.unusable, **left_out}.values()), "every reward of guard= is searched")
        notes.append(f"no reward that was not searched is reported{instead} ({why})")
    notes += [
        f"{name} is not reported on held-out prompts: {why}" for name, why in left_out.items() if name in searched
    ]
    for guard in (finished.evaluator.guard, held_out.guard):
        notes += [f"{guard.summary}; see {finished.quarantine.name}"] if guard.failures else []
    if dominated := [entry for entry in entries if entry.behind]:
        notes.append(f"{len(dominated)} on the front are surely dominated by others on held-out prompts, and marked so")
    return notes


def _psnr_between_seeds(held_out: Evaluator, seeds: Sequence[int]) -> tuple[float, float, float]:
    """PSNR in dB between the teacher's pictures of one prompt and two seeds: mean, 5 % and 95 % quantile."""
    model = held_out.model
    count = min(len(seeds), 16)
    prompts, others = held_out.prompts[:count], [seed + 5_000 for seed in seeds[:count]]
    other = model.decode(model.sample(prompts, others), prompts, others).cpu()
    values = Psnr()(other, held_out.scorer.teacher_images[:count]).numpy()
    return float(values.mean()), *np.quantile(values, [0.05, 0.95]).tolist()
