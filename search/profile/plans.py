"""Schedules from one action per step of component kinds."""

from collections.abc import Mapping, Sequence

import numpy as np

from search.profile.target import Target
from search.schedule import Schedule
from search.schedule.model.nodes import ROOT
from search.schedule.plan.tokens import OFF


def component_names(target: Target) -> dict[str, list[str]]:
    """Names of the nodes of each component kind."""
    return {kind: [node.name for node in target.tree if node.component == kind] for kind in target.kinds}


def mask_to_tokens(mask: np.ndarray, forecast: bool = False) -> list[str]:
    """Actions [T] from a mask of computed steps [T]; with `forecast` F1 after two computes, else reuse.

    Example:
        >>> import numpy as np
        >>> from search.profile.plans import mask_to_tokens
        >>> "".join(mask_to_tokens(np.array([1, 0, 1, 0, 0]), forecast=True))
        'CRCF1F1'
    """
    tokens: list[str] = []
    for computes in mask:
        enough = tokens.count(OFF) > 1
        tokens.append(OFF if computes else "F1" if forecast and enough else "R")
    return tokens


def plan_schedule(target: Target, tokens: Mapping[str, Sequence[str]]) -> Schedule:
    """A schedule of the teacher's sampler with these actions of the denoiser or of component kinds.

    Args:
        target: The model.
        tokens: One action per step [T] under `denoiser` or a component kind; what is missing is computed.

    Raises:
        ScheduleError: An action reads more values than were computed before it.

    Example:
        >>> from search.profile.plans import plan_schedule
        >>> from search.profile.target import Target
        >>> from search.schedule.model.nodes import Tree
        >>> tree = Tree("PixArtTransformer2DModel", {"transformer_blocks": 2})
        >>> sampler = {"class": "DDIMScheduler", "config": {}, "timesteps": [750.0, 500.0, 250.0, 0.0]}
        >>> model = {"class": "PixArtTransformer2DModel", "stacks": {"transformer_blocks": 2}}
        >>> target = Target("pixart", tree, 4, model, sampler)
        >>> plan_schedule(target, {"ff": ["C", "R", "C", "R"]}).plan_text
        'ff: C R C R'
    """
    rules = []
    for name, actions in tokens.items():
        stacks = [stack for stack in target.tree.stacks if name in target.tree.components(stack)]
        selectors = [ROOT] if name == ROOT else [f"{stack}.*:{name}" for stack in stacks]
        rules += [[selector, "".join(actions)] for selector in selectors]
    return Schedule.from_dict(target.schedule({"plan": {"rules": rules}}))
