"""What differs between this machine and the one that a schedule was searched on."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search.models.base import Model
    from search.schedule import Schedule


def environment_differences(schedule: "Schedule", model: "Model") -> dict[str, tuple[str, str]]:
    """What the file records and is another here, by name: (there, here)."""
    made, own = schedule.made, schedule.to_dict()["model"]
    there = {name: own.get(name) for name in ("class", "fingerprint")}
    here = {name: model.target.model.get(name) for name in there}
    here |= {"model": model.name} | current_environment(model)
    there |= {name: made.get(name) for name in ("model", "python", "torch", "diffusers")}
    there["device"] = re.sub(r"\s*\d+ threads$", "", str(made.get("device", "")))
    call = made.get("call")
    for name, value in (call if isinstance(call, dict) else {}).items():
        there[name], here[name] = value, model.arguments.get(name, value)
    return {k: (str(v), str(here[k])) for k, v in there.items() if v not in (None, "") and str(v) != str(here[k])}


def current_environment(model: "Model") -> dict[str, str]:
    """Library versions and device, as a search records them."""
    import platform

    import diffusers
    import torch

    chip = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else platform.processor()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__}
    return versions | {"device": f"{model.device} {chip}".strip()}
