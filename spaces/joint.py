"""Several spaces as one: `+space=[timesteps,solver,cache,bits]`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from search.profile.target import Target
from search.schedule.apply.forecast import newton_weights
from search.schedule.model.nodes import ROOT, Tree
from search.schedule.plan.gate_conflicts import undecided_tokens
from search.schedule.plan.guidance import settle_branches
from search.schedule.plan.tokens import OFF, Tokens, format_actions, parse_actions, values_read
from search.spaces.base import Space
from search.spaces.gene import Gene


class JointSpace(Space):
    """The genes of all spaces side by side; those of one step are one group, whichever space they come from.

    Spaces decode in the order of their stage. Where one moves the timesteps, the others decode on the new grid: each
    step takes the genes of the teacher's step nearest in log-SNR (`Target.at`). Where several spaces plan one node, a
    skip takes precedence, then any action but compute. An action that then reads a value that is not computed is
    lowered, also where another denoiser runs. A step of a solver table whose whole output is reused is folded into the
    table (`folded`). So genes without an effect do not show in the schedule, and equal behaviour has equal digests.

    Args:
        spaces: The spaces, each of another key.

    Raises:
        ValueError: Two spaces have the same key.

    Example:
        >>> from search.profile.target import Target
        >>> from search.schedule.model.nodes import Tree
        >>> from search.spaces.cache import CacheSpace
        >>> from search.spaces.joint import JointSpace
        >>> from search.spaces.skip import SkipSpace
        >>> target = Target("pixart", Tree("PixArtTransformer2DModel", {"transformer_blocks": 1}), steps=3)
        >>> space = JointSpace([CacheSpace("step", max_order=0), SkipSpace()])
        >>> [gene.name for gene in space.genes(target)][:3]
        ['cache.denoiser@1', 'cache.denoiser@2', 'skip.skip transformer_blocks.0@0']
        >>> space.decode([0, 1, 0, 1, 1], target)["plan"]["rules"]
        [['denoiser', 'CCR'], ['transformer_blocks.0', 'CSC']]
    """

    def __init__(self, spaces: Sequence[Space]) -> None:
        if len({space.key for space in spaces}) < len(spaces):
            raise ValueError(f"space={[s.key for s in spaces]} has one space twice; name each once")
        self.spaces = tuple(spaces)
        self.key = "+".join(space.key for space in spaces)  # type: ignore[misc]
        self.additive = all(space.additive for space in spaces)  # type: ignore[misc]

    def genes(self, target: Target) -> list[Gene]:
        """All genes, `<space>.<name>` each."""
        return [replace(gene, name=f"{space.key}.{gene.name}") for space in self.spaces for gene in space.genes(target)]

    def split(self, x: Sequence[int] | np.ndarray, target: Target) -> list[np.ndarray]:
        """The rows of the single spaces in a row [G], in their order."""
        ends = np.cumsum([len(space.genes(target)) for space in self.spaces])
        return np.split(np.asarray(x, dtype=np.int64), ends[:-1])

    @property
    def single_spaces(self) -> tuple[Space, ...]:
        return self.spaces

    def join(self, rows: Mapping[str, np.ndarray], target: Target) -> np.ndarray:
        """A row [G] from rows of single spaces by key; a missing space is off."""
        off = {space.key: np.zeros(len(space.genes(target)), dtype=np.int64) for space in self.spaces}
        return np.concatenate([rows.get(key, zeros) for key, zeros in off.items()])

    def decode(self, x: Sequence[int] | np.ndarray, target: Target) -> Mapping[str, Any]:
        """The parts of all spaces, made consistent as the class describes; `{}` where all are off."""
        parts: dict[str, Any] = {}
        plans: list[Mapping[str, Any]] = []
        rows = zip(self.spaces, self.split(x, target), strict=True)
        for space, row in sorted(rows, key=lambda pair: pair[0].stage):
            decoded = dict(space.decode(row, target))
            if "plan" in decoded:
                plans.append(decoded.pop("plan"))
            parts |= decoded
            target = target.on(decoded)
        if plans:
            branch = parts.get("guidance", {}).get("branch")
            tokens = undecided_tokens(_overlay(plans, target), parts.get("gates", ()), target.tree)
            parts |= _plan(tokens, target.tree, _axis(plans), branch, target.models)
        joined = folded(parts, target)
        ahead = max((plan.get("ahead", 1) for plan in plans), default=1)
        return joined | {"plan": joined["plan"] | {"ahead": ahead}} if ahead > 1 and "plan" in joined else joined

    def encode(self, tokens: Mapping[str, Sequence[str]], target: Target) -> np.ndarray | None:
        """The row [G] of the first space that has genes for these actions, the others off; None where none has."""
        for space in self.spaces:
            if (x := space.encode(tokens, target)) is not None:
                return self.join({space.key: x}, target)
        return None

    @property
    def needs_input_ranges(self) -> bool:
        return any(space.needs_input_ranges for space in self.spaces)

    @property
    def gaussian_rank(self) -> int:
        return max(space.gaussian_rank for space in self.spaces)

    def wants_solver_fit(self, x: Sequence[int] | np.ndarray, target: Target) -> bool:
        rows = zip(self.spaces, self.split(x, target), strict=True)
        return any(space.wants_solver_fit(row, target) for space, row in rows)

    def presets(self, target: Target) -> dict[str, np.ndarray]:
        """The presets of every space, the other spaces off; presets of the same name are combined to one row."""
        rows: dict[str, dict[str, np.ndarray]] = {}
        for space in self.spaces:
            for name, x in space.presets(target).items():
                rows.setdefault(name, {})[space.key] = x
        return {name: self.join(parts, target) for name, parts in rows.items()}


def folded(parts: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """The same behaviour without the steps whose whole output is reused or forecast, where a solver table runs.

    The output of such a step is a weighted sum of earlier outputs, and the solver is linear: its column is added
    to theirs, and the step is left out.

    Args:
        parts: Decoded parts, with `sampler` and `plan`.
        target: The model on the grid of these parts.

    Returns:
        Parts with fewer steps and a smaller table. The parts as they are where the sampler has no table, where
        guidance or gates differ from step to step (they act on outputs), and where a forecast of another node counts
        steps (axis `index`).
    """
    folded_parts = dict(parts)
    table = folded_parts.get("sampler", {}).get("coefficients")
    rules = {name: parse_actions(text, target.steps) for name, text in folded_parts.get("plan", {}).get("rules", ())}
    tokens = rules.pop(ROOT, None)
    axis = folded_parts.get("plan", {}).get("axis", "index")
    forecasts = any(t[0] == "F" for actions in rules.values() for t in actions)
    if not table or tokens is None or {"guidance", "gates"} & set(folded_parts) or (forecasts and axis == "index"):
        return folded_parts
    run_steps = [t for t, token in enumerate(tokens) if token == OFF]
    columns = _columns(tokens, _places(target, axis))
    ends = [t - 1 for t in [*run_steps[1:], target.steps]]  # the row whose result the next step that runs begins with
    square = np.zeros((target.steps, target.steps))
    for i, row in enumerate(table["outputs"]):
        square[i, : i + 1] = row
    merged = square @ columns  # [T, K] for the K steps that run
    sampler = dict(folded_parts["sampler"])
    sampler["coefficients"] = {
        "state": [table["state"][i] for i in ends],
        "outputs": [merged[i, : k + 1].tolist() for k, i in enumerate(ends)],
    }
    sampler["timesteps"] = [sampler["timesteps"][t] for t in run_steps]
    if sampler.get("sigmas") is not None:
        sampler["sigmas"] = [sampler["sigmas"][t] for t in run_steps] + [sampler["sigmas"][-1]]
    folded_parts |= {"sampler": sampler, "steps": len(run_steps)}
    at = "".join(target.models[t] for t in run_steps) if target.models else ""
    folded_parts |= target.stitched(at)
    folded_parts.pop("plan")
    remaining = {name: tuple(actions[t] for t in run_steps) for name, actions in rules.items()}
    return folded_parts | _plan(remaining, target.tree, axis, None, at)


def _columns(tokens: Tokens, places: Sequence[float]) -> np.ndarray:
    """Weights [T, K] that give the output of every step from the outputs of the K steps that run."""
    run_steps = [t for t, token in enumerate(tokens) if token == OFF]
    weights = np.zeros((len(tokens), len(run_steps)))
    for t, token in enumerate(tokens):
        before = [k for k, step in enumerate(run_steps) if step < t or (step == t and token == OFF)]
        if token == OFF:
            weights[t, before[-1]] = 1
        else:
            read = before[-values_read(token) :]
            sources = [places[run_steps[k]] for k in read]
            weights[t, read] = newton_weights(sources, places[t]) if len(read) > 1 else 1
    return weights


def _places(target: Target, axis: str) -> list[float]:
    if axis == "index":
        return [float(t) for t in range(target.steps)]
    if axis == "timestep":
        return [float(t) for t in target.planned_sampler["timesteps"]]
    if axis == "sigma":
        return [float(s) for s in target.planned_sampler["sigmas"][:-1]]
    return [float(place) for place in target.noise.grid_logsnr(target.sampler)]


def _overlay(plans: Sequence[Mapping[str, Any]], target: Target) -> dict[str, Tokens]:
    """One action per node and step: a skip takes precedence, then any action but compute."""
    tokens: dict[str, Tokens] = {}
    for plan in plans:
        for name, text in plan["rules"]:
            new = parse_actions(text, target.steps)
            old = tokens.get(name, (OFF,) * target.steps)
            tokens[name] = tuple("S" if "S" in (a, b) else a if a != OFF else b for a, b in zip(old, new, strict=True))
    return tokens


def _axis(plans: Sequence[Mapping[str, Any]]) -> str:
    """The axis of the plan that forecasts."""
    return next((plan["axis"] for plan in plans if any("F" in text for _, text in plan["rules"])), "index")


def _plan(tokens: Mapping[str, Tokens], tree: Tree, axis: str, branch: str | None, at: str) -> dict[str, Any]:
    """A plan part of these actions, each lowered to what it can read; `{}` where all is computed."""
    settled = settle_branches(tokens, tree, branch, at) if tokens else {}
    rules = [[name, format_actions(actions)] for name, actions in settled.items() if set(actions) != {OFF}]
    return {"plan": {"value": "out", "axis": axis, "rules": rules}} if rules else {}
