"""What works on each tiny pipeline of the zoo: its contract by observation, the proofs, and a schedule in its own call.

`python -m tests.zoo.coverage` tries all of them and writes docs/coverage.md; tests/zoo/test_coverage.py compares.
"""

import sys
import warnings
from collections import Counter
from typing import Any

import torch

from search import Schedule, ScheduleError
from search.evaluate.execute.partial import PartialRun
from search.models.base import to_schedule
from search.models.pipeline import Pipeline
from search.observe.contract import ObservedContract, observe
from search.schedule.model.identity import model_part
from tests.helpers.repository import ROOT
from tests.helpers.zoo import ZOO
from tests.helpers.zoo.absent import ABSENT

PAGE = ROOT / "docs" / "coverage.md"
VARIANTS = (
    "Flux2Transformer2DModel/klein",
    "FluxTransformer2DModel/controlnet",
    "FluxTransformer2DModel/img2img",
    "FluxTransformer2DModel/inpaint",
    "FluxTransformer2DModel/kontext",
    "FluxTransformer2DModel/modular",
    "FluxTransformer2DModel/true-cfg",
    "LTX2VideoTransformer3DModel/four-branches",
    "QwenImageTransformer2DModel/edit",
    "UNet2DConditionModel/controlnet",
    "UNet2DConditionModel/euler-ancestral",
    "UNet2DConditionModel/heun",
    "UNet2DConditionModel/img2img",
    "UNet2DConditionModel/inpaint",
    "UNet2DConditionModel/lcm",
    "UNet2DConditionModel/xl",
    "UNet2DConditionModel/xl-refiner",
    "WanTransformer3DModel/image-to-video",
    "WanTransformer3DModel/two-experts",
    "ZImageTransformer2DModel/img2img",
)
HEAD = """# Which denoisers

Every denoiser class of diffusers {diffusers} of which a tiny random pipeline could be built: {classes} classes in
{samples} pipelines. Each is observed in one call (`python -m search.contract`), its contract is proved on the denoiser
([Any denoiser](contract.md)), and a schedule that changes nothing is applied to the pipeline, called, compared to the
bit and removed. Then the pipeline is a model of a search: its own call is run, and schedules that reuse every second
step are run whole, and in parts that begin where another run was; the latents have to be equal to the bit. Written by
`tests/zoo/coverage.py`.

{counts}

| denoiser / variant | pipeline | steps, calls at each | stacks (components) → passed on | proved | off | searched |
|---|---|---|---|---|---|---|
"""


def shown() -> list[str]:
    """One sample of each class, and the variants that people run most."""
    first = {name.partition("/")[0]: name for name in sorted(ZOO, reverse=True)}
    return sorted({*first.values(), *VARIANTS})


def rows(name: str) -> list[str]:
    """The rows of one sample, one for each of its denoisers."""
    sample = ZOO[name]()
    bare = sample.run()
    try:
        observation = observe(sample.pipe, sample.call | {"generator": torch.Generator().manual_seed(0)})
    except ScheduleError as error:
        return [row(name, sample.pipe, "–", "–", "–", _short(error), "–")]
    parts = [(_calls(each), _stacks(each), _proofs(each), _off(sample, each, bare)) for each in observation.contracts]
    searched = _searched(sample)
    return [row(name, sample.pipe, *cells, searched) for cells in parts]


def row(name: str, pipe: Any, *cells: str) -> str:
    """One line of the table."""
    return f"| {' | '.join([name, type(pipe).__name__, *cells])} |"


def _calls(each: ObservedContract) -> str:
    counts = sorted(set(each.denoiser.calls.values()))
    return f"{each.denoiser.name}: {len(each.denoiser.calls)}, {' or '.join(map(str, counts))}"


def _stacks(each: ObservedContract) -> str:
    return "; ".join(
        f"{stack.name} ({len(stack.components)}) → {', '.join(stack.outputs) or '–'}" for stack in each.contract.stacks
    )


def _proofs(each: ObservedContract) -> str:
    held = sum(not proof.failure for proof in each.proofs)
    return f"{held} of {len(each.proofs)}"


def _off(sample: Any, each: ObservedContract, bare: torch.Tensor) -> str:
    """What a schedule that changes nothing gives in the pipeline's own call."""
    schedule = Schedule.from_dict({"format": "schedule/1", "model": model_part(each.denoiser.module, each.contract)})
    try:
        with schedule.apply(sample.pipe):
            equal = torch.equal(sample.run(), bare)
    except ScheduleError as error:
        cell = f"refused: {_short(error)}"
    else:
        cell = "equal" if equal else "differs"
    return cell if torch.equal(sample.run(), bare) else f"{cell}; not removed without a trace"


def _searched(sample: Any) -> str:
    """What a search makes of the pipeline: runs of its own call, whole and in parts."""
    try:
        model = Pipeline("any", pipe=sample.pipe, call=dict(sample.call), example="{}")
        bare, costs, steps = model.sample(["{}"], [0]), model.costs(), model.target.steps
        stacks = [stack for stack in model.target.tree.stacks if model.target.tree.components(stack)]
        rules = [[f"{stack}.*:*", ("CR" * steps)[:steps]] for stack in stacks]
        off, schedule = (to_schedule(model, parts) for parts in ({}, {"plan": {"rules": rules}}))
        with model.apply(off):
            equal = torch.equal(model.sample(["{}"], [0]), bare)
        with model.apply(schedule):
            whole = model.sample(["{}"], [0])
        run, states = PartialRun(model, ["{}"], [0], costs), []
        run.follow(run.begin(), schedule, on_state=states.append)
        ends = [states[-1], *(run.follow(states[k], schedule) for k in sorted({0, max(0, steps // 2 - 1)}))]
        equal = equal and all(torch.equal(end.latents, whole) for end in ends)
    except (ScheduleError, ValueError) as error:
        return f"refused: {_short(error)}"
    except Exception as error:  # a page says what does not work
        return f"fails: {type(error).__name__} {_short(error)}"
    return "equal" if equal else "differs"


def _short(error: Exception) -> str:
    return str(error).split(";")[0].replace("|", "/").replace("\n", " ")[:140]


def _counts(lines: list[str], what: str, column: int) -> str:
    ends = [line.split("|")[column].strip().split(":")[0] for line in lines]
    kinds = Counter(end if end in ("equal", "differs", "refused", "fails") else "without a contract" for end in ends)
    return f"{what}: {', '.join(f'{kind} {count}' for kind, count in kinds.most_common())}."


def main() -> None:
    """Try everything and write the page."""
    import diffusers

    warnings.simplefilter("ignore")
    lines = []
    for name in shown():
        lines += rows(name)
        print(lines[-1], file=sys.stderr, flush=True)
    counts = f"{_counts(lines, 'Off in its own call', -3)} {_counts(lines, 'As a model of a search', -2)}"
    names = shown()
    classes = {name.partition("/")[0] for name in names}
    text = HEAD.format(diffusers=diffusers.__version__, classes=len(classes), samples=len(names), counts=counts)
    text += "\n".join(lines) + "\n\n## Without a pipeline here\n\n"
    text += "\n".join(f"- `{name}`: {reason}" for name, reason in sorted(ABSENT.items())) + "\n"
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
