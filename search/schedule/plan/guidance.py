"""Guidance per step: which halves of the batch are computed, and the outputs that the pipeline combines.

The pipeline combines u + call * (c - u) itself. At a narrow step (O, R, M, A) the denoiser gets half of the batch;
values of nodes are then stored per half, and the unconditional half is only computed at full steps (C). Of the denoiser
a third value is stored where a step A reads it: u - c.
"""

import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from search.schedule.errors import ScheduleError
from search.schedule.model.contracts import CONTRACTS
from search.schedule.model.nodes import ROOT, Tree
from search.schedule.plan.plan import Plan
from search.schedule.plan.tokens import OFF, OWN, denoiser_switches, last_uses, steps_since_switch, values_read
from search.schedule.values import batch_rows

FULL = "C"
WITH, WITHOUT, DIFFERENCE = "conditional", "unconditional", "difference"  # the halves, and u - c
STORED = (WITH, WITHOUT, DIFFERENCE)
GAIN = 1.1  # FasterCache's factor on either band of frequencies
RADIUS = 0.2  # of the low frequencies, in parts of the shorter side


def is_narrow(branch: str | None) -> bool:
    """Whether any step computes half of the batch."""
    return bool(set(branch or "") - {FULL})


def branch_reads(name: str, tokens: Sequence[str], branch: str, half: str) -> tuple[list[bool], list[int]]:
    """At which steps a half of a node's value (or DIFFERENCE) is computed, and how many such values each step reads."""
    pairs = list(zip(tokens, branch, strict=True))
    if half == WITH:
        return [token == OFF for token in tokens], [values_read(token) for token in tokens]
    if half == DIFFERENCE:
        needs = [int(name == ROOT and kind == "A") for kind in branch]
        return [token == OFF and kind == FULL for token, kind in pairs], needs
    again = 1 if name == ROOT else 0  # a step R reads the denoiser's last unconditional output
    return (
        [token == OFF and kind == FULL for token, kind in pairs],
        [values_read(token) if kind == FULL else again * (kind == "R") for token, kind in pairs],
    )


def last_use(plan: Plan, name: str, branch: str) -> dict[str, dict[int, int]]:
    """`Plan.last_use` of each half and of their difference."""
    return {half: last_uses(*branch_reads(name, plan.tokens[name], branch, half)) for half in STORED}


def check_halves(plan: Plan, branch: str) -> None:
    """Raise ScheduleError where an unconditional half or a difference is read that no full step has computed."""
    barriers = denoiser_switches(plan.at)
    for (name, tokens), half in itertools.product(plan.tokens.items(), (WITHOUT, DIFFERENCE)):
        computed = began = 0
        computes, needs = branch_reads(name, tokens, branch, half)
        for step, (computing, count) in enumerate(zip(computes, needs, strict=True)):
            if step in barriers:
                computed, began = 0, step
            if count > computed:
                raise ScheduleError(
                    f"plan: {name} at step {step} is {tokens[step]} with guidance.branch {branch[step]}, which reads "
                    f"{count} {half} value(s), but {computed} came before{steps_since_switch(began)}; put "
                    f"{count - computed} more C before it at steps whose guidance.branch is C"
                )
            computed += computing


def settle_branches(
    tokens: Mapping[str, Sequence[str]], tree: Tree, branch: str | None, at: str = ""
) -> dict[str, list[str]]:
    """The actions of some nodes with every R and F lowered to what was computed before: F2, F1, R, C.

    Full steps count what was computed in both halves, narrow ones the conditional half; `branch` None is full
    throughout. A node in one that is not computed gets C. Nodes that are not given are computed. `at` has the denoiser
    of every step: where another one runs only the node `denoiser` has actions, and values from before a switch are not
    read.
    """
    steps = len(next(iter(tokens.values()), ()))
    settled: dict[str, list[str]] = {name: [] for name in tokens}
    both, one = dict.fromkeys(tokens, 0), dict.fromkeys(tokens, 0)  # computed values in both halves, and in one
    barriers = denoiser_switches(at)
    for step in range(steps):
        if step in barriers:
            both, one = dict.fromkeys(tokens, 0), dict.fromkeys(tokens, 0)
        full = branch is None or branch[step] == FULL
        own_denoiser = not at or at[step] == OWN
        runs: dict[str | None, bool] = {None: True}
        for node in tree:
            runs[node.name] = runs[node.parent] and (own_denoiser or node.parent != ROOT)
            if node.name not in settled:
                continue
            token = OFF
            if runs[node.name]:
                token = _lowered(tokens[node.name][step], both[node.name] if full else one[node.name])
                runs[node.name] = token == OFF
                one[node.name] += token == OFF
                both[node.name] += full and token == OFF
            settled[node.name].append(token)
    return settled


def _lowered(token: str, computed: int) -> str:
    if values_read(token) <= computed:
        return token
    return OFF if computed == 0 else "R" if computed == 1 else f"F{computed - 1}"


