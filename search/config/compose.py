"""Compose the configuration of a command line, and turn an exception into a message that says what to type."""

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
SEVERAL = ("space", "objective")  # groups of which more than one option may be named
# Loggers that print messages for developers when their library is imported.
CHATTY = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")


def silence_libraries() -> None:
    """Hide warnings that are of no use to the user; errors are still shown."""
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)


def normalise_overrides(overrides: list[str]) -> list[str]:
    """Overrides as Hydra requires them: `x=y`, `+x=y` and `++x=y` mean the same for a group x.

    Hydra accepts `+space=` only if `space` is not in its defaults list (conf/search.yaml), and refuses the plus for
    groups that are in it. An experiment is appended and brings its space; if neither is given the default space is
    added. `certify=` is short for `certify.criterion=`.
    """
    typed = [override.lstrip("+").partition("=") for override in overrides]
    for group, equals, option in typed:
        if equals and group in GROUPS:
            _check_options(group, option)
    named = {group for group, equals, _ in typed if equals}
    appended = {"experiment"} | ({"space"} if "experiment" not in named else set())
    normalised = []
    for override, (group, equals, option) in zip(overrides, typed, strict=True):
        plain = ("+" if group in appended else "") + group + equals + option
        if group in ("certify", "certify.criterion") and equals:
            normalised.append(f"certify.criterion={_quoted_criterion(option)}")
        elif group.startswith("model.call."):  # any argument of the pipeline's call
            normalised.append(f"++{override.lstrip('+')}")
        else:
            normalised.append(plain if equals and group in GROUPS else override)
    return normalised if named & {"space", "experiment"} else [*normalised, f"+space={DEFAULT_SPACE}"]


def _quoted_criterion(text: str) -> str:
    """A criterion as Hydra reads it, which takes `>` in quotes only; `off` is null."""
    bare = text.strip().strip("'\"")
    return "null" if bare in ("off", "null", "") else "'" + bare.replace("'", "") + "'"


def _check_options(group: str, option: str) -> None:
    """Raise ValueError where the options of a group are neither a name nor, for some groups, a list of names."""
    names = [name.strip() for name in option.removeprefix("[").removesuffix("]").split(",")]
    if any(not re.fullmatch(r"[\w./-]*", name) for name in names):
        raise ValueError(f"{group}={option}: give the name of an option, as --help lists them")
    if group not in SEVERAL and (len(names) > 1 or option.startswith("[")):
        raise ValueError(f"{group}={option}: give one name; only {' and '.join(SEVERAL)} take several")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{group}={option}: {twice[0]} is named twice")


def with_guard(overrides: list[str]) -> list[str]:
    """`guard=[a,b]`, by default GUARD, as Hydra requires it: options of the group objective under `guard`."""
    typed = [override.partition("=")[2].strip("[]") for override in overrides if override.startswith("guard=")]
    names = [name.strip() for name in typed[-1].split(",")] if typed else list(GUARD)
    rest = [override for override in overrides if not override.startswith("guard=")]
    return [*(f"+objective@guard.{name}={name}" for name in names if name not in ("", "null")), *rest]


def compose_config(overrides: list[str], config_dir: str | None = None) -> dict[str, Any]:
    """The configuration as plain nested data, not yet checked.

    Args:
        overrides: Overrides as `normalise_overrides` returns them.
        config_dir: A folder with more YAML options, and modules with the classes that these name.

    Raises:
        ValueError: `config_dir` is not a folder. Hydra's own errors: see `message_of_user_error`.
    """
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    from search.config.limits import as_list

    if config_dir is not None:
        if not os.path.isdir(config_dir):
            raise ValueError(f"--config-dir {config_dir!r} is not a folder")
        overrides = [*overrides, f"hydra.searchpath=['file://{os.path.abspath(config_dir)}']"]
        sys.path.append(os.path.abspath(config_dir))  # for the classes that its YAML files name
    with initialize_config_module("search.conf", version_base="1.3", job_name="search"):
        config = compose("search", overrides=with_guard(overrides))
        values: dict[str, Any] = OmegaConf.to_container(config, resolve=True)
        if config_dir is not None:
            values["trust"] = [*as_list(values["trust"]), os.path.abspath(config_dir)]
        return values


def list_options(group: str) -> list[str]:
    """The names of the options of a group, which are its YAML files."""
    from search.conf import __path__ as conf

    return sorted(name.removesuffix(".yaml") for name in os.listdir(f"{conf[0]}/{group}") if name.endswith(".yaml"))


def message_of_user_error(error: Exception) -> str | None:
    """The message for a mistake of the user, with what was probably meant; None for any other error."""
    if isinstance(error, ModuleNotFoundError) and error.name == "hydra":  # installed for applying schedules only
        return 'a search needs more packages: pip install "diffusion-schedule-search[search]", or -e ".[search]" here'
    from hydra.errors import HydraException, InstantiationException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, InstantiationException):  # Hydra wraps the error of a constructor
        unexpected = isinstance(error.__cause__, TypeError) and "unexpected keyword" in str(error.__cause__)
        if isinstance(error.__cause__, ImportError):
            return f"{error.__cause__}\nPut its file into the folder of --config-dir, or into one on PYTHONPATH"
        return str(error.__cause__) if unexpected or isinstance(error.__cause__, ValueError) else None
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return str(error) if isinstance(error, ValueError) else None
    from search.config.hints import closest_name_hint
    from search.config.settings import all_keys

    text = str(error).strip()
    if match := re.search(r"Could not (?:find|load) '(\w+)/([^']*)'", text):
        group, wrong = match.groups()
        names = list_options(group)
        hint = closest_name_hint(wrong, names)
        return f"{group}={wrong} is not an option.{hint} Available options: {', '.join(names)}"
    if match := re.search(r"(\w+) appears more than once|Multiple values for (\w+)\.", text):
        group = match[1] or match[2]
        joined = f"; join several as {group}=[a,b]" if group in ("space", "objective") else ""
        return f"{group}= is given more than once{joined}"
    if match := re.search(
        r"Could not (?:override|append to config|delete)[^']*'([^'@]+)|Key '([^']+)' is not in", text
    ):
        wrong = match[1] or match[2]
        hint = "See python -m search --help, or --cfg job for all values"
        return f"{wrong} is not an option.{closest_name_hint(wrong, all_keys())} {hint}"
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())
