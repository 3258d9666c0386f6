"""Schedule files of other tools as parts of a schedule, and schedules as files of other tools.

    schedule = load("ecad.json", pipe)  # any of the files below
    parts = read("ecad.json", Tree.of(pipe.transformer))  # {"steps": 20, "plan": {"rules": [...]}}
    text = export(schedule, "smoothcache")  # ScheduleError names what it would lose; lossy=True writes the nearest

In: ECAD (arXiv:2506.15682), SmoothCache (arXiv:2411.10510), cache-dit's masks and configurations, DeepCache
(arXiv:2312.00858), MagCache (arXiv:2506.09045), ComfyUI's sigmas, timesteps, AYS tables (arXiv:2404.14507), the flags
of stable-diffusion.cpp, arguments of diffusers. Out: see `DIALECTS`. A file of actions has no sampler:
the pipeline's own scheduler runs. A file is data, as a schedule is: bounded, and nothing in it is imported or opened.
"""

from search.schedule.exchange.ays import from_ays
from search.schedule.exchange.cache_dit import from_scm, to_cache_dit, to_scm
from search.schedule.exchange.deepcache import below, centred, from_deepcache
from search.schedule.exchange.dialects import DIALECTS, Dialect, dialect_of, export, losses
from search.schedule.exchange.ecad import from_ecad, to_ecad
from search.schedule.exchange.files import detect, load, parts_of, read
from search.schedule.exchange.magcache import from_magcache
from search.schedule.exchange.masks import Parts
from search.schedule.exchange.quantized import to_torchao
from search.schedule.exchange.sdcpp import from_sdcpp, to_sdcpp
from search.schedule.exchange.sigmas import from_sigmas, from_timesteps, to_comfyui, to_sdnext
from search.schedule.exchange.smoothcache import from_smoothcache, to_smoothcache
from search.schedule.exchange.stock import from_diffusers, to_diffusers

__all__ = [
    "DIALECTS",
    "Dialect",
    "Parts",
    "below",
    "centred",
    "detect",
    "dialect_of",
    "export",
    "from_ays",
    "from_deepcache",
    "from_diffusers",
    "from_ecad",
    "from_magcache",
    "from_scm",
    "from_sdcpp",
    "from_sigmas",
    "from_smoothcache",
    "from_timesteps",
    "load",
    "losses",
    "parts_of",
    "read",
    "to_cache_dit",
    "to_comfyui",
    "to_diffusers",
    "to_ecad",
    "to_scm",
    "to_sdcpp",
    "to_sdnext",
    "to_smoothcache",
    "to_torchao",
]
