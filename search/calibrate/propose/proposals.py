"""What a search begins with: published rules, and the rows that calibration tables propose, each space in its way."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
from torch import Tensor

from search.calibrate.drifts import Drifts, record_drifts
from search.calibrate.propose.beam import beam_rows
from search.calibrate.propose.cache import threshold_mask
from search.calibrate.propose.prior import Prior
from search.calibrate.propose.rows import MOST_MERGED, Tokens, spread_indices, unique_rows
from search.calibrate.propose.steps import shortest_step_paths
from search.engines.base import GeneTable
from search.engines.milp import DAMPINGS
from search.evaluate.evaluator import Evaluator
from search.evaluate.fit import solver as fit
from search.exact.knapsack import gram_search, knapsack_front
from search.exact.paths import reach_paths
from search.exact.segments import even_plans, forecast_front, merge_fronts, reuse_front
from search.models.base import Model, to_schedule
from search.objectives.base import Cost, Objective
from search.objectives.macs import Macs
from search.profile.costs import Costs
from search.profile.plans import component_names, mask_to_tokens, plan_schedule
from search.profile.target import Target
from search.schedule import Schedule
from search.schedule.model.nodes import ROOT
from search.schedule.plan.tokens import OFF
from search.schedule.schedulers import forecast_coordinates
from search.spaces.base import Space
from search.spaces.joint import JointSpace
from search.spaces.timesteps import TimestepsSpace

THRESHOLDS = (0.05, 0.1, 0.2)
MOST_SEEDS = 72  # what calibration proposes first
PICKS = 5  # rows of each space that are combined with the other spaces' rows
COMBINED = 32
EVERY = (2, 3, 4, 5, 7, 10, 20)
SWEEP = tuple(0.01 * 1.2**i for i in range(24))  # thresholds 0.01 to 0.66
DENSE = 3  # steps of the recorded run for each of the teacher's


class Proposals:
    """Presets and proposed rows of a space; a joint space's are those of its parts and their combinations.

    Everything is measured on the probe's few prompts when it is asked for, once. ValueError says why a method has
    nothing to propose on a space.
    """

    def __init__(
        self,
        space: Space,
        target: Target,
        model: Model,
        probe: Evaluator,
        costs: Costs,
        objectives: Sequence[Objective],
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.space, self.target, self.model, self.probe, self.costs = space, target, model, probe, costs
        self.prices = [o for o in objectives if isinstance(o, Cost)] or [Macs()]
        self.parts: dict[str, Space] = {s.key: s for s in getattr(space, "spaces", (space,))}
        self.note = note  # told what is being measured
        self._tables: dict[str, GeneTable] = {}
        self._rows: dict[str, list[np.ndarray]] = {}

    # What a search asks for

    def presets(self) -> dict[str, np.ndarray]:
        """Published rules as rows [G] by name, and SmoothCache's rule on the measured errors."""
        rows = dict(self.space.presets(self.target))
        for threshold in THRESHOLDS if self._caches(self.space) else ():
            x = self.space.encode(self._below(threshold), self.target)
            if x is not None and x.any():
                rows[f"SmoothCache α={threshold:g}"] = x
        return rows

    def begin(self, by: str) -> np.ndarray:
        """Rows that an engine begins with: `proposals`, `none`, or those of a method by its name."""
        known = {"proposals": self.seeds, "none": lambda: self._stack([])} | self.methods()
        if by not in known:
            raise ValueError(f"initial={by} is unknown; choose from {', '.join(known)}, for example initial=presets")
        return known[by]()

    def seeds(self) -> np.ndarray:
        """What deserves to be tried first: what calibration proposes, then presets."""
        return self._stack([*self.calibrated(), *self.presets().values()])[:MOST_SEEDS]

    def calibrated(self) -> list[np.ndarray]:
        """Combinations of what the tables propose for each space, then each space's own proposals."""
        found = [*self._combined()]
        for key in self.parts:
            found += self._lift(key, self._own(key))
        return found

    def methods(self) -> dict[str, Callable[[], np.ndarray]]:
        """Rows by method, made when called."""
        by_aggregation = {f"dp_{name}": partial(self.minimax, name) for name in ("max", "lexicographic")}
        published = {
            "presets": lambda: self._stack(list(self.presets().values())),
            "intervals": self.intervals,
            "smoothcache": self.smoothcache,
            "cachequant": self.cachequant,
        }
        return {"dp": self.dp, "olss": self.olss, "beam": self.beam} | by_aggregation | published

    def dp(self) -> np.ndarray:
        """Exact dynamic programming in every part that has a table, and the combinations of their fronts."""
        found: list[np.ndarray] = []
        reasons = []
        for key in self.parts:
            try:
                found += self._lift(key, self._front(key))
            except ValueError as error:
                reasons.append(str(error))
        if not found:
            raise ValueError(reasons[0])
        return self._stack([*found, *self._combined()])

    def minimax(self, aggregation: Literal["max", "lexicographic"]) -> np.ndarray:
        """Whole-step reuse whose worst error is least: LeMiCa's criterion (NeurIPS 2025) on the measured table."""
        if not (caches := [space for space in self.parts.values() if self._caches(space)]):
            raise ValueError(
                f"engine.of=dp_{aggregation} places reused steps, and {self.space.key} reuses none; use engine.of=dp"
            )
        front = reuse_front(self.drifts.reuse([ROOT]), self.weights, aggregation)
        rows = [caches[0].encode({ROOT: mask_to_tokens(mask)}, self.target) for _, mask in front]
        return self._stack(self._lift(caches[0].key, unique_rows(rows)))

    def olss(self) -> np.ndarray:
        """OLSS's paths of every length, with a fitted solver where the solver space is there."""
        if "timesteps" not in self.parts and "solver" not in self.parts:
            raise ValueError(
                f"olss chooses timesteps and fits the solver, and {self.space.key} does neither; "
                "use +space=[timesteps,solver], or engine=nsga2"
            )
        fitted = self._fitted()
        paths = self._paths(self.parts["timesteps"], reach_paths) if "timesteps" in self.parts else []
        rows = [self._join({"timesteps": row} | fitted) for row in paths]
        return self._stack([*rows, *([self._join(fitted)] if fitted else [])])

    def intervals(self) -> np.ndarray:
        """Recompute at every N-th step: all component kinds (FORA), all attentions, or one kind alone.

        ECAD (arXiv:2506.15682) begins with schedules like these, and with these N.
        """
        kinds, steps = list(self.target.kinds), self.target.steps
        several = [kinds, [kind for kind in kinds if "attn" in kind], *([kind] for kind in kinds)]
        every = [[OFF if t % n == 0 else "R" for t in range(steps)] for n in EVERY if n <= steps]
        return self._stack(self._cached("intervals", [dict.fromkeys(those, t) for t in every for those in several]))

    def smoothcache(self) -> np.ndarray:
        """SmoothCache (arXiv:2411.10510): a component kind is reused while its measured error is below a threshold."""
        return self._stack(self._cached("smoothcache", [self._below(threshold) for threshold in SWEEP]))

    def cachequant(self) -> np.ndarray:
        """CacheQuant (arXiv:2503.01323): all components reused as `even_plans` says, with and without other presets."""
        plans = [dict.fromkeys(self.target.kinds, mask_to_tokens(mask)) for mask in even_plans(self.distances)]
        rows = self._cached("cachequant", plans)
        others = [
            self._join({key: x})
            for key, space in self.parts.items()
            if not self._caches(space)
            for x in space.presets(self.target).values()
        ]
        return self._stack([*rows, *others, *(row + other for row in rows for other in others)])

    def beam(self) -> np.ndarray:
        """A Pareto beam over the time axis, from the proposals' own actions."""

        def tell(step: int, executed: int) -> None:
            self.note(f"beam: step {step} of {self.target.steps}, {executed} steps executed")

        return beam_rows(self.space, self.target, self.probe, self.seeds(), self.costs, progress=tell)

    def table(self) -> GeneTable:
        """Every gene alone, measured; parts side by side."""
        for key, space in self.parts.items():
            if not space.additive:
                raise ValueError(
                    f"the {key} space has no additive table: its genes do nothing alone, or there are too many levels; "
                    "use engine=nsga2"
                )
        found = [self._table(key) for key in self.parts]
        return GeneTable(
            [e for t in found for e in t.errors],
            [[c for t in found for c in t.costs[i]] for i in range(len(self.prices))],
            [v for t in found for v in t.vectors],
        )

    # Tables, measured once

    @cached_property
    def drifts(self) -> Drifts:
        """How the nodes' outputs change over the steps, from one teacher run."""
        self.model.begin(*self.probe.inputs[0])
        axis = next((s.axis for s in self.parts.values() if hasattr(s, "axis")), "index")
        places = forecast_coordinates(self.model.pipe.scheduler, axis)
        return record_drifts(
            self.model.denoiser,
            self.target.tree,
            places,
            self.probe.run_teacher,
            value_bytes=self.costs.value_bytes,
        )

    @cached_property
    def weights(self) -> np.ndarray:
        """Weights [T]: terminal drift per unit of relative error in the denoiser's output at a step.

        One rollout a step: the step reuses the output of the step before, all else is computed.
        """
        self.note("measuring how errors of each step propagate to the end")
        local = self.drifts.reuse([ROOT])
        weights = np.zeros(self.target.steps)
        for t in range(1, self.target.steps):
            tokens = [OFF] * self.target.steps
            tokens[t] = "R"
            weights[t] = self._drift({ROOT: tokens}) / max(local[t - 1, t], 1e-12)
        return weights

    @cached_property
    def scales(self) -> dict[str, float]:
        """Of each component kind: drift of a rollout that reuses it at every second step, over what tables predict."""
        every_second = [OFF if t % 2 == 0 else "R" for t in range(self.target.steps)]
        found = {}
        for kind, names in component_names(self.target).items():
            errors = self.drifts.reuse(names)
            predicted = sum(self.weights[t] * errors[t - 1, t] for t in range(1, self.target.steps, 2))
            found[kind] = self._drift({kind: every_second}) / max(predicted, 1e-12)
        return found

    def prior(self) -> Prior | None:
        """What the tables expect of any row; None where no part caches, and the tables say nothing."""
        if not any(self._caches(space) for space in self.parts.values()):
            return None
        errors, work = {ROOT: self.drifts.reuse([ROOT])}, self.costs.call_macs
        shares = {ROOT: 1.0} | {name: macs / work for name, macs in self.costs.component_macs.items()}
        for kind, names in component_names(self.target).items():
            for name in names:
                if name in self.drifts.pairs:
                    errors[name] = self.scales[kind] / len(names) * self.drifts.reuse([name])
        return Prior(self.space, self.target, self.weights, errors, shares)

    @cached_property
    def trajectory(self) -> fit.Trajectory:
        """A run of the pipeline's own sampler with more steps than the teacher."""
        sampler = self.model.shorter(DENSE * self.target.steps)
        parts = {"steps": len(sampler["timesteps"]), "sampler": sampler}
        with self.model.apply(to_schedule(self.model, parts)):
            return fit.record_trajectory(self.model, *self.probe.inputs[0])

    @property
    def distances(self) -> np.ndarray:
        """L1 distances [T, T] between the denoiser's outputs."""
        found = self.drifts.pairs[ROOT].l1
        assert found is not None
        return found

    def _table(self, key: str) -> GeneTable:
        """What each gene of a part does alone: relative errors of the final latents, and the change of each cost.

        Genes that are not about steps are measured on runs of half the steps, which rank them alike for half the
        work; costs are those of whole runs.
        """
        if key in self._tables:
            return self._tables[key]
        genes = self.parts[key].genes(self.target)
        shorter = {} if any(g.group.startswith("step ") for g in genes) else self._half()
        base, teacher = to_schedule(self.model, {}), self.probe.teacher
        if shorter:
            teacher = self.probe.latents(to_schedule(self.model, shorter))
        vectors = [np.zeros((gene.levels, teacher.numel()), dtype=np.float32) for gene in genes]
        prices = [[np.zeros(gene.levels) for gene in genes] for _ in self.prices]
        for g, gene in enumerate(genes):
            self.note(f"measuring the {len(genes)} genes of {key} alone: {g}")
            for level in range(1, gene.levels):
                x = np.zeros(len(genes), dtype=np.int64)
                x[g] = level
                parts = self._decoded(key, x)
                whole = to_schedule(self.model, parts)
                for kept, price in zip(prices, self.prices, strict=True):
                    kept[g][level] = price(whole, self.costs) - price(base, self.costs)
                found = self.probe.latents(to_schedule(self.model, parts | shorter))
                vectors[g][level] = _relative(found, teacher)
        errors = [np.linalg.norm(v, axis=1) for v in vectors]
        self._tables[key] = GeneTable(errors, prices, vectors)
        return self._tables[key]

    def _half(self) -> dict[str, Any]:
        """The pipeline's own sampler with half the steps."""
        sampler = self.model.shorter(max(2, self.target.steps // 2))
        return {"steps": len(sampler["timesteps"]), "sampler": sampler}

    # Proposals of single parts, in the part's own genes

    def _own(self, key: str) -> list[np.ndarray]:
        """All that calibration proposes for a part; nothing where it has no table."""
        if key not in self._rows:
            self._rows[key] = self._propose(key)
        return self._rows[key]

    def _propose(self, key: str) -> list[np.ndarray]:
        space = self.parts[key]
        if key == "solver":
            return list(self._fitted().values())
        try:
            if isinstance(space, TimestepsSpace):
                return self._paths(space, reach_paths) + self._paths(space, shortest_step_paths)
            return self._front(key)
        except ValueError:  # no table: presets and the engine's own draws have to do
            return []

    def _front(self, key: str) -> list[np.ndarray]:
        """Exact dynamic programming on a part's table."""
        space = self.parts[key]
        if self._caches(space):
            return self._cache_front(space)
        if isinstance(space, TimestepsSpace):
            return self._paths(space, shortest_step_paths)
        if not space.additive:
            raise ValueError(
                f"the {key} space has no table for dynamic programming: its genes do nothing alone; "
                "use engine=nsga2" + (", or engine=olss" if key == "solver" else "")
            )
        table = self._table(key)
        rows: list[np.ndarray] = []
        for prices in table.costs:
            front = knapsack_front([e**2 for e in table.errors], prices)
            rows += [front[i][2] for i in spread_indices(len(front), MOST_MERGED)]
        refined = [gram_search(table.vectors, table.costs, np.array(rows), damping) for damping in DAMPINGS]
        return unique_rows([*rows, *np.concatenate(refined)])

    def _cache_front(self, space: Space) -> list[np.ndarray]:
        """The exact fronts of the surrogate over all budgets.

        Whole-denoiser reuse and forecast by segmentation DP; component kinds by one DP each, merged on their
        convex hulls. A kind's errors are scaled by one measured rollout that reuses this kind at every second step.
        """
        found: list[Tokens] = []
        names, target, weights, drifts = component_names(self.target), self.target, self.weights, self.drifts
        local = drifts.reuse([ROOT])
        found += [{ROOT: mask_to_tokens(mask)} for _, mask in reuse_front(local, weights)]
        forecast = drifts.forecast([ROOT])
        found += [{ROOT: mask_to_tokens(mask, forecast=True)} for _, mask in forecast_front(local, forecast, weights)]

        fronts, prices = {}, {}
        for kind in target.kinds:
            fronts[kind] = reuse_front(drifts.reuse(names[kind]), self.scales[kind] * weights)
            prices[kind] = float(sum(self.costs.component_macs[name] for name in names[kind]))
        merged = merge_fronts(fronts, prices)
        found += [
            {kind: mask_to_tokens(mask) for kind, mask in merged[i][2].items()}
            for i in spread_indices(len(merged), MOST_MERGED)
        ]
        return unique_rows([space.encode(tokens, target) for tokens in found])

    def _paths(self, space: Space, search: Callable) -> list[np.ndarray]:
        """Rows of the timesteps space for paths of every length through the dense run."""
        assert isinstance(space, TimestepsSpace)
        run = self.trajectory
        states = run.states.flatten(1).numpy()
        paths = search(states, run.outputs.flatten(1).numpy(), range(2, self.target.steps))
        timesteps = run.noise.timestep(np.array(run.sigmas[:-1]))
        return unique_rows([space.row([float(timesteps[i]) for i in path], self.target) for path in paths])

    def _fitted(self) -> dict[str, np.ndarray]:
        """The solver part's own sampler, fitted; nothing where the fit is switched off or there is no solver."""
        if "solver" not in self.parts:
            return {}
        genes = self.parts["solver"].genes(self.target)
        row = np.array([gene.name == "fit" for gene in genes], dtype=np.int64)
        return {"solver": row} if row.any() else {}

    def _combined(self) -> list[np.ndarray]:
        """Rows of all parts at once, from a few rows along each part's own front; always with a fitted solver."""
        if len(self.parts) < 2:
            return []
        fitted = self._fitted()
        picks: dict[str, list[np.ndarray]] = {}
        for key in self.parts:
            if key not in fitted and (own := self._own(key)):
                price = [self.prices[0](self._schedule(key, row), self.costs) for row in own]
                order = np.argsort(price, kind="stable")
                picks[key] = [own[order[i]] for i in spread_indices(len(own), PICKS)]
        rng = np.random.default_rng(0)
        rows = [
            fitted | {key: those[rng.integers(len(those))] for key, those in picks.items()} for _ in range(COMBINED)
        ]
        return unique_rows([self._join(row) for row in rows])

    # Rows and runs

    def _lift(self, key: str, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [self._join({key: row}) for row in rows]

    def _join(self, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        if isinstance(self.space, JointSpace):
            return self.space.join(rows, self.target)
        return rows[self.space.key]

    def _stack(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        unique = unique_rows(rows)
        return np.array(unique, dtype=np.int64).reshape(len(unique), len(self.space.genes(self.target)))

    def _caches(self, space: Space) -> bool:
        """Whether a space has genes for reuse and forecast."""
        return space.encode({}, self.target) is not None

    def _below(self, threshold: float) -> Tokens:
        """SmoothCache's actions of each component kind."""
        names = component_names(self.target)
        return {kind: threshold_mask(self.drifts.reuse(names[kind]), threshold) for kind in self.target.kinds}

    def _cached(self, method: str, plans: Iterable[Tokens]) -> list[np.ndarray]:
        """Rows of these actions; ValueError where the space has no genes for any component kind."""
        if not any(self._caches(space) for space in self.parts.values()):
            raise ValueError(f"{method} reuses components, and {self.space.key} reuses none; use +space=cache")
        rows = [self.space.encode(tokens, self.target) for tokens in plans]
        if all(row is None for row in rows):
            raise ValueError(
                f"{method} reuses whole component kinds, which this granularity has no genes for; "
                "use space.cache.granularity=component"
            )
        return unique_rows(rows)

    def _decoded(self, key: str, row: np.ndarray) -> dict[str, Any]:
        return {k: v for k, v in self.parts[key].decode(row, self.target).items() if k != "fit"}

    def _schedule(self, key: str, row: np.ndarray) -> Schedule:
        return to_schedule(self.model, self._decoded(key, row))

    def _drift(self, tokens: Mapping[str, Sequence[str]]) -> float:
        return float(np.mean(self.probe.values(plan_schedule(self.target, tokens))["drift"]))


def _relative(found: Tensor, teacher: Tensor) -> np.ndarray:
    """Relative error of final latents as one vector, whose norm is the RMS over prompts of their drifts."""
    error = (found - teacher).flatten(1) / teacher.flatten(1).norm(dim=1, keepdim=True)
    return (error.flatten() / len(error) ** 0.5).numpy()
