"""Watch one call of a pipeline: which of its modules denoise, how often at each step, and what they were given."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from search.schedule.apply.outputs import first_tensor
from search.schedule.errors import ScheduleError
from search.schedule.values import copy_tensors

RECORDED_STEPS = 2  # enough to prove that a value of one step can stand for that of another


@dataclass(frozen=True, eq=False)
class DenoiserCall:
    """One call of a denoiser: its step, which of the calls at this step it is, and copies of its arguments."""

    step: int
    branch: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    context: str | None  # the name that the pipeline gave to the branch (`cache_context`)


@dataclass(eq=False)
class ObservedDenoiser:
    """A module of a pipeline that was called at its scheduler steps."""

    name: str  # the attribute of the pipeline
    module: nn.Module
    calls: Counter[int] = field(default_factory=Counter)  # by step
    recorded: list[DenoiserCall] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)  # of the running step, one for each call

    @property
    def steps(self) -> list[int]:
        """The steps at which it was called."""
        return sorted(self.calls)


@dataclass(eq=False)
class ObservedRun:
    """One call of a pipeline as it was seen.

    Attributes:
        pipe: The pipeline.
        scheduler: Class of the scheduler that made the steps.
        steps: How many steps it made.
        denoisers: The modules whose outputs it was given, in the order of their first steps.
        companions: Other modules that were called at more than one step, with how often: ControlNets, encoders.
        guidance: Weights of the branches in what the scheduler was given, one for each half of a batch or each call;
            empty where no guidance was seen.
    """

    pipe: Any
    scheduler: str
    steps: int
    denoisers: list[ObservedDenoiser]
    companions: dict[str, int]
    guidance: tuple[float, ...] = ()
    halves: bool = False  # the branches are halves of one batch


class _Watch:
    """What the hooks of one run write down."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.seen = {name: ObservedDenoiser(name, module) for name, module in modules.items()}
        self.step, self.last = 0, ""
        self.before_step: Counter[str] = Counter()  # how often a module was the last one called before a step
        self.guidance: tuple[float, ...] = ()  # of the first step at which weights were found
        self.halves = False

    def called(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        seen = self.seen[name]
        if len({call.step for call in seen.recorded} | {self.step}) <= RECORDED_STEPS:
            context = getattr(getattr(seen.module, "_diffusers_hook", None), "_current_context", None)
            copied = copy_tensors(args), copy_tensors(dict(kwargs))
            seen.recorded.append(DenoiserCall(self.step, seen.calls[self.step], *copied, context))
        seen.calls[self.step] += 1

    def returned(self, name: str, output: Any) -> None:
        self.last = name
        try:
            self.seen[name].outputs.append(first_tensor(output).detach().clone())
        except ScheduleError:  # no tensors: nothing that a scheduler could be given
            self.seen[name].outputs.clear()

    def stepped(self, model_output: Any) -> None:
        """The scheduler was given `model_output` for one step."""
        if self.last:
            self.before_step[self.last] += 1
            if not self.guidance:
                self.guidance, self.halves = branch_weights(self.seen[self.last].outputs, model_output)
        for seen in self.seen.values():
            seen.outputs.clear()
        self.last = ""
        self.step += 1


def observe_run(pipe: Any, call: Mapping[str, Any]) -> ObservedRun:
    """Call a pipeline once and write down which modules denoise; nothing stays on it afterwards.

    Args:
        pipe: A pipeline of diffusers, or any callable object with a scheduler and modules as attributes.
        call: Keyword arguments of the call.

    Raises:
        ScheduleError: It has no scheduler, the call fails, or no module was called at its steps.
    """
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None or not hasattr(scheduler, "step"):
        raise ScheduleError(
            f"{type(pipe).__name__} has no scheduler with `step`; give a pipeline of diffusers, or any object with a "
            "`scheduler`, a denoiser and `__call__`"
        )
    modules = modules_of(pipe)
    watch = _Watch(modules)
    with _watched(modules, type(scheduler), watch):
        try:
            pipe(**call)
        except ScheduleError:
            raise
        except Exception as error:
            shown = ", ".join(f"{name}={repr(value)[:40]}" for name, value in call.items())
            raise ScheduleError(
                f"calling {type(pipe).__name__}({shown}) failed: {type(error).__name__}: {error}; give the arguments "
                "of a call that works, call={'prompt': …, 'num_inference_steps': …}"
            ) from error
    denoisers = [watch.seen[name] for name in watch.before_step]
    denoisers.sort(key=lambda seen: seen.steps[0])
    if not denoisers or not watch.step:
        listed = ", ".join(modules) or "none"
        raise ScheduleError(
            f"{type(pipe).__name__} called none of its modules ({listed}) before a step of its scheduler "
            f"{type(scheduler).__name__}, which made {watch.step} steps; a schedule needs a denoiser that is called at "
            "every step"
        )
    companions = {name: sum(seen.calls.values()) for name, seen in watch.seen.items() if len(seen.calls) > 1}
    for seen in denoisers:
        companions.pop(seen.name, None)
    return ObservedRun(pipe, type(scheduler).__name__, watch.step, denoisers, companions, watch.guidance, watch.halves)


def modules_of(pipe: Any) -> dict[str, nn.Module]:
    """The modules of a pipeline by attribute: its components, or of any other object its attributes."""
    listed = getattr(pipe, "components", None)
    named = listed if isinstance(listed, Mapping) else {k: v for k, v in vars(pipe).items() if not k.startswith("_")}
    modules = {name: module for name, module in named.items() if isinstance(module, nn.Module)}
    return {name: m for name, m in modules.items() if all(m is not other for k, other in modules.items() if k < name)}


def branch_weights(outputs: Sequence[Tensor], model_output: Any) -> tuple[tuple[float, ...], bool]:
    """The weights that made a scheduler's input of a denoiser's outputs, and whether these are halves of a batch.

    Guidance is linear in the branches: u + s * (c - u) has the weights 1 - s and s. () where none are found.
    """
    if not isinstance(model_output, Tensor) or not outputs:
        return (), False
    target, halves = model_output.detach().double(), False
    branches = list(outputs)
    if len(outputs) == 1 and len(outputs[0]) == len(target) and torch.equal(*_halves(target)):
        target = _halves(target)[0]  # a pipeline that steps both halves alike
    if len(outputs) == 1 and len(outputs[0]) == 2 * len(target):
        branches, halves = list(outputs[0].chunk(2)), True
    if len(branches) < 2:
        return (), False
    if any(b.dim() != target.dim() for b in branches):
        return (), False
    channels = [slice(0, min(a, b)) for a, b in zip(branches[0].shape, target.shape, strict=True)]
    columns = torch.stack([b.double()[tuple(channels)].flatten() for b in branches], 1)
    wanted = target[tuple(channels)].flatten()
    weights = torch.linalg.lstsq(columns.cpu(), wanted.cpu()[:, None], driver="gelsd").solution[:, 0]
    miss = (columns.cpu() @ weights - wanted.cpu()).norm() / wanted.norm().clamp(min=1e-12).cpu()
    return (tuple(weights.tolist()), halves) if miss < 1e-2 else ((), False)


def _halves(value: Tensor) -> tuple[Tensor, Tensor]:
    half = len(value) // 2
    return value[:half], value[half:]


@contextmanager
def _watched(modules: Mapping[str, nn.Module], scheduler: type, watch: _Watch) -> Iterator[None]:
    """Hooks on the modules, and on the step of the scheduler's class: some pipelines copy their scheduler in a call."""
    step = scheduler.step  # type: ignore[attr-defined]
    inherited = "step" not in vars(scheduler)

    @wraps(step)
    def watched_step(self: Any, model_output: Any, *args: Any, **kwargs: Any) -> Any:
        watch.stepped(model_output)
        return step(self, model_output, *args, **kwargs)

    with ExitStack() as stack:
        for name, module in modules.items():
            before = module.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: watch.called(name, args, kwargs), with_kwargs=True
            )
            after = module.register_forward_hook(lambda _, args, output, name=name: watch.returned(name, output))
            stack.callback(before.remove)
            stack.callback(after.remove)
        scheduler.step = watched_step  # type: ignore[attr-defined]
        try:
            yield
        finally:
            if inherited:
                del scheduler.step  # type: ignore[attr-defined]
            else:
                scheduler.step = step  # type: ignore[attr-defined]
