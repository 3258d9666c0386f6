"""Solver schedules: the order, form, stencil and corrector of every step, run as a table of coefficients."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from search.exact.rows import unique_rows
from search.profile.tables import Tables
from search.profile.target import Target
from search.schedule.noise import Noise
from search.schedule.schedulers import GRIDDED, scheduler_of_part
from search.solvers.multistep import compile_rules
from search.solvers.rules import sampler_rules
from search.solvers.table import MAX_ORDER, STENCILS, SolverRule, SolverTable
from search.solvers.trace import check_linear, trace_scheduler
from search.spaces.base import Space, require_steps
from search.spaces.gene import Gene

FORMS = ("data", "noise")
LARGEST = 1e4  # coefficient of a table; beyond it the rounding of the denoiser's outputs shows


@dataclass(frozen=True)
class SolverSpace(Space):
    """How each step is made from past outputs; USF's decisions (arXiv:2312.07243) that cost no denoiser call.

    Genes of step t, 0 what the pipeline's own scheduler does there:

    - `order@t`: 1.. that order, lowered where there are fewer past outputs. The first step is of order 1.
    - `form@t`: 1 extrapolates x0 (data), 2 the noise.
    - `stencil@t`: 1.. of `stencils`, see `search.solvers.table.SolverRule`.
    - `corrector@t`: 1 the next evaluation corrects where this step has led to, 2 it does not. No denoiser call.
    - `relaxation@t`, `early@t`: 1.. of `relaxations` and of `early`, where these name any. They change a step by one
      number each, where `fit` changes all; see `search.solvers.table.SolverRule`.
    - `back@t`: 1.. the step starts from the state of as many steps before, less one (`single_step`): with 2 and 3 on
      every second and third step, DPM-Solver 2S and 3S (arXiv:2206.00927), whose inner places are the steps between.
    - `fit`: 1 asks that the table be fitted by least squares to the teacher (OLSS, arXiv:2305.14677). `decode` gives
      the table before the fit; the evaluator fits it when the schedule runs (`wants_solver_fit`).

    DDIM, DPM-Solver++ (arXiv:2211.01095), DEIS (arXiv:2204.13902), UniPC (arXiv:2302.04867) and PNDM
    (arXiv:2202.09778) are rows of it. Where rules cannot express the pipeline's own scheduler, a step that leaves all
    at 0 is DDIM's as soon as any other gene is on.

    Args:
        max_order: The highest order of a step, 1 to 4.
        stencils: Names of weights that steps can have.
        correctors: Whether there are genes of correctors.
        fit: Whether there is a gene that asks for a fitted table.
        relaxations: Factors by which a slope can grow with the length of a step, within -1..1; none by default.
        single_step: Whether there are genes `back@t`; not by default.
        early: How far an output can be moved away from that of the first step, within -1..1; none by default.

    Raises:
        ValueError: The order is out of range, a stencil is unknown, or a relaxation or early weight is out of range.

    Example:
        >>> from search.profile.target import Target
        >>> from search.schedule.model.nodes import Tree
        >>> from search.spaces.solver import SolverSpace
        >>> config = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        >>> sampler = {"class": "DPMSolverMultistepScheduler", "config": config}
        >>> sampler |= {"timesteps": [900.0, 600.0, 300.0], "sigmas": [0.9, 0.6, 0.3, 0.0]}
        >>> target = Target("pixart", Tree("PixArtTransformer2DModel", {"transformer_blocks": 1}), 3, sampler=sampler)
        >>> space = SolverSpace(correctors=False, fit=False)
        >>> [gene.name for gene in space.genes(target)][:4]
        ['order@0', 'form@0', 'stencil@0', 'order@1']
        >>> table = space.decode(space.presets(target)["DDIM"], target)["sampler"]["coefficients"]
        >>> [len(row) for row in table["outputs"]]
        [1, 2, 3]
    """

    max_order: int = 4
    stencils: tuple[str, ...] = STENCILS
    correctors: bool = True
    fit: bool = True
    relaxations: tuple[float, ...] = ()
    early: tuple[float, ...] = ()
    single_step: bool = False
    key = "solver"
    stage = 1

    def __post_init__(self) -> None:
        if not 1 <= self.max_order <= MAX_ORDER:
            raise ValueError(f"max_order {self.max_order} is out of range; use 1 to {MAX_ORDER}")
        object.__setattr__(self, "stencils", tuple(self.stencils))  # a YAML gives a list
        if unknown := [s for s in self.stencils if s not in STENCILS]:
            raise ValueError(
                f"stencils {unknown} are unknown; choose from {', '.join(STENCILS)}, for example "
                "space.solver.stencils=[exact,midpoint]"
            )
        for name in ("relaxations", "early"):
            weights = tuple(float(weight) for weight in getattr(self, name))
            object.__setattr__(self, name, weights)
            if wrong := [weight for weight in weights if not 0 < abs(weight) <= 1]:
                raise ValueError(
                    f"{name} {wrong} are out of range; use -1 to 1 without 0, for example space.solver.{name}=[0.05]"
                )

    def genes(self, target: Target) -> list[Gene]:
        """The genes of the class, for each of the teacher's steps, and `fit`.

        Raises:
            ValueError: The pipeline's scheduler is not linear, clips or draws noise, or cannot run given timesteps, or
                the teacher has one step.
        """
        name = target.planned_sampler["class"]
        require_steps("a solver", 2, target)  # the only step has no past outputs, and no evaluation corrects it
        if name not in GRIDDED:
            raise ValueError(f"{name} cannot run given timesteps, which a table needs; use {', '.join(GRIDDED)}")
        check_linear(scheduler_of_part(target.sampler))
        _pipeline_rules(target.sampler)  # the denoiser's kind of output, and the grid
        rows = [(f"{n}@{t}", levels, t, ordered) for t in range(target.reference) for n, levels, ordered in self._row()]
        genes = [Gene(n, levels, step=t, ordered=ordered) for n, levels, t, ordered in rows]
        return [*genes, Gene("fit", 2, group="fit")] if self.fit else genes

    def decode(self, x: Sequence[int] | np.ndarray, target: Target) -> Mapping[str, Any]:
        """The sampler part with its table; `{}` where every step is the pipeline's own."""
        genes = np.asarray(x, dtype=np.int64)
        pipeline, expressible, table = _pipeline_rules(target.sampler)
        fit = self.wants_solver_fit(x, target)
        if any(map(any, self._table(genes, target))):
            rules = self._rules(genes, pipeline, target)
            if not expressible or rules != pipeline:
                table = compile_rules(rules, target.noise, target.sampler, LARGEST)
            elif not fit:
                return {}
        elif not fit:
            return {}
        part = {k: v for k, v in target.sampler.items() if k not in ("order", "coefficients")}
        return {"sampler": part | {"coefficients": table.part()}}

    def presets(self, target: Target) -> dict[str, np.ndarray]:
        """The published solvers that these genes can express, and that are not the pipeline's own."""
        pipeline, expressible, table = _pipeline_rules(target.sampler)
        rows = {}
        for name, rule in PRESETS.items():
            if rule.order > self.max_order or rule.stencil not in self.stencils or rule.back and not self.single_step:
                continue
            if not self.correctors and any(pipeline_rule.corrector != rule.corrector for pipeline_rule in pipeline):
                continue
            x = self._preset(name, rule, target.reference)
            compiled = compile_rules(self._rules(x, pipeline, target), target.noise, target.sampler, LARGEST)
            if not (expressible and compiled.close(table)):
                rows[name] = x
        return rows

    def encode_solver_fit(self, target: Target) -> np.ndarray:
        """The row with its fit alone on; all off where the fit is switched off."""
        return np.array([gene.name == "fit" for gene in self.genes(target)], dtype=np.int64)

    def wants_solver_fit(self, x: Sequence[int] | np.ndarray, target: Target) -> bool:
        return bool(self.fit and x[-1])

    def propose(self, tables: Tables) -> list[np.ndarray]:
        """The pipeline's own solver, fitted."""
        return unique_rows([self.encode_solver_fit(tables.target)])

    def exact_front(self, tables: Tables) -> list[np.ndarray]:
        """ValueError: genes of solvers have no effect alone."""
        raise ValueError(
            f"the {self.key} space has no table for dynamic programming: its genes do nothing alone; "
            "use engine=nsga2, or engine=olss"
        )

    # The genes of one step: names and levels, decoding, encoding

    def _row(self) -> list[tuple[str, int, bool]]:
        row = [("order", self.max_order + 1, True), ("form", 3, False), ("stencil", len(self.stencils) + 1, False)]
        row += [("corrector", 3, False)] if self.correctors else []
        weights = (("relaxation", self.relaxations), ("early", self.early))
        row += [(name, len(values) + 1, False) for name, values in weights if values]
        return [*row, ("back", 4, False)] if self.single_step else row

    def _table(self, x: np.ndarray, target: Target) -> list[list[int]]:
        """Genes of every step of the target's grid."""
        width = len(self._row())
        rows = x[: target.reference * width].reshape(target.reference, width).tolist()
        return [rows[t] for t in target.at]

    def _rules(self, x: np.ndarray, pipeline: tuple[SolverRule, ...], target: Target) -> tuple[SolverRule, ...]:
        rows = self._table(x, target)
        names = [name for name, _, _ in self._row()]
        steps = [(rule, dict(zip(names, row, strict=True))) for rule, row in zip(pipeline, rows, strict=True)]
        steps[0][1].update(relaxation=0, early=0)  # before the first step there is no output to compare with
        return tuple(self._rule(rule, genes) if any(genes.values()) else rule for rule, genes in steps)

    def _rule(self, rule: SolverRule, genes: Mapping[str, int]) -> SolverRule:
        corrector = genes.get("corrector", 0)
        return SolverRule(
            genes["order"] or rule.order,
            FORMS[genes["form"] - 1] if genes["form"] else rule.form,
            self.stencils[genes["stencil"] - 1] if genes["stencil"] else rule.stencil,
            corrector == 1 if corrector else rule.corrector,
            (0.0, *self.relaxations)[genes.get("relaxation", 0)],
            (0.0, *self.early)[genes.get("early", 0)],
            max(0, genes.get("back", 0) - 1),
        )

    def _preset(self, name: str, rule: SolverRule, steps: int) -> np.ndarray:
        rows = []
        for t in range(steps):
            left = steps - t  # diffusers lowers the last orders: UniPC's always, the others' of less than 15 steps
            lowered = name.startswith("UniPC") or (steps < 15 and rule.stencil != "even")
            row = [min(rule.order, left) if lowered else rule.order]
            back = (
                min(t % (rule.back + 1), rule.back) if left > 1 else 0
            )  # of single-step solvers; the last is of order 1
            row = [1 + back] if rule.back else row
            row += [1 + FORMS.index(rule.form), 1 + self.stencils.index(rule.stencil)]
            row += [1 if rule.corrector else 2] if self.correctors else []
            rows.append([*row, *[0] * (len(self._row()) - len(row))])
            if rule.back:
                rows[-1][-1] = 1 + back
        return np.array([*np.ravel(rows), *([0] if self.fit else [])], dtype=np.int64)


