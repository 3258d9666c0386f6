"""Changes of a denoiser that were made after a schedule was applied: adapters, other caches, patched methods.

They are checked when a run begins, which takes some microseconds per hundred modules: the list is made once.
"""

from functools import partial
from typing import Any

from torch import nn

from search.schedule.errors import ScheduleError
from search.schedule.model.nodes import ROOT

ALLOWED_SOURCES = (
    "diffusers.hooks",
    "accelerate",
    "torch",
    "search.schedule",
)  # packages that may replace a module's forward
REAPPLY = "remove the schedule, then do that, then apply it again"


class ModuleSnapshot:
    """The modules of a denoiser as they were when a schedule was applied to it."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self.modules = list(denoiser.named_modules())
        self.children = [(name, m._modules, tuple(m._modules.items())) for name, m in self.modules if m._modules]

    def check(self) -> None:
        """Raise ScheduleError where modules are no longer those that the schedule was applied to."""
        check_caches(self.denoiser, self.modules, "was turned on after the schedule was applied")
        for name, module in self.modules:
            if module.__dict__.get("_compiled_call_impl") is not None:
                raise ScheduleError(
                    f"{name or ROOT} was compiled after the schedule was applied; remove the schedule, undo that, and "
                    "type schedule.apply(pipe, compile=True)"
                )
        for name, now, before in self.children:
            for child, module in before:
                if (current := now.get(child)) is not module:
                    place = f"{name}.{child}" if name else child
                    raise ScheduleError(
                        f"{place} {_describe_change(current)} after the schedule was applied; {REAPPLY}"
                    )


def check_caches(denoiser: Any, modules: list[tuple[str, nn.Module]], reason: str) -> None:
    """Raise ScheduleError where another cache is enabled on a denoiser, or one of its modules is patched.

    `reason` ends the message: why the cache or the patch has to go.
    """
    if getattr(denoiser, "is_cache_enabled", False) or getattr(denoiser, "_is_cached", False):
        raise ScheduleError(f"another cache is enabled on this denoiser; call disable_cache() first: it {reason}")
    for name, module in modules:
        attributes = module.__dict__
        if "_diffusers_hook" in attributes:
            hooks = attributes["_diffusers_hook"].hooks
            if stateful := [hook for hook in hooks if hooks[hook]._is_stateful]:
                raise ScheduleError(
                    f"{name or ROOT} carries the cache hook {stateful[0]!r}; remove the other cache first: it {reason}"
                )
        if (
            "forward" in attributes
            and (source := _source(attributes["forward"]))
            and not source.startswith(ALLOWED_SOURCES)
        ):
            raise ScheduleError(
                f"{name or ROOT}.forward was replaced by one of {source}; undo that patch first (DeepCache: "
                f"helper.disable()): it {reason}"
            )


def _source(forward: Any) -> str:
    """The Python module that a function on an instance was written in; "" for a module's own method."""
    while isinstance(forward, partial):
        forward = forward.func
    if hasattr(forward, "__self__"):  # a method: of the module's class, or of another
        return ""
    return str(getattr(forward, "__globals__", {}).get("__name__", ""))


def _describe_change(current: Any) -> str:
    """What stands in the place of a module, in words."""
    if current is None:
        return "was taken away"
    if type(current).__module__.startswith("peft."):
        return "was wrapped by an adapter (a LoRA was loaded)"
    if hasattr(current, "adapter_name") or "lora" in type(current).__name__.lower():
        return f"was wrapped by a {type(current).__name__} (an adapter was loaded)"
    return f"was replaced by a {type(current).__name__}"
