"""What calibration expects of a row before it runs: additive tables, weighted by how errors propagate."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.calibrate.tables import MeasuredTables
from search.profile.plans import component_names
from search.profile.target import Target
from search.schedule.model.nodes import ROOT
from search.spaces.base import Space

TOKEN = re.compile(r"[A-Z-]\d?")


@dataclass(frozen=True)
class Prior:
    """Expected drift and the share of the work that is left, for rows of a space; plain data.

    Errors at a step add up to terminal drift by `weights` [T], of one-step perturbation rollouts; `errors` [T, T] by
    node are relative errors at a step (column) of the value of an earlier one (row), scaled to what the node's kind did
    in a rollout. `shares` are the nodes' shares of the work of a step. Effects that tables do not contain (sums that
    cancel, solvers, bits) have to be learned from scores.
    """

    space: Space
    target: Target
    weights: np.ndarray
    errors: Mapping[str, np.ndarray]
    shares: Mapping[str, float]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Expected drift and share of the work [N, 2] of rows x [N, G]."""
        return np.array([self._expected(self.space.decode(row, self.target)) for row in x]).reshape(len(x), 2)

    def _expected(self, parts: Mapping[str, Any]) -> tuple[float, float]:
        target = self.target.on(parts)
        at, drift, saved = np.array(target.at), 0.0, 0.0
        for node, text in parts.get("plan", {}).get("rules", ()):
            tokens = np.array([token[0] for token in TOKEN.findall(text)])
            if len(tokens) != len(at):
                continue  # abbreviated by another space
            read, skipped = (tokens == "R") | (tokens == "F"), tokens == "S"
            saved += self.shares.get(node, 0.0) * float((read | skipped).sum())
            if node in self.errors:
                steps = np.arange(len(tokens))
                last = np.maximum.accumulate(np.where(tokens == "C", steps, 0))
                drift += float((self.weights[at] * self.errors[node][at[last], at])[read].sum())
                drift += float(self.weights[at][skipped].sum()) * self.shares.get(node, 0.0)
        return drift, max(len(at) - saved, 0.0) / target.reference


def measured_prior(space: Space, tables: MeasuredTables) -> Prior:
    """The prior of a space that reuses values, from the errors of the denoiser and of each component."""
    costs, drifts = tables.costs, tables.drifts
    errors = {ROOT: drifts.reuse([ROOT])}
    shares = {ROOT: 1.0} | {name: macs / costs.call_macs for name, macs in costs.component_macs.items()}
    for kind, names in component_names(tables.target).items():
        for name in names:
            if name in drifts.pairs:
                errors[name] = tables.scales[kind] / len(names) * drifts.reuse([name])
    return Prior(space, tables.target, tables.weights, errors, shares)
