"""The tables that first rows and priors follow from, each measured when it is first read, on few prompts."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from search.calibrate.drifts import Drifts, record_drifts
from search.evaluate.evaluator import Evaluator
from search.evaluate.fit.solver import record_trajectory
from search.models.base import Model, to_schedule
from search.objectives.base import Cost
from search.profile.costs import Costs
from search.profile.plans import component_names, plan_schedule
from search.profile.tables import DenseRun, GeneTable
from search.profile.target import Target
from search.schedule.model.nodes import ROOT
from search.schedule.plan.tokens import OFF
from search.schedule.schedulers import forecast_coordinates
from search.spaces.base import Space

DENSE = 3  # steps of the recorded dense run for each of the teacher's


class MeasuredTables:
    """Measurements on the prompts of `probe`, which counts the work; see `search.profile.tables.Tables`.

    Args:
        spaces: The single spaces of a search, by key.
        target: The model as the spaces see it.
        model: The model that runs.
        probe: Evaluates schedules on a few prompts.
        costs: MACs and bytes of every node.
        prices: The costs that gene tables have a column for.
        on_message: Called with what is being measured, before it is.
    """

    def __init__(
        self,
        spaces: Mapping[str, Space],
        target: Target,
        model: Model,
        probe: Evaluator,
        costs: Costs,
        prices: Sequence[Cost],
        on_message: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.spaces, self.target, self.model, self.probe, self.costs = spaces, target, model, probe, costs
        self.prices, self.on_message = prices, on_message
        self._gene_tables: dict[str, GeneTable] = {}

    @cached_property
    def drifts(self) -> Drifts:
        """How the nodes' outputs change over the steps, from one teacher run."""
        self.model.begin(self.probe.prompts[:1], self.probe.seeds[:1])  # sets the timesteps
        axes = (space.forecast_axis for space in self.spaces.values())
        axis = next((axis for axis in axes if axis is not None), "index")
        places = forecast_coordinates(self.model.pipe.scheduler, axis)
        return record_drifts(
            self.model.experts,
            self.target.tree,
            places,
            self.probe.run_teacher,
            value_bytes=self.costs.value_bytes,
        )

    def reuse_errors(self, names: Sequence[str]) -> np.ndarray:
        return self.drifts.reuse(names)

    def forecast_errors(self, names: Sequence[str]) -> np.ndarray:
        return self.drifts.forecast(names)

    @property
    def distances(self) -> np.ndarray:
        l1 = self.drifts.pairs[ROOT].l1
        assert l1 is not None
        return l1

    @cached_property
    def weights(self) -> np.ndarray:
        """One run for each step: the step reuses the output of the step before, all other steps compute."""
        self.on_message("measuring how errors of each step propagate to the end")
        local = self.reuse_errors([ROOT])
        weights = np.zeros(self.target.steps)
        for t in range(1, self.target.steps):
            tokens = [OFF] * self.target.steps
            tokens[t] = "R"
            weights[t] = self._mean_drift({ROOT: tokens}) / max(local[t - 1, t], 1e-12)
        return weights

    @cached_property
    def scales(self) -> dict[str, float]:
        """One run for each component kind, which reuses it at every second step."""
        every_second = [OFF if t % 2 == 0 else "R" for t in range(self.target.steps)]
        scales = {}
        for kind, names in component_names(self.target).items():
            errors = self.reuse_errors(names)
            predicted = sum(self.weights[t] * errors[t - 1, t] for t in range(1, self.target.steps, 2))
            scales[kind] = self._mean_drift({kind: every_second}) / max(predicted, 1e-12)
        return scales

    @cached_property
    def dense_run(self) -> DenseRun:
        sampler = self.model.shorter(DENSE * self.target.steps)
        parts = {"steps": len(sampler["timesteps"]), "sampler": sampler}
        with self.model.apply(to_schedule(self.model, parts)):
            run = record_trajectory(self.model, *self.probe.inputs[0])
        timesteps = run.noise.timestep(np.array(run.sigmas[:-1]))
        return DenseRun(run.states.flatten(1).numpy(), run.outputs.flatten(1).numpy(), timesteps)

    def gene_table(self, key: str) -> GeneTable:
        """Relative errors of the final latents and the change of each cost, of each level of each gene alone.

        Where the space allows it, errors are those of runs of half the steps; costs are those of whole runs.
        """
        if key not in self._gene_tables:
            self._gene_tables[key] = self._measure_genes(key)
        return self._gene_tables[key]

    def _measure_genes(self, key: str) -> GeneTable:
        space = self.spaces[key]
        genes = space.genes(self.target)
        half = self._half_run() if space.table_from_half_run else {}
        base, teacher = to_schedule(self.model, {}), self.probe.teacher
        if half:
            teacher = self.probe.latents(to_schedule(self.model, half))
        vectors = [np.zeros((gene.levels, teacher.numel()), dtype=np.float32) for gene in genes]
        changes = [[np.zeros(gene.levels) for gene in genes] for _ in self.prices]
        for g, gene in enumerate(genes):
            self.on_message(f"measuring the {len(genes)} genes of {key} alone: {g}")
            for level in range(1, gene.levels):
                x = np.zeros(len(genes), dtype=np.int64)
                x[g] = level
                parts = dict(space.decode(x, self.target))
                schedule = to_schedule(self.model, parts)
                for change, price in zip(changes, self.prices, strict=True):
                    change[g][level] = price(schedule, self.costs) - price(base, self.costs)
                vectors[g][level] = _relative_error(self.probe.latents(to_schedule(self.model, parts | half)), teacher)
        return GeneTable([np.linalg.norm(v, axis=1) for v in vectors], changes, vectors)

    def _half_run(self) -> dict[str, Any]:
        """The parts of the pipeline's own sampler with half the steps."""
        sampler = self.model.shorter(max(2, self.target.steps // 2))
        return {"steps": len(sampler["timesteps"]), "sampler": sampler}

    def _mean_drift(self, tokens: Mapping[str, Sequence[str]]) -> float:
        return float(np.mean(self.probe.values(plan_schedule(self.target, tokens))["drift"]))


def _relative_error(latents: Tensor, teacher: Tensor) -> np.ndarray:
    """Relative error of final latents as one vector, whose norm is the RMS over prompts of their drifts."""
    error = (latents - teacher).flatten(1) / teacher.flatten(1).norm(dim=1, keepdim=True)
    vector: np.ndarray = (error.flatten() / len(error) ** 0.5).numpy()
    return vector
