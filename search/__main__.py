"""python -m search: a Hydra configuration becomes objects, then runs."""

import os
import re
import sys
from typing import Any

DEFAULT_SPACE = "cache"
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
EXAMPLES = (
    "python -m search +space=cache model=pixart",
    "python -m search model=pixart_alpha_256 objective=[drift,latency] budget.minutes=60",
    "python -m search resume=latest budget.evaluations=600",
)


def main(arguments: list[str]) -> int:
    """Compose, check, run; returns the exit code. No traceback for what a user mistyped."""
    if any(a in ("--help", "-h") for a in arguments):
        print(help_text())
        return 0
    try:
        flags, overrides = split(arguments)
        raw = composed(overrides, flags.get("--config-dir"))
        if "--cfg" in flags:
            import yaml

            print(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), end="")
            return 0
        from search.config import Config

        config = Config.check(raw)
        from search.run import run  # torch and diffusers take seconds: not before the command proved right

        run(config)
    except Exception as error:
        told = explain(error)
        if told is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {told}", file=sys.stderr)
        return 2
    return 0


def split(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """The flags `--cfg job` and `--config-dir DIR`, and the overrides."""
    flags, overrides = {}, []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in ("--cfg", "--config-dir", "-cd"):
            flags["--config-dir" if name == "-cd" else name] = value if equals else next(rest, "")
        elif argument.startswith("-"):
            raise ValueError(f"there is no flag {argument}; there are --help, --cfg job and --config-dir <folder>")
        else:
            overrides.append(argument)
    return flags, normalise(overrides)


def normalise(overrides: list[str]) -> list[str]:
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


def composed(overrides: list[str], config_dir: str | None = None) -> dict[str, Any]:
    """The configuration as plain nested data, not yet checked. `config_dir` is a folder with more options."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    if config_dir is not None:
        if not os.path.isdir(config_dir):
            raise ValueError(f"--config-dir {config_dir!r} is not a folder")
        overrides = [*overrides, f"hydra.searchpath=['file://{os.path.abspath(config_dir)}']"]
    with initialize_config_module("search.conf", version_base="1.3", job_name="search"):
        return OmegaConf.to_container(compose("search", overrides=overrides), resolve=True)


def options(group: str) -> list[str]:
    """The YAML files of a group."""
    from search.conf import __path__ as conf

    return sorted(name.removesuffix(".yaml") for name in os.listdir(f"{conf[0]}/{group}") if name.endswith(".yaml"))


def help_text() -> str:
    """One line and the options of each group, and examples."""
    width = max(len(g) for g in GROUPS)
    lines = ["Search how a diffusion model is run; hand back the Pareto front as schedules.", "", "Options"]
    for group, text in GROUPS.items():
        lines += [f"  {group:<{width}}  {text}", f"  {'':<{width}}  one of: {', '.join(options(group))}"]
    lines += [
        "",
        "Also: seed=, resume=<run|latest>, runs=<folder>, tracking.enabled=, tracking.uri=",
        "",
        "Examples",
    ]
    lines += [f"  {example}" for example in EXAMPLES]
    lines += [
        "",
        "  --cfg job           print the whole configuration and stop; every value can be overridden",
        "  --config-dir <dir>  find more options in <dir>/<group>/<option>.yaml",
    ]
    return "\n".join(lines)


def explain(error: Exception) -> str | None:
    """What to tell the user, with what was probably meant; None for what is not the user's mistake."""
    if isinstance(error, ModuleNotFoundError) and error.name == "hydra":  # only what applies schedules is installed
        return 'a search needs more packages: pip install "diffusion-schedule-search[search]", or -e ".[search]" here'
    from hydra.errors import HydraException, InstantiationException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, InstantiationException):  # Hydra's wrapping of what a constructor said
        unexpected = isinstance(error.__cause__, TypeError) and "unexpected keyword" in str(error.__cause__)
        return str(error.__cause__) if unexpected or isinstance(error.__cause__, ValueError) else None
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return str(error) if isinstance(error, ValueError) else None
    from search.config import closest, known_keys

    text = str(error).strip()
    if found := re.search(r"Could not (?:find|load) '(\w+)/([^']*)'", text):
        group, wrong = found.groups()
        known = options(group)
        return f"{group}={wrong} is no option.{closest(wrong, known)} Available options: {', '.join(known)}"
    if found := re.search(r"(\w+) appears more than once|Multiple values for (\w+)\.", text):
        group = found[1] or found[2]
        joined = f"; join several as {group}=[a,b]" if group in ("space", "objective") else ""
        return f"{group}= is given more than once{joined}"
    if found := re.search(
        r"Could not (?:override|append to config|delete)[^']*'([^'@]+)|Key '([^']+)' is not in", text
    ):
        wrong = found[1] or found[2]
        hint = "See python -m search --help, or --cfg job for all values"
        return f"{wrong} is no option.{closest(wrong, known_keys())} {hint}"
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
