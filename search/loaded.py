"""From a configuration to what it names: the loaded pipeline and the prompts."""

from collections.abc import Sequence
from typing import Any

import torch
from hydra.utils import instantiate

from search.compose import composed, normalise
from search.config import Config, Prompts, read_prompts
from search.models.base import Model
from search.schedule import Schedule


def config_for(schedule: Schedule, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a schedule's model; `overrides` as on the command line: `model=`, `prompts.held_out=`.

    Without `model=` it is the one that the schedule was searched on; ValueError where the file does not say.
    """
    overrides = list(overrides)
    if not any(override.lstrip("+").startswith("model=") for override in overrides):
        if (name := schedule.made.get("model")) is None:
            raise ValueError("the schedule does not say which model it is for; type model=<name>, as for a search")
        overrides.append(f"model={name}")
    return Config.check(composed(normalise(overrides)))


def model_of(config: Config, **arguments: Any) -> Model:
    """The pipeline, loaded; `arguments` take the place of the configured ones."""
    return instantiate(dict(config.model) | {"device": device(config.compute.device)} | arguments)


def prompts_of(prompts: Prompts) -> tuple[list[str], list[str]]:
    """Calibration and held-out prompts, which must not share any."""
    calibration = read_prompts(prompts.calibration)[: prompts.calibration_count]
    held_out = read_prompts(prompts.held_out)[: prompts.held_out_count]
    if shared := sorted(set(calibration) & set(held_out)):
        raise ValueError(
            f"{shared[0]!r} is a calibration prompt and a held-out prompt; held-out scores need prompts that the "
            "search has not seen: type prompts.held_out=<another text file>"
        )
    return calibration, held_out


def device(name: str) -> str:
    """`auto` is the GPU where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
