"""All dialects that a schedule can be written in: what each loses, and how its files are used."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.schedule.errors import ScheduleError
from search.schedule.exchange import cache_dit, ecad, quantized, sdcpp, sigmas, smoothcache, stock
from search.schedule.schedule import Schedule


@dataclass(frozen=True)
class Dialect:
    """`write(schedule, lossy)` returns text or data, `lost(schedule)` what a file would lose in words; `ending` is that
    of its files, and `use(path, schedule)` returns lines on how to use one.
    """

    write: Callable[[Schedule, bool], Any]
    lost: Callable[[Schedule], list[str]]
    ending: str
    use: Callable[[Path, Schedule], list[str]]


def export(schedule: Schedule, dialect: str, lossy: bool = False) -> str:
    """Write a schedule as a file of another tool.

    Args:
        schedule: The schedule.
        dialect: A key of DIALECTS, such as "cache-dit" or "comfyui".
        lossy: Whether to write the nearest file where the dialect cannot hold all of the schedule.

    Returns:
        The text of the file.

    Raises:
        ScheduleError: The dialect is unknown, or the file would lose something and `lossy` is false.
    """
    content = dialect_of(dialect).write(schedule, lossy)
    if isinstance(content, str):
        return content
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    return re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda match: f"[{' '.join(match[1].split())}]", text)  # a list, a line


def losses(schedule: Schedule, dialect: str) -> list[str]:
    """What a file would lose of this schedule, in words; [] where it means the same."""
    return dialect_of(dialect).lost(schedule)


def dialect_of(name: str) -> Dialect:
    """A dialect by name; ScheduleError where there is none."""
    if name not in DIALECTS:
        raise ScheduleError(f"dialect={name!r:.40} is unknown; there are {', '.join(DIALECTS)}")
    return DIALECTS[name]


def remaining_settings(schedule: Schedule) -> list[str]:
    """The settings to use with a file that holds a plan only: number of steps and scheduler."""
    steps = [f"num_inference_steps={schedule.steps}"] if schedule.steps else []
    scheduler = [f"a {schedule.sampler['class']} as the pipeline's scheduler"] if schedule.sampler else []
    return [f"# run it with {' and '.join(steps + scheduler)}"] if steps or scheduler else []


def _diffusers(path: Path, schedule: Schedule) -> list[str]:
    lines = ["import json, diffusers", f"file = json.load(open({str(path)!r}))"]
    if schedule.sampler:
        lines.append(
            'pipe.scheduler = getattr(diffusers, file["scheduler"]["class"]).from_config(file["scheduler"]["config"])'
        )
    return [*lines, 'image = pipe("a prompt", **file["call"]).images[0]']


def _cache_dit(path: Path, schedule: Schedule) -> list[str]:
    return [
        "import cache_dit",
        f"cache_dit.enable_cache(pipe, **cache_dit.load_configs({str(path)!r}))",
        *remaining_settings(schedule),
    ]


def _scm(path: Path, schedule: Schedule) -> list[str]:
    return [
        "# steps_computation_mask of cache-dit, or --scm-mask of stable-diffusion.cpp",
        *remaining_settings(schedule),
    ]


def _comfyui(path: Path, schedule: Schedule) -> list[str]:
    solver = SAMPLERS.get(str((schedule.sampler or {}).get("class")), "one like the scheduler's own")
    return [f"# paste it into a ManualSigmas node, and connect that to SamplerCustom; sampler: {solver}"]


def _sdnext(path: Path, schedule: Schedule) -> list[str]:
    solver = str((schedule.sampler or {}).get("class"))
    return [f"# paste it into Settings, Sampler Settings, timesteps (schedulers_timesteps); sampler: {solver}"]


def _sdcpp(path: Path, schedule: Schedule) -> list[str]:
    return [f'xargs -a {path} sd-cli -m model.safetensors -p "a prompt"']


def _torchao(path: Path, schedule: Schedule) -> list[str]:
    cls = schedule.tree.model_class
    folder = "unet" if cls.startswith("UNet") else "transformer"
    return [
        f"import json; from diffusers import {cls}, TorchAoConfig",
        f"config = TorchAoConfig.from_dict(json.load(open({str(path)!r})))",
        f'{folder} = {cls}.from_pretrained(..., subfolder="{folder}", quantization_config=config, torch_dtype=...)',
    ]


def _smoothcache(path: Path, schedule: Schedule) -> list[str]:
    return [
        "import json; from SmoothCache import SmoothCacheHelper; from diffusers.models.attention import "
        "BasicTransformerBlock",
        f"bits = json.load(open({str(path)!r}))",
        "kinds = sorted({name.partition('-')[0] for name in bits})",
        "SmoothCacheHelper(pipe.transformer, BasicTransformerBlock, kinds, bits).enable()",
        *remaining_settings(schedule),
    ]


def _ecad(path: Path, schedule: Schedule) -> list[str]:
    return [f"# give {path} to ECAD as a cache schedule", *remaining_settings(schedule)]


# ComfyUI's samplers by the class of diffusers that they equal.
SAMPLERS = {
    "EulerDiscreteScheduler": "euler",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "UniPCMultistepScheduler": "uni_pc",
    "DEISMultistepScheduler": "deis",
}

DIALECTS: dict[str, Dialect] = {
    "diffusers": Dialect(stock.to_diffusers, stock.losses, ".json", _diffusers),
    "cache-dit": Dialect(cache_dit.to_cache_dit, cache_dit.losses, ".yaml", _cache_dit),
    "scm": Dialect(cache_dit.to_scm, cache_dit.losses_of_mask, ".txt", _scm),
    "comfyui": Dialect(sigmas.to_comfyui, sigmas.losses_of_sigmas, ".txt", _comfyui),
    "sdnext": Dialect(sigmas.to_sdnext, sigmas.losses_of_timesteps, ".txt", _sdnext),
    "sdcpp": Dialect(sdcpp.to_sdcpp, sdcpp.losses, ".txt", _sdcpp),
    "torchao": Dialect(quantized.to_torchao, quantized.losses, ".json", _torchao),
    "smoothcache": Dialect(smoothcache.to_smoothcache, smoothcache.losses, ".json", _smoothcache),
    "ecad": Dialect(ecad.to_ecad, ecad.losses, ".json", _ecad),
}
