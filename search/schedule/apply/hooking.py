"""Put our hooks on modules and take them off again, also beneath accelerate's offload hooks."""

from collections.abc import Callable
from typing import Any

from diffusers.hooks import HookRegistry
from torch import nn

from search.schedule.apply.admission import HOOK, LAYER_HOOK
from search.schedule.apply.clock import refuse_copy
from search.schedule.apply.hooks import PlannedHook, StepHook


def add_hook(module: nn.Module, hook: PlannedHook) -> None:
    """Register a hook on a module under its name."""

    def register(module: nn.Module) -> None:
        hook.made_registry = "_diffusers_hook" not in module.__dict__
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, hook.registered_name)
        module.__dict__["__reduce_ex__"] = refuse_copy  # of what others wrap around it as well
        if isinstance(hook, StepHook):
            hook.follow_clock()

    _beneath_offload(module, register)


def hook_of(module: Any) -> Any:
    """Our hook on a module that is a node; None where it has none."""
    registry = module.__dict__.get("_diffusers_hook")
    return registry and registry.get_hook(HOOK)


def remove_hook(module: nn.Module, hook: PlannedHook) -> None:
    """Remove a hook, and what diffusers leaves behind once no other hook is there."""

    def unregister(module: Any) -> None:
        registry = module._diffusers_hook
        registry.remove_hook(hook.registered_name, recurse=False)
        if not {HOOK, LAYER_HOOK} & registry.hooks.keys():
            module.__dict__.pop("__reduce_ex__", None)
        if "_old_forward" in module.__dict__:  # left by a call of accelerate that failed on the way
            module._old_forward = module.forward
        if not registry.hooks:
            if hook.made_registry:
                del module._diffusers_hook
            if getattr(module.__dict__.get("forward"), "__func__", None) is type(module).forward:
                del module.forward  # the class's own method shows through again

    _beneath_offload(module, unregister)


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
