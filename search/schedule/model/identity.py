"""The denoiser of a pipeline, and how it is identified: by class, stacks and configuration."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from search.schedule.errors import ScheduleError
from search.schedule.model.contracts import Contract
from search.schedule.model.nodes import Tree


def denoiser_of(pipe: Any) -> nn.Module:
    """The network that a pipeline calls at each step, the first one where it has experts; ScheduleError for none."""
    return experts_of(pipe)[0]


def experts_of(pipe: Any) -> tuple[nn.Module, ...]:
    """The networks of a pipeline that take turns: one, two by the level of noise (Wan 2.2), or one for each CFG branch.

    Which of them runs is the pipeline's decision. They have the same architecture, so a schedule's nodes and layers are
    those of each: a step's action is done by whichever is called.

    Raises:
        ScheduleError: There is none, or the second one is of another architecture.
    """
    for attribute in ("transformer", "unet", "denoiser", "prior", "decoder"):
        if not isinstance(first := getattr(pipe, attribute, None), nn.Module):
            continue
        for name in (f"{attribute}_2", f"unconditional_{attribute}"):
            second = getattr(pipe, name, None)
            if not isinstance(second, nn.Module) or second is first:
                continue
            if fingerprint(first) != fingerprint(second):
                raise ScheduleError(
                    f"{name} of this {type(pipe).__name__} is a {type(second).__name__} of another architecture than "
                    f"its {attribute}; a schedule is for experts of one architecture"
                )
            return first, second
        return (first,)
    raise ScheduleError(f"{type(pipe).__name__} has neither a transformer, a unet nor a denoiser to schedule")


def fingerprint(denoiser: nn.Module) -> str:
    """Digest of the architecture, 16 hexadecimal digits: of class and configuration, without weights and paths.

    Of a module without a configuration it is taken from the shapes of its parameters.
    """
    if isinstance(config := getattr(denoiser, "config", None), Mapping):
        config = {k: v for k, v in sorted(config.items()) if not k.startswith("_")}
    else:  # any other module: by the shapes of its parameters
        config = {name: list(parameter.shape) for name, parameter in denoiser.named_parameters()}
    text = json.dumps([type(denoiser).__name__, config], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def model_part(denoiser: nn.Module, contract: Contract | None = None) -> dict[str, Any]:
    """The `model` part of a schedule for a denoiser.

    Args:
        denoiser: The live module.
        contract: Describes a class that has no contract in this version; it is then stored in the part.

    Returns:
        `class`, `fingerprint` and `stacks` (how many blocks each has), and `contract` where one is given.

    Raises:
        ScheduleError: The class has no contract, or the module lacks something that the contract names.
    """
    tree = Tree.of(denoiser, contract)
    part = {"class": tree.model_class, "fingerprint": fingerprint(denoiser), "stacks": tree.shape}
    return part | ({"contract": tree.contract.to_dict()} if tree.has_given_contract else {})
