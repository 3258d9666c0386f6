"""From a command line to the configuration, and from an exception to what to type instead."""

import logging
import os
import re
import sys
from typing import Any

DEFAULT_SPACE = "cache"
GUARD = ("clip", "ssim")  # objectives that are reported and not searched, unless guard= names others
GROUPS = {
    "space": "what is searched; +space=[a,b] joins several",
    "model": "which pipeline; model.path=<folder or hub id> for your own checkpoint",
    "engine": "how it is searched",
    "objective": "what is traded off, two or more: objective=[drift,latency]",
    "prompts": "calibration and held-out prompts; prompts.calibration=<text file>",
    "budget": "when to stop: budget.evaluations=, budget.minutes=, budget.block_executions=",
    "compute": "where to run: compute.device=cuda compute.threads=8",
    "experiment": "a published search with its own space, engine and budget; +experiment=ecad model=pixart",
}
# Loggers that speak to developers when their library is imported, of extensions that are not for this machine.
CHATTY = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")


def silence_libraries() -> None:
    """Leave the terminal to what concerns the user; errors are still told."""
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)


def normalise_overrides(overrides: list[str]) -> list[str]:
    """`x=y`, `+x=y` and `++x=y` mean the same for a group x; without a space the default one is meant.

    Hydra appends `+space` only while `space` is absent from its defaults list: so it is in conf/search.yaml. The
    other groups are in that list, and there Hydra refuses the plus. An experiment is appended, and brings its space.
    """
    said = [override.lstrip("+").partition("=") for override in overrides]
    named = {group for group, equals, _ in said if equals}
    appended = {"experiment"} | ({"space"} if "experiment" not in named else set())
    found = []
    for override, (group, equals, option) in zip(overrides, said, strict=True):
        plain = ("+" if group in appended else "") + group + equals + option
        found.append(plain if equals and group in GROUPS else override)
    return found if named & {"space", "experiment"} else [*found, f"+space={DEFAULT_SPACE}"]


def with_guard(overrides: list[str]) -> list[str]:
    """`guard=[a,b]`, by default GUARD, as Hydra wants to hear it: options of the group objective, below `guard`."""
    said = [override.partition("=")[2].strip("[]") for override in overrides if override.startswith("guard=")]
    names = [name.strip() for name in said[-1].split(",")] if said else list(GUARD)
    rest = [override for override in overrides if not override.startswith("guard=")]
    return [*(f"+objective@guard.{name}={name}" for name in names if name not in ("", "null")), *rest]


def compose_config(overrides: list[str], config_dir: str | None = None) -> dict[str, Any]:
    """The configuration as plain nested data, not yet checked. `config_dir` is a folder with more options."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    if config_dir is not None:
        if not os.path.isdir(config_dir):
            raise ValueError(f"--config-dir {config_dir!r} is not a folder")
        overrides = [*overrides, f"hydra.searchpath=['file://{os.path.abspath(config_dir)}']"]
        sys.path.append(os.path.abspath(config_dir))  # for the classes that its files name
    with initialize_config_module("search.conf", version_base="1.3", job_name="search"):
        return OmegaConf.to_container(compose("search", overrides=with_guard(overrides)), resolve=True)


def list_options(group: str) -> list[str]:
    """The YAML files of a group."""
    from search.conf import __path__ as conf

    return sorted(name.removesuffix(".yaml") for name in os.listdir(f"{conf[0]}/{group}") if name.endswith(".yaml"))


def message_of_user_error(error: Exception) -> str | None:
    """What to tell the user, with what was probably meant; None for what is not the user's mistake."""
    if isinstance(error, ModuleNotFoundError) and error.name == "hydra":  # only what applies schedules is installed
        return 'a search needs more packages: pip install "diffusion-schedule-search[search]", or -e ".[search]" here'
    from hydra.errors import HydraException, InstantiationException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, InstantiationException):  # Hydra's wrapping of what a constructor said
        unexpected = isinstance(error.__cause__, TypeError) and "unexpected keyword" in str(error.__cause__)
        if isinstance(error.__cause__, ImportError):
            return f"{error.__cause__}\nIts file belongs into the folder of --config-dir, or into one on PYTHONPATH"
        return str(error.__cause__) if unexpected or isinstance(error.__cause__, ValueError) else None
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return str(error) if isinstance(error, ValueError) else None
    from search.config.hints import closest_name_hint
    from search.config.settings import known_keys

    text = str(error).strip()
    if found := re.search(r"Could not (?:find|load) '(\w+)/([^']*)'", text):
        group, wrong = found.groups()
        known = list_options(group)
        return f"{group}={wrong} is no option.{closest_name_hint(wrong, known)} Available options: {', '.join(known)}"
    if found := re.search(r"(\w+) appears more than once|Multiple values for (\w+)\.", text):
        group = found[1] or found[2]
        joined = f"; join several as {group}=[a,b]" if group in ("space", "objective") else ""
        return f"{group}= is given more than once{joined}"
    if found := re.search(
        r"Could not (?:override|append to config|delete)[^']*'([^'@]+)|Key '([^']+)' is not in", text
    ):
        wrong = found[1] or found[2]
        hint = "See python -m search --help, or --cfg job for all values"
        return f"{wrong} is no option.{closest_name_hint(wrong, known_keys())} {hint}"
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())
