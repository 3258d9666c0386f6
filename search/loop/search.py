"""One search: prepare, then ask, decode, evaluate and tell until the budget is spent."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from search.calibrate.latency import add_latency
from search.calibrate.propose.proposals import Proposals
from search.calibrate.ranges import needs_ranges, target_with_ranges
from search.config.load import model_from_config, prompts_from_config
from search.config.settings import Config
from search.engines.base import EngineInputs
from search.evaluate.evaluator import Evaluator
from search.evaluate.execute.executors import Workers, check_compute, start_workers
from search.evaluate.execute.jobs import Job
from search.evaluate.execute.runner import Runner
from search.evaluate.execute.states import StateCache
from search.evaluate.fit.corrections import Corrector
from search.evaluate.guard import Failure, Guard, SafeCost
from search.evaluate.memo import Memo
from search.loop import checkpoint
from search.loop.progress import progress_bar
from search.loop.state import SearchState, log
from search.models.base import Model, to_schedule
from search.objectives.base import Cost, Objective, Quality
from search.objectives.drift import Drift
from search.pareto.domination import hypervolume, non_dominated
from search.profile.costs import Costs
from search.schedule import Schedule
from search.spaces.base import Space
from search.spaces.joint import JointSpace
from search.tracking.tracker import Tracker

PROBED = 2  # prompts of the propagation rollouts
RANGED = 8  # prompts that activation ranges are measured on


class Search:
    """One search on one model: `prepare`, then `loop` until the budget is spent."""

    def __init__(self, config: Config, console: Console) -> None:
        self.config, self.console = config, console
        check_compute(config.compute)
        if config.compute.threads:
            torch.set_num_threads(config.compute.threads)
        torch.set_grad_enabled(False)
        self.space: Space = space_of(config)
        self.objectives: dict[str, Objective] = {k: instantiate(v) for k, v in config.objective.items()}
        self.unused = {k: instantiate(v) for k, v in config.guard.items() if k not in config.objective}
        self.guard = Guard(config.budget.patience, config.budget.failures, self.tell)
        self.calibration, self.held_out = prompts_from_config(config.prompts)
        self.note: Callable[[str], None] = lambda text: None  # told what is being prepared
        self.workers: Workers | None = None
        self.tracker: Tracker | None = None
        self.model: Model = model_from_config(config)
        self.target = self.model.target

    def prepare(self, folder: Path) -> None:
        """Cost tables, the teacher, and either the folder's checkpoint or a new engine with its seeds."""
        self.folder, self.checkpoint, self.quarantine = folder, folder / "checkpoint.pkl", folder / "quarantine.json"
        memo = Path(self.config.runs) / "memo.sqlite"  # of all searches: what one has measured, the next one knows
        if needs_ranges(self.space):  # ranges of activations are measured before anything is decoded
            self.target = self.model.target = target_with_ranges(self.model, *self._first(RANGED))
        target = self.target
        self.memo = Memo(memo, spare=folder / "memo.sqlite", told=self.tell)
        if checkpoint.checkpoint_exists(self.checkpoint):
            self.state = SearchState.load(self.checkpoint, self.tell)
            self.evaluator = self._evaluator(self.state.costs)
            evaluator, state = self.evaluator, self.state
            self.before = state.block_executions - evaluator.block_executions, state.unshared - evaluator.unshared
            self.evaluator.counted |= state.counted
            self.evaluator.halved |= state.halved
            self._try()
            return
        genes = self.space.genes(target)  # a space that does not apply says so before anything is measured
        costs = self.model.costs()
        self.console.print(
            f"{target.tree.model_class}: {describe_blocks(target.tree.stacks)}, {target.steps} steps, "
            f"{costs.teacher_macs / 1e9:.2f} GMACs a picture; keeping every component's output takes "
            f"{costs.all_bytes / 2**20:.1f} MiB a picture"
        )
        costs = add_latency(self.model, costs)
        self.evaluator = self._evaluator(costs)
        self._try()
        probe = Evaluator(
            self.model,
            self.calibration[:PROBED],
            self._seeds(len(self.calibration[:PROBED])),
            {"drift": Drift()},
            costs,
            self.memo,
            runner=self.local,
        )
        careful = Guard(self.config.budget.patience)  # what is proposed is no candidate yet
        objectives = [SafeCost(n, o, careful) if isinstance(o, Cost) else o for n, o in self.objectives.items()]
        proposals = Proposals(self.space, target, self.model, probe, costs, objectives, self.note)
        start = EngineInputs(
            genes,
            len(self.objectives),
            np.random.default_rng(self.config.seed),
            proposals.begin(self.config.initial),
            np.array([o.minimised(o.worst(costs)) for o in self.objectives.values()]),
            proposals.methods(),
            proposals.table,
            proposals.prior(),
        )
        engine = instantiate(self.config.engine | {"_partial_": True})(start)
        presets = proposals.presets()
        self.before, own = (probe.block_executions, probe.unshared), self.evaluator
        spent = probe.block_executions + own.block_executions, probe.unshared + own.unshared
        self.state = SearchState(engine, costs, presets, *spent)
        self._save()

    def loop(self) -> str:
        """Evaluate generations until the budget is spent; returns why it stopped early, or nothing."""
        began = time.monotonic() - self.state.seconds
        try:
            with progress_bar(self.console) as progress:
                task = progress.add_task("search", total=self.config.budget.evaluations, note="")
                while not self._spent(time.monotonic() - began):
                    rows = self.state.engine.ask(self._room())
                    if not len(rows):
                        return "the engine has nothing left to try"

                    def tell(count: int) -> None:
                        done = self.state.asked + count
                        rate = done / max(time.monotonic() - began, 1e-9)
                        progress.update(task, completed=done, note=f"{rate:.1f}/s  {self._best()}")

                    self.state.engine.tell(rows, self._evaluate(rows, done=tell))
                    if not self.state.generation:  # so that the front is nowhere behind them on these prompts
                        self._evaluate(self.state.presets.values(), plain=True)
                    self._close_generation(len(rows), time.monotonic() - began)
                    if self.guard.exhausted:
                        return f"{self.guard.summary}; see {self.quarantine}"
        except KeyboardInterrupt:
            return "stopped by Ctrl-C"
        return ""

    def plain(self, row: np.ndarray) -> Schedule:
        """The schedule of a row as its genes say it, its solver not fitted."""
        return self._job(row, plain=True).schedule

    def chosen(self, entry: Mapping[str, Any]) -> Schedule:
        """The schedule of an entry of the archive."""
        job = self._job(entry["x"], entry["plain"])
        return self.evaluator.fit(job.schedule) if job.fit else job.schedule

    @cached_property
    def corrector(self) -> Corrector:
        """Fits corrections of reused values on the first calibration prompts and their noise."""
        return Corrector(self.model, *self.evaluator.inputs[0])

    @cached_property
    def fits(self) -> bool:
        """Whether solvers can be fitted: not where the scheduler runs no tables."""
        if reason := self.evaluator.fits():
            self.console.print(f"[yellow]solvers are not fitted: {reason}[/yellow]")
        return not reason

    def _job(self, row: np.ndarray, plain: bool = False) -> Job:
        """What is run for a row: with `refit`, or where its genes ask for it, its solver is fitted."""
        parts = dict(self.space.decode(row, self.target))
        wanted = parts.pop("fit", False) or self.config.refit
        return Job(to_schedule(self.model, parts), bool(parts and wanted and not plain and self.fits))

    def _evaluate(
        self, rows: Iterable[np.ndarray], plain: bool = False, done: Callable[[int], None] = lambda count: None
    ) -> np.ndarray:
        """Scores [N, M] of rows; what was run on all prompts goes to the archive."""
        rows = list(rows)
        scored = self.evaluator.evaluate([self._job(row, plain) for row in rows], self._rivals(), done)
        for row, found in zip(rows, scored, strict=True):
            if not found.values:
                self.state.lost += not found.failed
                self.state.failed += bool(found.failed)
            elif found.schedule.digest not in self.state.archive:
                self.state.archive[found.schedule.digest] = {
                    "x": row.copy(),
                    "values": found.values,
                    "scores": found.told,
                    "generation": self.state.generation,
                    "plain": plain,
                }
        self.state.block_executions = self.before[0] + self.evaluator.block_executions
        self.state.unshared = self.before[1] + self.evaluator.unshared
        return np.array([found.told for found in scored])

    def _rivals(self) -> list[Schedule]:
        """The front so far, which candidates have to be near to be run on all prompts."""
        entries = list(self.state.archive.values())
        if len(self.evaluator.batches) == 1 and not self.evaluator.decodes:
            return []
        return [self.chosen(entries[i]) for i in np.flatnonzero(non_dominated(self._scores()))] if entries else []

    def _close_generation(self, rows: int, seconds: float) -> None:
        state = self.state
        state.asked += rows
        state.seconds = seconds
        state.history.append(
            {
                "generation": state.generation,
                "evaluations": state.asked,
                "distinct": len(state.archive),
                "lost": state.lost,
                "failed": state.failed,
                "halved": len(self.evaluator.halved),
                "block_executions": round(state.block_executions),
                "unshared": round(state.unshared),
                "hypervolume": self.hypervolume([a["scores"] for a in state.archive.values()]),
                "front": int(non_dominated(self._scores()).sum()),
                "seconds": round(seconds, 1),
                **state.engine.report,
            }
        )
        state.generation += 1
        log.info("generation %s", state.history[-1])
        self._save()
        if self.tracker is not None:
            self.tracker.generation(state.history[-1])

    def _try(self) -> None:
        """Every objective on the teacher's own results: what cannot work is told before anything is spent."""
        for name, apart in self.evaluator.trial().items():
            reason = f"is not deterministic: two calls on the same {{}} differ by {apart:.3g}; the first one is kept"
            quality = self.objectives[name]
            assert isinstance(quality, Quality)
            self.guard.note(Failure(name, "the teacher", reason.format(quality.of)))
        self.unused, self.unusable = self.evaluator.usable(self.unused)
        for name, reason in self.unusable.items():
            log.warning("guard %s: %s", name, reason)

    def _save(self) -> None:
        self.guard.save(self.quarantine)
        self.state.counted, self.state.halved = self.evaluator.counted, self.evaluator.halved
        self.state.save(self.checkpoint)

    def hypervolume(self, scores: Sequence[Sequence[float]]) -> float:
        """Against the worst values worth having, each objective scaled so that this point is 1."""
        if not len(scores):
            return 0.0
        worst = np.array([o.minimised(o.worst(self.state.costs)) for o in self.objectives.values()])
        best = np.array([0.0 if o.better == "lower" else -o.ceiling for o in self.objectives.values()])
        scaled = (np.array(scores) - best) / (worst - best)
        return hypervolume(scaled, np.ones(len(worst)))

    def _scores(self) -> np.ndarray:
        return np.array([a["scores"] for a in self.state.archive.values()]).reshape(-1, len(self.objectives))

    def _best(self) -> str:
        if not self.state.history:
            return ""
        last = self.state.history[-1]
        return f"front {last['front']:.0f}, hypervolume {last['hypervolume']:.4f}"

    def _room(self) -> int:
        """How many rows the next generation may have."""
        budget = self.config.budget
        left = budget.generation if budget.evaluations is None else budget.evaluations - self.state.asked
        return min(budget.generation, left)

    def _spent(self, seconds: float) -> bool:
        budget = self.config.budget
        return (
            (budget.evaluations is not None and self.state.asked >= budget.evaluations)
            or (budget.minutes is not None and seconds >= 60 * budget.minutes)
            or (budget.block_executions is not None and self.state.block_executions >= budget.block_executions)
        )

    def close(self) -> None:
        """End the workers, where there are any."""
        if self.workers:
            self.workers.close()

    def tell(self, text: str) -> None:
        """What a user should know of, and the log too."""
        log.warning("%s", text)
        self.console.print(f"[yellow]{escape(text)}[/yellow]")

    def _evaluator(self, costs: Costs) -> Evaluator:
        self.local = Runner(self.model, costs, StateCache(round(self.config.compute.states * 2**30)))
        self.workers = start_workers(self.config, self.model, costs)
        return Evaluator(
            self.model,
            self.calibration,
            self._seeds(len(self.calibration)),
            self.objectives,
            costs,
            self.memo,
            self.config.prompts.batch,
            self.workers or self.local,
            self.guard,
        )

    def _first(self, count: int) -> tuple[Any, Tensor]:
        """Conditions and noise of the first calibration prompts."""
        prompts = self.calibration[:count]
        return self.model.encode(prompts), self.model.noise(self._seeds(len(prompts)))

    def _seeds(self, count: int) -> list[int]:
        return [self.config.prompts.seed + i for i in range(count)]


def space_of(config: Config) -> Space:
    """The space, or several as one."""
    spaces = [instantiate(part) for part in config.space.values()]
    return spaces[0] if len(spaces) == 1 else JointSpace(spaces)


def describe_blocks(stacks: Any) -> str:
    return ", ".join(f"{count} {name}" for name, count in stacks.items())
