"""What was changed on a denoiser behind an applied schedule's back: adapters, other caches, patched methods.

Looked at when a run begins. It takes some microseconds per hundred modules: their list is made once.
"""

from functools import partial
from typing import Any

from torch import nn

from search.schedule.errors import ScheduleError
from search.schedule.model.nodes import ROOT

OURS = ("diffusers.hooks", "accelerate", "torch", "search.schedule")  # who may stand before a module's own forward
AGAIN = "remove the schedule, then do that, then apply it again"


class ModuleSnapshot:
    """The modules of a denoiser as they were when a schedule was applied to it."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self.modules = list(denoiser.named_modules())
        self.children = [(name, m._modules, tuple(m._modules.items())) for name, m in self.modules if m._modules]

    def check(self) -> None:
        """ScheduleError where a run would not be what the schedule says."""
        check_caches(self.denoiser, self.modules, "was turned on after the schedule was applied")
        for name, now, before in self.children:
            for child, module in before:
                if (found := now.get(child)) is not module:
                    place = f"{name}.{child}" if name else child
                    raise ScheduleError(f"{place} {_replaced(found)} after the schedule was applied; {AGAIN}")


def check_caches(denoiser: Any, modules: list[tuple[str, nn.Module]], told: str) -> None:
    """ScheduleError where another cache works on a denoiser, or somebody has patched one of its modules."""
    if getattr(denoiser, "is_cache_enabled", False) or getattr(denoiser, "_is_cached", False):
        raise ScheduleError(f"another cache is enabled on this denoiser; call disable_cache() first: it {told}")
    for name, module in modules:
        own = module.__dict__
        if "_diffusers_hook" in own:
            hooks = own["_diffusers_hook"].hooks
            if stateful := [hook for hook in hooks if hooks[hook]._is_stateful]:
                raise ScheduleError(
                    f"{name or ROOT} carries the cache hook {stateful[0]!r}; remove the other cache first: it {told}"
                )
        if "forward" in own and (source := _source(own["forward"])) and not source.startswith(OURS):
            raise ScheduleError(
                f"{name or ROOT}.forward was replaced by one of {source}; undo that patch first (DeepCache: "
                f"helper.disable()): it {told}"
            )


def _source(forward: Any) -> str:
    """The Python module that a function on an instance was written in; "" for a module's own method."""
    while isinstance(forward, partial):
        forward = forward.func
    if hasattr(forward, "__self__"):  # a method: of the module's class, or of another
        return ""
    return getattr(forward, "__globals__", {}).get("__name__", "")


def _replaced(found: Any) -> str:
    """What became of a module, in words."""
    if found is None:
        return "was taken away"
    if type(found).__module__.startswith("peft."):
        return "was wrapped by an adapter (a LoRA was loaded)"
    if hasattr(found, "adapter_name") or "lora" in type(found).__name__.lower():
        return f"was wrapped by a {type(found).__name__} (an adapter was loaded)"
    return f"was replaced by a {type(found).__name__}"
