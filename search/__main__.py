"""python -m search: a Hydra configuration becomes objects, then runs."""

import re
import sys

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from search.config import CONF, Config, closest

DEFAULT_SPACE = "cache"
GROUPS = {
    "space": "what is searched; join several as +space=[a,b]",
    "model": "which pipeline; model.path=<folder or hub id> for your own checkpoint",
    "engine": "how it is searched",
    "objective": "what is traded off, two or more: objective=[drift,latency]",
    "prompts": "calibration and held-out prompts; prompts.calibration=<text file>",
    "budget": "when to stop: budget.evaluations=, budget.minutes=, budget.block_executions=",
    "compute": "where to run: compute.device=cuda compute.threads=8",
}
EXAMPLES = (
    "python -m search +space=cache model=pixart",
    "python -m search model=pixart_alpha_256 objective=[drift,latency] budget.minutes=60",
    "python -m search resume=latest budget.evaluations=600",
)


def main(arguments: list[str]) -> int:
    """Compose, check, run; returns the exit code. One clean line, never a traceback, for what a user mistyped."""
    if any(a in ("--help", "-h") for a in arguments):
        print(help_text())
        return 0
    show = "--cfg" in arguments
    overrides = normalise([a for a in arguments if a not in ("--cfg", "job")])
    try:
        with initialize_config_module("search.conf", version_base="1.3", job_name="search"):
            composed = compose("search", overrides=overrides)
        config = Config.check(OmegaConf.to_container(composed, resolve=True))  # type: ignore[arg-type]
        if show:
            print(OmegaConf.to_yaml(composed))
            return 0
        from search.run import run

        run(config)
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error, overrides)}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def normalise(arguments: list[str]) -> list[str]:
    """`space=x`, `+space=x` and `++space=x` mean the same, and none of them means the default space.

    Hydra appends `+space` only while `space` is absent from its defaults list, so that is how conf/search.yaml is.
    """
    found = ["+" + a.lstrip("+") if a.lstrip("+").startswith("space=") else a for a in arguments]
    return found if any(a.startswith("+space=") for a in found) else [*found, f"+space={DEFAULT_SPACE}"]


def options(group: str) -> list[str]:
    """The YAML files of a group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def help_text() -> str:
    width = max(len(g) for g in GROUPS)
    lines = ["Search how a diffusion model is run; hand back the Pareto front as schedules.", "", "Options"]
    for group, text in GROUPS.items():
        lines += [f"  {group:<{width}}  {text}", f"  {'':<{width}}  one of: {', '.join(options(group))}"]
    lines += ["", "Also: seed=, resume=<run|latest>, runs=<folder>, tracking.enabled=, tracking.uri=", "", "Examples"]
    lines += [f"  {example}" for example in EXAMPLES]
    lines += ["", "  --cfg job   print the whole configuration, every value of which can be overridden, and stop"]
    return "\n".join(lines)


def explain(error: Exception, overrides: list[str]) -> str:
    """Hydra's message, and what was probably meant."""
    text = str(error).strip()
    match = re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text)
    if match:
        wrong = (match[1] or match[2]).split("@")[0]
        keys = [*GROUPS, "seed", "resume", "runs", "tracking", *_keys()]
        return f"{wrong} is no option.{closest(wrong, keys)} See python -m search --help, or --cfg job for all values"
    return text


def _keys() -> list[str]:
    with initialize_config_module("search.conf", version_base="1.3", job_name="search"):
        composed = OmegaConf.to_container(compose("search", overrides=[f"+space={DEFAULT_SPACE}"]))

    def walk(node: object, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        return [key for k, v in node.items() for key in walk(v, f"{prefix}.{k}" if prefix else str(k))]

    return walk(composed, "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
