"""Put our hooks on modules and take them off again, also beneath accelerate's offload hooks."""

from collections.abc import Callable
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

from search.schedule.apply.admission import HOOK
from search.schedule.apply.hooks import StepHook


def add_hook(module: nn.Module, hook: ModelHook) -> None:
    """Register a hook on a module under our name."""

    def register(module: nn.Module) -> None:
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, HOOK)
        if isinstance(hook, StepHook):
            hook.follow_clock()

    _beneath_offload(module, register)


def hook_of(module: Any) -> Any:
    """Our hook on a module."""
    return module._diffusers_hook.get_hook(HOOK)


def remove_hook(module: nn.Module) -> None:
    """Remove our hook, and what diffusers leaves behind once no other hook is there."""
    _beneath_offload(module, _unregister)


def _unregister(module: Any) -> None:
    module._diffusers_hook.remove_hook(HOOK, recurse=False)
    if not module._diffusers_hook.hooks:
        del module._diffusers_hook
        if getattr(module.__dict__.get("forward"), "__func__", None) is type(module).forward:
            del module.forward  # the class's own method shows through again


def _beneath_offload(module: nn.Module, change: Callable[[nn.Module], Any]) -> None:
    """Run `change` beneath an accelerate offload hook, which would otherwise throw our hook away with itself."""
    offload = getattr(module, "_hf_hook", None)
    if offload is None:
        change(module)
        return
    from accelerate.hooks import add_hook_to_module, remove_hook_from_module

    remove_hook_from_module(module)
    try:
        change(module)
    finally:
        add_hook_to_module(module, offload)
