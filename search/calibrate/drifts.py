"""How much each node's output changes from step to step, measured in one run of the teacher."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from search.kernels.pairwise import Pairs, pairwise
from search.schedule.apply.forecast import check_distinct
from search.schedule.apply.outputs import unpack_output
from search.schedule.model.nodes import ROOT, Node, Tree
from search.schedule.values import leaves


@dataclass(frozen=True)
class Drifts:
    """How nodes' outputs change over the steps; every error of a reused or forecast value follows from it.

    Attributes:
        pairs: By node the distances between its outputs at any two steps.
        places: The coordinates of the T steps that forecasts go by.
    """

    pairs: Mapping[str, Pairs]
    places: Sequence[float]

    def reuse(self, names: Sequence[str]) -> np.ndarray:
        """Error [T, T]: relative RMS error at step t (column) of the value of step s < t (row), mean over nodes."""
        return np.triu(np.mean([self.pairs[name].relative for name in names], axis=0), 1)

    def forecast(self, names: Sequence[str]) -> np.ndarray:
        """Error [T, T, T] at step t of the line through the values of steps p < s < t, mean over nodes.

        The line is F_s + a (F_s - F_p) with a = (t - s) / (s - p). By Stewart's theorem on the triangle of the three
        values its squared distance to F_t is (1 + a) |F_s - F_t|^2 - a |F_p - F_t|^2 + a (1 + a) |F_p - F_s|^2.

        Args:
            names: The nodes that the mean is taken over.

        Returns:
            Relative RMS errors, 0 where not p < s < t.
        """
        check_distinct(self.places[:-1])
        steps = np.arange(len(self.places))
        p, s, t = (index.ravel() for index in np.meshgrid(steps, steps, steps, indexing="ij"))
        p, s, t = (index[(p < s) & (s < t)] for index in (p, s, t))
        places = np.array(self.places, dtype=float)
        a = (places[t] - places[s]) / (places[s] - places[p])
        out = np.zeros([len(steps)] * 3)
        for name in names:
            d, energy = self.pairs[name].squares, self.pairs[name].energy
            square = (1 + a) * d[s, t] - a * d[p, t] + a * (1 + a) * d[p, s]
            out[p, s, t] += np.sqrt(square.clip(min=0) / energy[t])
        return out / len(names)


def record_drifts(
    experts: Sequence[nn.Module],
    tree: Tree,
    places: Sequence[float],
    run: Callable[[], object],
    limit_bytes: int = 2**30,
    value_bytes: Mapping[str, int] | None = None,
) -> Drifts:
    """Run the teacher and measure the distances between the outputs of each component and of the denoiser.

    Args:
        experts: The modules whose nodes are observed, of which one runs at each step.
        tree: Its nodes.
        places: The coordinates of the T steps that forecasts go by.
        run: Runs the teacher once; every call gives the same trajectory.
        limit_bytes: Outputs of all steps stay in memory at once; where they would exceed this limit, the nodes are
            divided over several runs.
        value_bytes: The size of each node's output, for that limit.

    Returns:
        Distances for `denoiser` and for each component that lies in no other one.
    """
    nodes = [node for node in tree if node.kind in ("denoiser", "component") and not node.nested]
    sizes = [(value_bytes or {}).get(node.name, 0) * len(places) for node in nodes]
    parts: list[list[Node]] = [[]]
    filled = 0
    for node, size in zip(nodes, sizes, strict=True):
        if parts[-1] and filled + size > limit_bytes:
            parts.append([])
            filled = 0
        parts[-1].append(node)
        filled += size
    pairs: dict[str, Pairs] = {}
    for part in parts:
        outputs: dict[str, list[Tensor]] = {node.name: [] for node in part}
        removers = []
        for node in part:

            def after(_: object, __: object, output: object, values: list[Tensor] = outputs[node.name]) -> None:
                values.append(torch.cat([tensor.detach().flatten() for tensor in leaves(unpack_output(output)[0])]))

            modules = [tree.module(expert, node) for expert in experts]
            removers += [module.register_forward_hook(after) for module in modules if module is not None]
        try:
            run()
        finally:
            for remover in removers:
                remover.remove()
        for name, values in outputs.items():
            stacked = torch.stack(values).reshape(len(places), -1)  # calls of one step side by side
            pairs[name] = pairwise(stacked, l1=name == ROOT)
    return Drifts(pairs, list(places))
