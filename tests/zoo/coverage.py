"""What works on each tiny pipeline of the zoo: its contract by observation, the proofs, and a schedule in its own call.

`python -m tests.zoo.coverage` tries all of them and writes docs/coverage.md; tests/zoo/test_coverage.py compares.
"""

import sys
import warnings
from collections import Counter
from typing import Any

import torch

from search import Schedule, ScheduleError
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
bit and removed. Written by `tests/zoo/coverage.py`.

{counts}

| denoiser / variant | pipeline | steps, calls at each | stacks (components) → what is passed on | proved | off |
|---|---|---|---|---|---|
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
        return [row(name, sample.pipe, "–", "–", "–", _short(error))]
    return [
        row(name, sample.pipe, _calls(each), _stacks(each), _proofs(each), _off(sample, each, bare))
        for each in observation.contracts
    ]


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


def _short(error: Exception) -> str:
    return str(error).split(";")[0].replace("|", "/").replace("\n", " ")[:140]


def main() -> None:
    """Try everything and write the page."""
    import diffusers

    warnings.simplefilter("ignore")
    lines = []
    for name in shown():
        lines += rows(name)
        print(lines[-1], file=sys.stderr, flush=True)
    ends = [line.rsplit("| ", 1)[1].split(":")[0].removesuffix(" |") for line in lines]
    kinds = Counter(end if end in ("equal", "differs", "refused") else "without a contract" for end in ends)
    counts = "Off in its own call: " + ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()) + "."
    names = shown()
    classes = {name.partition("/")[0] for name in names}
    text = HEAD.format(diffusers=diffusers.__version__, classes=len(classes), samples=len(names), counts=counts)
    text += "\n".join(lines) + "\n\n## Without a pipeline here\n\n"
    text += "\n".join(f"- `{name}`: {reason}" for name, reason in sorted(ABSENT.items())) + "\n"
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
