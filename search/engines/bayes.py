"""Bayesian optimisation through Optuna: multi-objective TPE (Ozaki et al. 2022) or Gaussian processes.

TPE (doi:10.1613/jair.1.13188) models which levels good rows have, GP each objective (log EHVI, arXiv:2006.05078).
"""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal

import numpy as np

from search.engines.base import Engine, EngineInputs
from search.engines.nsga2 import excess
from search.engines.optuna_sampler import quiet_optuna, row_sampler
from search.engines.random import count_on, draw
from search.engines.state import Count, EngineState, Integers, Matrix, Rows, Scores, keys_of_rows, stack_rows

TRIES = 5  # proposals of a sampler that find only rows asked before, ahead of moves
GP_GENES = 200  # fitting one length scale per gene takes too long above

Pair = tuple[list[float], list[float]]  # scores [M], and how far each is beyond its bound [M], or []


class BayesState(EngineState):
    """State of a `BayesEngine`: its own trials, and scores in the order in which they were received.

    `values` are NaN where a row counts as failed. `beyond` has no columns without bounds.
    """

    together = (("trials", "identities"), ("scored", "values", "beyond"))
    waiting: Rows
    asked: Rows
    trials_read: Count  # of the shared study
    trials: Rows
    identities: Integers
    scored: Rows
    values: Scores
    beyond: Matrix


