"""One search: prepare, then ask, decode, evaluate and tell the engine until the budget is spent."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from rich.console import Console
from rich.markup import escape

from search.calibrate.gaussian import add_gaussian
from search.calibrate.latency import add_latency
from search.calibrate.propose.proposals import Proposals
from search.calibrate.ranges import target_with_ranges
from search.config.load import example_of, model_from_config, prompts_from_config, with_batches_that_run
from search.config.settings import Config
from search.engines.base import Engine, EngineInputs
from search.engines.check import check_engine
from search.evaluate.evaluator import Evaluator
from search.evaluate.execute.executors import Workers, check_compute, start_workers
from search.evaluate.execute.runner import Runner
from search.evaluate.execute.states import StateCache
from search.evaluate.guard import Failure, Guard, SafeCost
from search.evaluate.memo import Memo
from search.loop import checkpoint
from search.loop.candidates import CandidateBuilder
from search.loop.certification import check_criterion
from search.loop.components import make_components
from search.loop.finished import FinishedSearch
from search.loop.history import archive_scores, generation_record
from search.loop.progress import OnProgress, ignore_progress, progress_bar
from search.loop.state import SearchState, load_state, log
from search.models.base import Model
from search.objectives.base import Cost, Objective, Quality
from search.objectives.drift import Drift
from search.pareto.domination import non_dominated
from search.profile.costs import Costs
from search.results.compare import tuned_reward_warning
from search.schedule import Schedule
from search.spaces.base import Space
from search.spaces.joint import JointSpace
from search.tracking.tracker import Tracker

PROBED = 2  # prompts of the propagation rollouts
RANGED = 8  # prompts that activation ranges are measured on


class Search:
    """One search on one model: `prepare`, then `loop` until the budget is spent, then `finished`."""

    def __init__(self, config: Config, console: Console, model: Model | None = None) -> None:
        """`model` takes the place of the one that the configuration names."""
        self.config, self.console = config, console
        check_engine(config.engine, len(config.objective))
        check_compute(config.compute)
        if config.compute.threads:
            torch.set_num_threads(config.compute.threads)
        self.space: Space = space_of(config)
        self.objectives: dict[str, Objective] = make_components("objective", config.objective)
        self.reported = make_components("guard", {k: v for k, v in config.guard.items() if k not in config.objective})
        check_criterion(config, {**self.objectives, **self.reported})
        self.guard = Guard(config.budget.patience, config.budget.failures, self.warn)
        self.calibration, self.held_out = prompts_from_config(config.prompts)
        self.on_prepare: Callable[[str], None] = lambda text: None  # what is being measured
        self.on_progress: OnProgress = ignore_progress
        self.workers: Workers | None = None
        self.tracker: Tracker | None = None
        self.model: Model = model or model_from_config(config, **example_of(self.calibration))
        self.config = with_batches_that_run(config, self.model, self.calibration, self.warn)
        every = {**self.objectives, **self.reported}
        if text := tuned_reward_warning(self.model.tuned_on, every, self.objectives, self.reported):
            self.warn(text)

    def prepare(self, folder: Path) -> None:
        """Cost tables, the teacher, and either the folder's checkpoint or a new engine with its first rows."""
        self.folder, self.checkpoint, self.quarantine = folder, folder / checkpoint.NAME, folder / "quarantine.json"
        memo = Path(self.config.runs) / "memo.sqlite"  # shared by all searches, which measure nothing twice
        add_gaussian(self.model, self.space.gaussian_rank, self.calibration, self.config.prompts, folder)
        if self.space.needs_input_ranges:  # ranges of activations are measured before anything is decoded
            self.model.target = target_with_ranges(self.model, *self._first_inputs(RANGED))
        self.memo = Memo(memo, spare=folder / "memo.sqlite", on_message=self.warn)
        if checkpoint.checkpoint_exists(self.checkpoint):
            self._resume()
        else:
            self._start()

    def _resume(self) -> None:
        """Go on from the checkpoint."""
        space, target, names = self.space, self.model.target, list(self.objectives)
        make_engine = instantiate(self.config.engine | {"_partial_": True})
        state = load_state(self.checkpoint, space, target, names, self.config.seed, make_engine, self.warn)
        self.state = state
        self._make_evaluator(state.costs)
        self.before = (
            state.block_executions - self.evaluator.block_executions,
            state.unshared - self.evaluator.unshared,
        )
        self.evaluator.accounting.counted |= state.counted
        self.evaluator.halved |= state.halved
        self._try_objectives()

    def _start(self) -> None:
        """Measure what calibration needs, and make the engine."""
        target = self.model.target
        genes = self.space.genes(target)  # a space that does not apply raises before anything is measured
        if self.config.correct and target.reference < 2:
            raise ValueError(
                "correct=true corrects reused values, and the only step of a run reuses none; leave it out"
            )
        costs = self.model.costs()
        self.console.print(
            f"{target.tree.model_class}: {describe_blocks(target.tree.stacks)}, {target.steps} "
            f"step{'s' * (target.steps > 1)}, {costs.teacher_macs / 1e9:.2f} GMACs a picture; keeping every "
            f"component's output takes {costs.all_bytes / 2**20:.1f} MiB a picture"
        )
        costs = add_latency(self.model, costs)
        self._make_evaluator(costs)
        self._try_objectives()
        probe = Evaluator(
            self.model,
            self.calibration[:PROBED],
            self._seeds(len(self.calibration[:PROBED])),
            {"drift": Drift()},
            costs,
            self.memo,
            self.config.prompts.batch,
            runner=self.local,
        )
        guard = Guard(self.config.budget.patience)  # of its own: what is proposed is not a candidate yet
        objectives = [SafeCost(n, o, guard) if isinstance(o, Cost) else o for n, o in self.objectives.items()]
        proposals = Proposals(self.space, target, self.model, probe, costs, objectives, self.on_prepare)
        inputs = EngineInputs(
            genes,
            len(self.objectives),
            np.random.default_rng(self.config.seed),
            proposals.initial_rows(self.config.initial),
            np.array([o.minimised(o.worst(costs)) for o in self.objectives.values()]),
            proposals.methods(),
            proposals.table,
            proposals.prior(),
        )
        engine: Engine = instantiate(self.config.engine | {"_partial_": True})(inputs)
        engine.begin()
        presets = proposals.presets()
        self.before, calibration = (probe.block_executions, probe.unshared), self.evaluator
        spent = probe.block_executions + calibration.block_executions, probe.unshared + calibration.unshared
        self.state = SearchState(engine, inputs, costs, presets, *spent)
        self._save()

    def loop(self) -> str:
        """Evaluate generations until the budget is spent; returns why it stopped early, or an empty string."""
        began = time.monotonic() - self.state.seconds
        try:
            with progress_bar(self.console) as progress:
                task = progress.add_task("search", total=self.config.budget.evaluations, note="")
                while not self._is_budget_spent(time.monotonic() - began):
                    rows = self.state.engine.ask(self.config.budget.next_generation(self.state.asked))
                    if not len(rows):
                        return "the engine has nothing left to try"

                    def on_done(count: int) -> None:
                        done = self.state.asked + count
                        rate = done / max(time.monotonic() - began, 1e-9)
                        progress.update(task, completed=done, note=f"{rate:.1f}/s  {self._describe_front()}")
                        self.on_progress("search", done, self.config.budget.evaluations or 0)

                    self.state.engine.tell(rows, self._evaluate(rows, on_done=on_done))
                    if not self.state.generation:  # so that the front is nowhere behind the presets on these prompts
                        self._evaluate(self.state.presets.values(), plain=True)
                    self._close_generation(len(rows), time.monotonic() - began)
                    if self.guard.exhausted:
                        return f"{self.guard.summary}; see {self.quarantine}"
        except KeyboardInterrupt:
            return "stopped by Ctrl-C"
        return ""

    def finished(self, stopped: str = "") -> FinishedSearch:
        """The record that results are made of; `stopped` is what `loop` returned."""
        return FinishedSearch(
            self.config, self.folder, self.quarantine, self.model, self.state, self.evaluator, self.candidates,
            self.reported, self.unusable, tuple(self.held_out), self.warn, stopped,
        )  # fmt: skip

    def _evaluate(
        self, rows: Iterable[np.ndarray], plain: bool = False, on_done: Callable[[int], None] = lambda count: None
    ) -> np.ndarray:
        """Scores [N, M] of rows; what was run on all prompts goes to the archive."""
        rows = list(rows)
        jobs = [self.candidates.job(row, plain) for row in rows]
        results = self.evaluator.evaluate(jobs, self._rivals(), on_done)
        for row, scored in zip(rows, results, strict=True):
            if not scored.values:
                self.state.lost += not scored.failed
                self.state.failed += bool(scored.failed)
            elif scored.schedule.digest not in self.state.archive:
                self.state.archive[scored.schedule.digest] = {
                    "x": row.copy(),
                    "values": scored.values,
                    "scores": scored.minimised,
                    "generation": self.state.generation,
                    "plain": plain,
                }
        self.state.block_executions = self.before[0] + self.evaluator.block_executions
        self.state.unshared = self.before[1] + self.evaluator.unshared
        return np.array([scored.minimised for scored in results])

    def _rivals(self) -> list[Schedule]:
        """The front so far: candidates run on all prompts only if they are near it."""
        entries = list(self.state.archive.values())
        if not entries or (len(self.evaluator.batches) == 1 and not self.evaluator.scorer.decodes):
            return []
        scores = archive_scores(self.state, self.objectives)
        return [self.candidates.schedule_of(entries[i]) for i in np.flatnonzero(non_dominated(scores))]

    def _close_generation(self, rows: int, seconds: float) -> None:
        """Put the generation down in the history, the log, the checkpoint and MLflow."""
        state = self.state
        state.asked += rows
        state.seconds = seconds
        state.history.append(generation_record(state, self.objectives, len(self.evaluator.halved)))
        state.generation += 1
        log.info("generation %s", state.history[-1])
        self._save()
        if self.tracker is not None:
            self.tracker.generation(state.history[-1])

    def _try_objectives(self) -> None:
        """Score the teacher's own results, so that an objective that cannot work fails before anything is spent."""
        for name, difference in self.evaluator.scorer.try_objectives().items():
            quality = self.objectives[name]
            assert isinstance(quality, Quality)
            reason = (
                f"is not deterministic: two calls on the same {quality.of} differ by {difference:.3g}; "
                "the first one is kept"
            )
            self.guard.record(Failure(name, "the teacher", reason))
        self.reported, self.unusable = self.evaluator.scorer.usable(self.reported)
        for name, reason in self.unusable.items():
            log.warning("guard %s: %s", name, reason)

    def _save(self) -> None:
        self.guard.save(self.quarantine)
        self.state.counted, self.state.halved = self.evaluator.accounting.counted, self.evaluator.halved
        self.state.save(self.checkpoint)

    def _describe_front(self) -> str:
        history = self.state.history
        return f"front {history[-1]['front']:.0f}, hypervolume {history[-1]['hypervolume']:.4f}" if history else ""

    def _is_budget_spent(self, seconds: float) -> bool:
        return self.config.budget.is_spent(self.state.asked, seconds, self.state.block_executions)

    def close(self) -> None:
        """End the workers, where there are any."""
        if self.workers:
            self.workers.close()

    def warn(self, text: str) -> None:
        """Print a message that the user should read, and log it."""
        log.warning("%s", text)
        self.console.print(f"[yellow]{escape(text)}[/yellow]")

    def _make_evaluator(self, costs: Costs) -> None:
        """The evaluator of the calibration prompts, what runs its jobs, and what makes its candidates."""
        self.local = Runner(self.model, costs, StateCache(round(self.config.compute.states * 2**30)))
        self.workers = start_workers(self.config, self.model, costs)
        self.evaluator = Evaluator(
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
        self.candidates = CandidateBuilder(
            self.space, self.model, self.evaluator, self.config.refit, self.config.correct, self.warn
        )

    def _first_inputs(self, count: int) -> tuple[Sequence[str], Sequence[int]]:
        prompts = self.calibration[:count]
        return prompts, self._seeds(len(prompts))

    def _seeds(self, count: int) -> list[int]:
        return [self.config.prompts.seed + i for i in range(count)]


def space_of(config: Config) -> Space:
    """The space of a configuration; several are joined to one."""
    spaces = [*make_components("space", config.space).values()]
    return spaces[0] if len(spaces) == 1 else JointSpace(spaces)


def describe_blocks(stacks: Any) -> str:
    return ", ".join(f"{count} {name}" for name, count in stacks.items())