PRESETS = {
    "DDIM": SolverRule(1, "data", "exact"),
    "DPM-Solver++ 2M": SolverRule(2, "data", "midpoint"),
    "DPM-Solver++ 3M": SolverRule(3, "data", "midpoint"),
    "DEIS 3": SolverRule(3, "noise", "exact"),
    "UniPC 2": SolverRule(2, "data", "bh2", corrector=True),
    "UniPC 3": SolverRule(3, "data", "bh2", corrector=True),
    "DPM-Solver++ 2S": SolverRule(2, "data", "exact", back=1),
    "DPM-Solver++ 3S": SolverRule(3, "data", "exact", back=2),
    "PNDM 4": SolverRule(4, "noise", "even"),
}


def _pipeline_rules(sampler: Mapping[str, Any]) -> tuple[tuple[SolverRule, ...], bool, SolverTable]:
    """Rules [T] of the sampler part's scheduler, whether they express it exactly, and its table.

    Where rules cannot express it they are DDIM's, and the table is traced from the scheduler itself.
    """
    return _pipeline_rules_of(json.dumps(sampler, sort_keys=True))


@lru_cache(maxsize=256)
def _pipeline_rules_of(text: str) -> tuple[tuple[SolverRule, ...], bool, SolverTable]:
    sampler = json.loads(text)
    noise = Noise.of(sampler)
    try:
        rules, expressible = sampler_rules(sampler), True
    except ValueError:
        rules, expressible = (SolverRule(),) * len(sampler["timesteps"]), False
    table = compile_rules(rules, noise, sampler, LARGEST)
    if expressible:
        return rules, True, table
    return (
        rules,
        False,
        trace_scheduler(scheduler_of_part(sampler), timesteps=sampler["timesteps"], sigmas=sampler.get("sigmas")),
    )
