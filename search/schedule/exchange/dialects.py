"""All files that a schedule can be written as: what each loses, and how it is used."""

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
    """`write(schedule, lossy)` gives text or data, `lost` says what of a schedule it cannot say, `ending` is that of
    its files, and `use(path, schedule)` are lines that say how to use one.
    """

    write: Callable[[Schedule, bool], Any]
    lost: Callable[[Schedule], list[str]]
    ending: str
    use: Callable[[Path, Schedule], list[str]]


def export(schedule: Schedule, dialect: str, lossy: bool = False) -> str:
    """The text of a file; ScheduleError says what it would lose, unless `lossy` agrees to that."""
    found = dialect_of(dialect).write(schedule, lossy)
    if isinstance(found, str):
        return found
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    return re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda match: f"[{' '.join(match[1].split())}]", text)  # a list, a line


def losses(schedule: Schedule, dialect: str) -> list[str]:
    """What a file cannot say of this schedule, in words; nothing where it means the same."""
    return dialect_of(dialect).lost(schedule)


def dialect_of(name: str) -> Dialect:
    if name not in DIALECTS:
        raise ScheduleError(f"dialect={name!r:.40} is unknown; there are {', '.join(DIALECTS)}")
    return DIALECTS[name]


def beside(schedule: Schedule) -> list[str]:
    """What has to be set beside a file that holds a plan only: nothing of the search got lost, but it is not in it."""
    steps = [f"num_inference_steps={schedule.steps}"] if schedule.steps else []
    scheduler = [f"a {schedule.sampler['class']} as the pipeline's scheduler"] if schedule.sampler else []
    return [f"# run it with {' and '.join(steps + scheduler)}"] if steps or scheduler else []


def _diffusers(path: Path, schedule: Schedule) -> list[str]:
    lines = ["import json, diffusers", f"found = json.load(open({str(path)!r}))"]
    if schedule.sampler:
        lines.append(
            'pipe.scheduler = getattr(diffusers, found["scheduler"]["class"]).from_config(found["scheduler"]["config"])'
        )
    return [*lines, 'image = pipe("a prompt", **found["call"]).images[0]']


def _cache_dit(path: Path, schedule: Schedule) -> list[str]:
    return [
        "import cache_dit",
        f"cache_dit.enable_cache(pipe, **cache_dit.load_configs({str(path)!r}))",
        *beside(schedule),
    ]


def _scm(path: Path, schedule: Schedule) -> list[str]:
    return ["# steps_computation_mask of cache-dit, or --scm-mask of stable-diffusion.cpp", *beside(schedule)]


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
        *beside(schedule),
    ]


def _ecad(path: Path, schedule: Schedule) -> list[str]:
    return [f"# give {path} to ECAD as a cache schedule", *beside(schedule)]


# ComfyUI's samplers that solve as a class of diffusers does.
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
