"""The command line of stable-diffusion.cpp: sigmas, a step mask, and the guidance scale.

Read in its documentation and source, and not run. Reused there is what the whole network had added to its input; the
source that was read reuses within 15 to 95 % of the steps only, and asks its threshold even with `static`, so that
the threshold written here is out of reach.
"""

import shlex
from collections.abc import Mapping
from typing import Any

from search.schedule.errors import ScheduleError
from search.schedule.exchange.cache_dit import from_scm, leading, step_bits
from search.schedule.exchange.grid import full_sigmas
from search.schedule.exchange.loss import (
    constant_scale,
    first_lines,
    gate_words,
    plain,
    plan_words,
    refuse_losses,
    solver_words,
    steps_words,
    unsupported_parts,
)
from search.schedule.exchange.masks import Parts
from search.schedule.exchange.sigmas import from_sigmas, losses_of_sigmas
from search.schedule.model.nodes import Tree
from search.schedule.schedule import Schedule

REASON = "stable-diffusion.cpp has no option for it"
WHOLE = "stable-diffusion.cpp adds what the whole network had added to its input"
# Its solvers by the class of diffusers that they equal.
METHODS = {
    "EulerDiscreteScheduler": "euler",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "DPMSolverMultistepScheduler": "dpm++2m",
}
FLAGS = ("--sigmas", "--scm-mask", "--scm-policy", "--steps", "--cfg-scale", "--cache-mode", "--cache-option")


def from_sdcpp(data: str, tree: Tree, sampler: Mapping[str, Any] | None) -> Parts:
    """The parts that `--sigmas` and `--scm-mask` mean; a mask reuses the whole denoiser's output."""
    try:
        words = shlex.split(data)
    except ValueError as error:
        raise ScheduleError(f"this is not a valid command line: {error}") from None
    given = {flag: words[i + 1] for i, flag in enumerate(words[:-1]) if flag in FLAGS}
    if not {"--sigmas", "--scm-mask"} & set(given):
        raise ScheduleError("the command line has neither --sigmas nor --scm-mask")
    if "--scm-mask" in given and (policy := given.get("--scm-policy", "dynamic")) != "static":
        raise ScheduleError(f"--scm-policy is {policy[:40]}: what is reused is decided in the run; write static")
    grid = from_sigmas(given["--sigmas"], sampler) if "--sigmas" in given else {}
    mask = from_scm(given["--scm-mask"], tree) if "--scm-mask" in given else {}
    if grid and mask and grid["steps"] != mask["steps"]:
        raise ScheduleError(f"--sigmas are of {grid['steps']} steps, --scm-mask is of {mask['steps']}")
    return grid | mask


def to_sdcpp(schedule: Schedule, lossy: bool = False) -> str:
    """Flags for `sd-cli`; ScheduleError names what they would lose."""
    refuse_losses("sdcpp", losses(schedule), lossy)
    flags = []
    if schedule.sampler is not None:
        sigmas = full_sigmas(schedule.sampler, schedule.steps)[1]
        flags += [f"--steps {len(sigmas) - 1}", f'--sigmas "{",".join(map(plain, sigmas))}"']
        if method := METHODS.get(schedule.sampler["class"]):
            flags.append(f"--sampling-method {method}")
    if schedule.steps and 0 in (mask := step_bits(schedule)):
        flags.append(f'--cache-mode cache-dit --cache-option "threshold=1000,warmup={leading(mask)}"')
        flags.append(f'--scm-mask "{",".join(map(str, mask))}" --scm-policy static')
    if (scale := constant_scale(schedule)) is not None:
        flags.append(f"--cfg-scale {plain(scale)}")
    if not flags:
        raise ScheduleError("the schedule has neither a sampler part nor a plan: there is no flag to write")
    return " ".join(flags)


def losses(schedule: Schedule) -> list[str]:
    """What the flags would lose of this schedule, in words."""
    lines = losses_of_sigmas(schedule, REASON) if schedule.sampler else [*solver_words(schedule)]
    lines = [line for line in lines if line.startswith("sampler")]
    lines += first_lines([f"{line} ({WHOLE})" for line in plan_words(schedule)])
    lines += [f"{gate_words(gate, schedule)} ({WHOLE})" for gate in schedule.gates]
    if outside := _outside(step_bits(schedule) if schedule.steps else []):
        lines.append(f"plan: reuse at {steps_words(outside)} (reuses within 15 to 95 % of the steps only)")
    supported = ["sampler", "plan", "gates"] + (["guidance"] if constant_scale(schedule) is not None else [])
    return lines + unsupported_parts(schedule, supported, REASON)


def _outside(mask: list[int]) -> list[int]:
    """The reused steps at which stable-diffusion.cpp never reuses."""
    start, end = int(0.15 * len(mask)), int(0.95 * len(mask))
    return [t for t, bit in enumerate(mask) if not bit and not start <= t < end]
