"""The environment that a schedule was searched in, and what differs from it on this machine."""

import platform
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search.models.base import Model
    from search.schedule import Schedule


def current_environment(model: "Model") -> dict[str, str]:
    """Versions of Python and the libraries, and the device with its chip."""
    import diffusers
    import torch

    chip = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else platform.processor()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__}
    return versions | {"device": f"{model.device} {chip}".strip()}


def search_environment(model: "Model") -> dict[str, str]:
    """What a search records: the current environment, the number of threads, and the commit of this project."""
    import torch

    environment = current_environment(model)
    threads = {"device": f"{environment['device']} {torch.get_num_threads()} threads"}
    return environment | threads | {"git": _commit()}


@cache
def _commit() -> str:
    """The commit of this project, empty where it is not a checkout or there is no git; asked once."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return run.stdout.strip()


def environment_differences(schedule: "Schedule", model: "Model") -> dict[str, tuple[str, str]]:
    """What the file records and differs here, by name: (in the file, here)."""
    made, architecture = schedule.made, schedule.to_dict()["model"]
    there = {name: architecture.get(name) for name in ("class", "fingerprint")}
    here = {name: model.target.model.get(name) for name in there}
    here |= {"model": model.name} | current_environment(model)
    there |= {name: made.get(name) for name in ("model", "python", "torch", "diffusers")}
    there["device"] = re.sub(r"\s*\d+ threads$", "", str(made.get("device", "")))
    for name, value in schedule.call_of_search.items():
        there[name], here[name] = value, model.arguments.get(name, value)
    return {k: (str(v), str(here[k])) for k, v in there.items() if v not in (None, "") and str(v) != str(here[k])}
