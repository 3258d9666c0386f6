"""Guidance per step: which halves of the batch are computed, and what the pipeline is given to combine.

The pipeline combines u + call * (c - u) itself. At a narrow step (O, R, M) the denoiser sees half of the batch;
values that nodes keep are then kept per half, and the unconditional half is only written at full steps (C).
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from search.schedule.errors import ScheduleError
from search.schedule.nodes import CONDITIONAL, ROOT, TEXT, Tree
from search.schedule.plan import OFF, Plan, history, last_uses

FULL = "C"
WITH, WITHOUT = "conditional", "unconditional"  # the halves


def is_narrow(branch: str | None) -> bool:
    """Whether any step computes half of the batch."""
    return bool(set(branch or "") - {FULL})


def flow(name: str, tokens: Sequence[str], branch: str, half: str) -> tuple[list[bool], list[int]]:
    """At which steps a half of a node's value is computed, and how many computed values each step reads of it."""
    pairs = list(zip(tokens, branch, strict=True))
    if half == WITH:
        return [token == OFF for token in tokens], [history(token) for token in tokens]
    again = 1 if name == ROOT else 0  # a step R reads the denoiser's last unconditional output
    return (
        [token == OFF and kind == FULL for token, kind in pairs],
        [history(token) if kind == FULL else again * (kind == "R") for token, kind in pairs],
    )


def last_use(plan: Plan, name: str, branch: str) -> dict[str, dict[int, int]]:
    """`Plan.last_use` of each half."""
    return {half: last_uses(*flow(name, plan.tokens[name], branch, half)) for half in (WITH, WITHOUT)}


def check_halves(plan: Plan, branch: str) -> None:
    """ScheduleError where a full step reads an unconditional half that no full step has computed."""
    for name, tokens in plan.tokens.items():
        computed = 0
        computes, needs = flow(name, tokens, branch, WITHOUT)
        for step, (computing, count) in enumerate(zip(computes, needs, strict=True)):
            if count > computed:
                raise ScheduleError(
                    f"plan: {name} at step {step} is {tokens[step]} with guidance.branch {branch[step]}, which reads "
                    f"{count} unconditional value(s), but {computed} came before; put {count - computed} more C "
                    f"before it at steps whose guidance.branch is C"
                )
            computed += computing


def settle(tokens: Mapping[str, Sequence[str]], tree: Tree, branch: str | None) -> dict[str, list[str]]:
    """The actions of some nodes with every R and F lowered to what was computed before: F2, F1, R, C.

    Full steps count what was computed in both halves, narrow ones the conditional half; `branch` None is full
    throughout. A node below one that does not compute is written as C. Nodes that are not given compute.
    """
    steps = len(next(iter(tokens.values()), ()))
    settled: dict[str, list[str]] = {name: [] for name in tokens}
    both, one = dict.fromkeys(tokens, 0), dict.fromkeys(tokens, 0)  # computed values in both halves, and in one
    for step in range(steps):
        full = branch is None or branch[step] == FULL
        runs: dict[str | None, bool] = {None: True}
        for node in tree:
            runs[node.name] = runs[node.parent]
            if node.name not in settled:
                continue
            token = OFF
            if runs[node.parent]:
                token = _lowered(tokens[node.name][step], both[node.name] if full else one[node.name])
                runs[node.name] = token == OFF
                one[node.name] += token == OFF
                both[node.name] += full and token == OFF
            settled[node.name].append(token)
    return settled


def _lowered(token: str, computed: int) -> str:
    if history(token) <= computed:
        return token
    return OFF if computed == 0 else "R" if computed == 1 else f"F{computed - 1}"


@dataclass(frozen=True)
class Guidance:
    """A schedule's guidance at work. `conditional` is the place of that half in the batch, 0 or 1.

    `scale` and `branch` have one entry per step; `text` names the argument that M merges.
    """

    call: float
    scale: tuple[float, ...]
    branch: str
    conditional: int
    text: str | None

    @classmethod
    def of(
        cls, call: float, scale: Sequence[float] | None, branch: str | None, model_class: str, steps: int
    ) -> "Guidance":
        """ScheduleError where the model class is not known to guide, or cannot merge its branches."""
        if model_class not in CONDITIONAL:
            raise ScheduleError(
                f"guidance: it is not known which half of the batch is conditional for {model_class}; "
                f"known: {', '.join(sorted(CONDITIONAL))}"
            )
        text = TEXT.get(model_class)
        if text is None and "M" in (branch or ""):
            raise ScheduleError(f"guidance.branch is M, but {model_class} has no text states to merge; use C, O and R")
        scales = tuple(scale) if scale is not None else (call,) * steps
        return cls(call, scales, branch or FULL * steps, CONDITIONAL[model_class], text)

    def narrow(self, step: int) -> bool:
        return self.branch[step] != FULL

    def check(self, hidden: Tensor, step: int, calls: int) -> None:
        """Refuse a pipeline that runs without guidance, or calls the denoiser once per branch."""
        if calls:
            raise ScheduleError(
                f"the denoiser was called {calls + 1} times at step {step}; a guidance part is for pipelines that "
                "compute both halves of guidance as one batch"
            )
        if step == 0 and (len(hidden) % 2 or not torch.equal(*hidden.chunk(2))):
            raise ScheduleError(
                f"this schedule plans guidance, but the denoiser's batch of {len(hidden)} is not two equal halves: "
                f"call the pipeline with guidance_scale={self.call:g}"
            )

    def narrowed(self, module: nn.Module, step: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The denoiser's arguments for the conditional half of the batch, all by name."""
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        given = dict(zip(names, args, strict=False)) | dict(kwargs)
        batch = len(given["hidden_states"])
        half = {name: self._half(value, batch) for name, value in given.items()}
        if self.branch[step] == "M":
            assert self.text is not None
            if not isinstance(states := given.get(self.text), Tensor) or len(states) != batch:
                raise ScheduleError(f"guidance.branch is M at step {step}, but the denoiser was given no {self.text}")
            without, conditional = self.split(states)
            half[self.text] = without + self.scale[step] * (conditional - without)
        return half

    def returned(self, step: int, output: Tensor, without: Tensor | None) -> Tensor:
        """Both halves [B, ...] for the pipeline: `output` is what this step computed, full or conditional.

        `without` is the last unconditional output, for R. A step of the teacher's own gets `output` itself.
        """
        kind, scale = self.branch[step], self.scale[step]
        if kind in "OM":
            return torch.cat([output, output])
        if kind == FULL and scale == self.call:
            return output
        without, conditional = self.split(output) if without is None else (without, output)
        if scale != self.call:
            conditional = without + (scale / self.call) * (conditional - without)
        return torch.cat([without, conditional] if self.conditional else [conditional, without])

    def split(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The unconditional and the conditional half of a batch."""
        halves = value.chunk(2)
        return halves[1 - self.conditional], halves[self.conditional]

    def _half(self, value: Any, batch: int) -> Any:
        if isinstance(value, Tensor):
            return self.split(value)[1] if value.dim() and len(value) == batch else value
        if isinstance(value, dict):
            return {key: self._half(inner, batch) for key, inner in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self._half(inner, batch) for inner in value)
        return value