@dataclass(frozen=True)
class Approximation:
    """The unconditional output of a step A, estimated from the conditional one, FasterCache (arXiv:2410.19355).

    Added is the difference u - c of the last full step, its low frequencies times `low` [T], the others times `high`
    [T]. Low are those within `radius`, in parts of the shorter side, of the spectrum's centre.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    radius: float

    def unconditional(self, step: int, conditional: Tensor, difference: Tensor) -> Tensor:
        """The estimate of u [B, C, H, W] from c, and from u - c of the last full step."""
        low, high = self.low[step], self.high[step]
        if low == high:
            return conditional + low * difference
        precise = difference.float()  # not every device transforms half precision
        height, width = sides = precise.shape[-2:]
        rows = torch.fft.fftfreq(height, 1 / height, device=precise.device)[:, None]
        columns = torch.fft.rfftfreq(width, 1 / width, device=precise.device)
        mask = rows**2 + columns**2 <= math.floor(self.radius * min(sides)) ** 2
        smooth = torch.fft.irfft2(torch.fft.rfft2(precise) * mask, s=sides)
        return conditional + (low * smooth + high * (precise - smooth)).to(conditional.dtype)


@dataclass(frozen=True)
class Guidance:
    """Guidance of a schedule. `conditional` is the place of that half in the batch, 0 or 1.

    `scale` and `branch` have one entry per step; `sample` and `text` name the denoiser's first argument and the one
    that M merges.
    """

    call: float
    scale: tuple[float, ...]
    branch: str
    approximation: Approximation
    conditional: int
    sample: str
    text: str | None

    @classmethod
    def of(
        cls,
        tree: Tree,
        steps: int,
        call: float,
        scale: Sequence[float] | None = None,
        branch: str | None = None,
        approximation: Approximation | None = None,
    ) -> "Guidance":
        """Guidance of a denoiser with this tree.

        Args:
            tree: The nodes of the denoiser; its contract names the conditional half.
            steps: How many steps a run has.
            call: The guidance_scale of the pipeline call.
            scale: The scale of each step [steps]; `call` by default.
            branch: What each step computes [steps], of C, O, R, M and A; C by default.
            approximation: The weights of steps A.

        Raises:
            ScheduleError: The contract has no conditional half, or no text states for M to merge.
        """
        contract, name = tree.contract, tree.model_class
        if contract.conditional is None:
            classes = sorted(n for n, c in CONTRACTS.items() if c.conditional is not None)
            raise ScheduleError(
                f"guidance: it is not known which half of the batch is conditional for {name}; "
                f"known: {', '.join(classes)}"
            )
        if contract.text is None and "M" in (branch or ""):
            raise ScheduleError(f"guidance.branch is M, but {name} has no text states to merge; use C, O, R and A")
        scales = tuple(scale) if scale is not None else (call,) * steps
        weights = approximation or Approximation((GAIN,) * steps, (GAIN,) * steps, RADIUS)
        return cls(call, scales, branch or FULL * steps, weights, contract.conditional, contract.sample, contract.text)

    def narrow(self, step: int) -> bool:
        """Whether a step computes the conditional half of the batch only."""
        return self.branch[step] != FULL

    def check(self, hidden: Tensor, step: int, calls: int) -> None:
        """Raise ScheduleError where the pipeline runs without guidance, or calls the denoiser once per branch."""
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
        batch = len(given[self.sample])
        half = {name: batch_rows(lambda t: self.split(t)[1], value, batch) for name, value in given.items()}
        if self.branch[step] == "M":
            assert self.text is not None
            if not isinstance(states := given.get(self.text), Tensor) or len(states) != batch:
                raise ScheduleError(f"guidance.branch is M at step {step}, but the denoiser was given no {self.text}")
            without, conditional = self.split(states)
            half[self.text] = without + self.scale[step] * (conditional - without)
        return half

    def difference(self, step: int, output: Tensor) -> Tensor:
        """The difference u - c of both halves [B, C, H, W]; ScheduleError where the output is not a picture."""
        if output.dim() != 4:
            raise ScheduleError(
                f"guidance.branch is A after step {step}, but the denoiser returns {list(output.shape)}; the "
                "frequencies of A are those of pictures [B, C, H, W]; use C, O and R"
            )
        without, conditional = self.split(output)
        return without - conditional

    def returned(self, step: int, output: Tensor, stored: Tensor | None) -> Tensor:
        """Both halves [B, ...] for the pipeline, from the full or conditional `output` of this step.

        `stored` is the last unconditional output for R, the last difference for A. At a full step of the call's own
        scale it is `output` itself.
        """
        kind, scale = self.branch[step], self.scale[step]
        if kind in "OM":
            return torch.cat([output, output])
        if kind == FULL and scale == self.call:
            return output
        if kind == "A" and stored is not None:
            stored = self.approximation.unconditional(step, output, stored)
        without, conditional = self.split(output) if stored is None else (stored, output)
        if scale != self.call:
            conditional = without + (scale / self.call) * (conditional - without)
        return torch.cat([without, conditional] if self.conditional else [conditional, without])

    def split(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The unconditional and the conditional half of a batch."""
        halves = value.chunk(2)
        return halves[1 - self.conditional], halves[self.conditional]