class BayesEngine(Engine):
    """The zero row, all seeds, random rows until `startup` rows have scores, then one proposal of the sampler per row.

    Ordered genes are integers for the sampler, the others categories. `EngineInputs.worst` are constraints: the sampler
    is given how far each row is beyond them. A row with a NaN or infinite score counts as a little worse than all
    others so far. Any number of objectives.

    Args:
        start: The genes, the generator and the first rows.
        sampler: `tpe`, or `gp` for at most 200 genes with a choice.
        storage: None for this process alone. "sqlite:///study.db" (any database of Optuna's) or "study.log" (a journal,
            also on network drives) is shared by all processes that name it: each learns from the rows of all, and
            none asks for a row that another has asked for.
        study: Name of the study in the storage.
        startup: The number of rows with scores before the sampler is used, at least 2.

    Raises:
        ValueError: An argument is out of range, or the study holds rows of another space.

    The state is rows and scores: the study is made again from them, and every `ask` seeds its own sampler. So a
    checkpoint does not depend on the version of Optuna.
    """

    def __init__(
        self,
        start: EngineInputs,
        sampler: Literal["tpe", "gp"] = "tpe",
        storage: str | None = None,
        study: str = "search",
        startup: int = 24,
    ) -> None:
        decisions = int((start.levels > 1).sum())
        if sampler not in ("tpe", "gp"):
            raise ValueError(f"sampler {sampler!r} is unknown; use engine.sampler=tpe or engine.sampler=gp")
        if sampler == "gp" and decisions > GP_GENES:
            raise ValueError(
                f"gp is too slow for {decisions} genes, at most {GP_GENES} have more than one level; "
                "use engine.sampler=tpe"
            )
        if storage is not None and not (storage.endswith(".log") or "://" in storage):
            raise ValueError(
                f"storage {storage!r} is neither a journal nor a database; "
                "use engine.storage=study.log or engine.storage=sqlite:///study.db"
            )
        if startup < 2:
            raise ValueError(f"startup {startup} is too small to learn from; use engine.startup=24, at least 2")
        self.start, self.sampler, self.storage, self.name, self.startup = start, sampler, storage, study, startup
        self.levels = start.levels
        self.waiting = [np.zeros_like(self.levels), *start.seeds]
        self.asked: set[bytes] = set()  # by any process
        self.read = 0  # trials of the study that are in `asked`
        self.trials: dict[bytes, int] = {}  # Optuna's identity of each own row, in the order of asking
        self.scores: dict[bytes, Pair | None] = {}  # None: not finite, and the first row with scores
        self.study: Any = None  # made from the above when there is none

    def begin(self) -> None:
        """Open the study, so that a storage that cannot be used is refused at once."""
        with quiet_optuna():
            self._read(self._open())

    def ask(self, n: int) -> np.ndarray:
        """The next n rows; the sampler knows which rows are still open."""
        rows: list[np.ndarray] = []
        with quiet_optuna():
            study = self._open()
            self._read(study)
            study.sampler = row_sampler(self._pick(study))
            while len(rows) < n and len(self.asked) < math.prod(self.levels.tolist()):
                trial = study.ask(self._space())
                rows.append(self._row(trial.params))
                self.asked.add(rows[-1].tobytes())
                self.trials[rows[-1].tobytes()] = trial._trial_id  # what Trial() wants; the number is not it
        return np.array(rows, dtype=np.int64).reshape(len(rows), len(self.levels))

    def tell(self, x: np.ndarray, y: np.ndarray) -> None:
        """Scores of rows, asked by this engine or not; the second score of a row is ignored."""
        y = self.start.scores(x, y)
        with quiet_optuna():
            study = self._open()
            for row, scores in zip(np.asarray(x, dtype=np.int64), y, strict=True):
                if (key := row.tobytes()) in self.scores:
                    continue
                self.scores[key] = self._bounded(scores)
                self.asked.add(key)
                if key in self.trials:
                    self._finish(study, self.trials[key], self.scores[key])
                else:
                    self.trials[key] = self._add(study, row)

    def state(self) -> dict[str, Any]:
        """The rows that were asked for, and scores; not the study, which holds connections and locks."""
        genes, objectives, bounds = len(self.levels), self.start.objectives, len(self.start.worst)
        none = [math.nan] * objectives, [0.0] * bounds
        values, beyond = zip(*[pair or none for pair in self.scores.values()], strict=True) if self.scores else ([], [])
        return {
            "waiting": stack_rows(self.waiting, genes),
            "asked": stack_rows(sorted(self.asked), genes),
            "trials_read": self.read,
            "trials": stack_rows(self.trials, genes),
            "identities": np.array(list(self.trials.values()), dtype=np.int64),
            "scored": stack_rows(self.scores, genes),
            "values": np.array(values, dtype=float).reshape(len(self.scores), objectives),
            "beyond": np.array(beyond, dtype=float).reshape(len(self.scores), bounds),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned; the study is opened, or made again, when it is needed."""
        saved = BayesState.read(state, self.start)
        if saved.beyond.shape[1] != len(self.start.worst):
            raise ValueError(f"beyond: has {saved.beyond.shape[1]} columns; give {len(self.start.worst)}")
        self.waiting, self.asked, self.read = list(saved.waiting), set(keys_of_rows(saved.asked)), saved.trials_read
        self.trials = dict(zip(keys_of_rows(saved.trials), saved.identities.tolist(), strict=True))
        pairs = zip(keys_of_rows(saved.scored), saved.values.tolist(), saved.beyond.tolist(), strict=True)
        self.scores = {key: None if math.isnan(sum(values)) else (values, over) for key, values, over in pairs}
        self.study = None

    def _bounded(self, scores: np.ndarray) -> Pair | None:
        """Scores and how far each is beyond its bound, in shares of it."""
        if excess(scores[None], np.zeros(0))[0]:
            finite = np.array([pair[0] for pair in self.scores.values() if pair])
            if not len(finite):
                return None
            scores = finite.max(axis=0) + 0.1 * np.ptp(finite, axis=0)
        worst = np.asarray(self.start.worst, dtype=float)
        beyond = (scores - worst) / np.where(worst == 0, 1.0, np.abs(worst)) if len(worst) else worst
        return scores.tolist(), beyond.tolist()

    def _pick(self, study: Any) -> Callable[[Any, Any], dict[str, int]]:
        """What chooses the parameters of a new trial; its own seed, so that nothing but rows must be kept."""
        import optuna

        seed, space = int(self.start.rng.integers(2**31)), self._space()
        if self.sampler == "gp":
            inner = optuna.samplers.GPSampler(seed=seed, n_startup_trials=1, deterministic_objective=True)
        else:
            inner = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, multivariate=True)
        learned = len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))) >= self.startup

        def pick(study: Any, trial: Any) -> dict[str, int]:
            while self.waiting:
                if (row := self.waiting.pop(0)).tobytes() not in self.asked:
                    return self._parameters(row)
            for _ in range(TRIES):
                proposed = inner.sample_relative(study, trial, space) if learned else None
                row = self._row(proposed) if proposed else draw(self.start.rng, self.levels)
                if row.tobytes() not in self.asked:
                    break
            return self._parameters(self._unasked(row))

        return pick

    def _unasked(self, row: np.ndarray) -> np.ndarray:
        """The row, or one not asked before that resets of single genes lead to."""
        for _ in range(10 * TRIES):
            if row.tobytes() not in self.asked:
                return row
            row, gene = row.copy(), int(self.start.rng.integers(len(row)))
            row[gene] = self.start.rng.integers(self.levels[gene])
        unasked = count_on(row, self.levels, self.asked)
        assert unasked is not None, "ask counts the rows that are left"
        return unasked

    def _space(self) -> dict[str, Any]:
        """Optuna's distribution of each gene that has a choice, in the order of genes."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        return {
            f"{i} {gene.name}": IntDistribution(0, gene.levels - 1)
            if gene.ordered
            else CategoricalDistribution(range(gene.levels))
            for i, gene in enumerate(self.start.genes)
            if gene.levels > 1
        }

    def _parameters(self, row: np.ndarray) -> dict[str, int]:
        return {f"{i} {gene.name}": int(row[i]) for i, gene in enumerate(self.start.genes) if gene.levels > 1}

    def _row(self, parameters: dict[str, int]) -> np.ndarray:
        row = np.zeros_like(self.levels)
        for name, level in parameters.items():
            row[int(name.split()[0])] = level
        return row

    def _open(self) -> Any:
        """The study: of the storage, or one in memory with all rows asked so far."""
        import optuna

        if self.study is not None:
            return self.study
        storage: Any = self.storage
        if storage is not None and "://" not in storage:
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend

            storage = JournalStorage(JournalFileBackend(storage))
        study = optuna.create_study(
            storage=storage,
            study_name=self.name,
            directions=["minimize"] * self.start.objectives,
            load_if_exists=True,
        )
        if len(study.directions) != self.start.objectives:
            raise ValueError(
                f"study {self.name!r} in {self.storage} has {len(study.directions)} objectives, this search "
                f"{self.start.objectives}; use another name, engine.study={self.name}2"
            )
        if self.storage is None:
            for key in self.trials:
                self.trials[key] = self._add(study, np.frombuffer(key, dtype=np.int64))
        self.study = study
        return study

    def _read(self, study: Any) -> None:
        """Read the rows that other processes asked for."""
        if self.storage is None:
            return
        space = self._space()
        for trial in study.get_trials(deepcopy=False)[self.read :]:
            if any(space.get(name) != of for name, of in trial.distributions.items()):
                raise ValueError(
                    f"study {self.name!r} in {self.storage} holds rows of another space; "
                    f"use another name, engine.study={self.name}2"
                )
            if len(trial.params) < len(space) and not trial.state.is_finished():
                break  # another process is writing it: read on from here next time
            self.asked.add(self._row(trial.params).tobytes())
            self.read += 1

    def _add(self, study: Any, row: np.ndarray) -> int:
        """Add a trial as it would be after `ask`, and after `tell` where the row has scores; returns its identity."""
        from optuna.trial import TrialState, create_trial

        key = row.tobytes()
        scores = self.scores.get(key)
        state = TrialState.COMPLETE if scores else TrialState.FAIL if key in self.scores else TrialState.RUNNING
        study.add_trial(
            create_trial(
                state=state,
                params=self._parameters(row),
                distributions=self._space(),
                values=scores[0] if scores else None,
                constraints={str(i): beyond for i, beyond in enumerate(scores[1])} if scores else None,
            )
        )
        return int(study.get_trials(deepcopy=False)[-1]._trial_id)

    def _finish(self, study: Any, identity: int, scores: Pair | None) -> None:
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import Trial, TrialState

        trial = Trial(study, identity)
        with suppress(UpdateFinishedTrialError):  # scored before, by a process that resumes from an older checkpoint
            for i, beyond in enumerate(scores[1] if scores else ()):
                trial.set_constraint(str(i), beyond)
            values, state = (scores[0], None) if scores else (None, TrialState.FAIL)
            study.tell(trial, values, state, skip_if_finished=True)
