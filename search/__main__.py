"""python -m search: a Hydra configuration becomes objects, then runs; or another command that is named first."""

import importlib
import os
import sys
from pathlib import Path

from search.config.compose import (
    GROUPS,
    compose_config,
    list_options,
    message_of_user_error,
    normalise_overrides,
    silence_libraries,
)

COMPLETION = {"--shell-completion", "-sc"}
EXAMPLES = (
    "python -m search +space=cache model=pixart",
    "python -m search model=pixart_alpha_256 objective=[drift,latency] budget.minutes=60",
    "python -m search resume=latest budget.evaluations=600",
)


def main(arguments: list[str]) -> int:
    """Run the command that is named first, else compose, check and search; returns the exit code.

    No traceback for what a user mistyped.
    """
    if arguments and arguments[0].isidentifier():
        return run_command(arguments[0], arguments[1:])
    if any(a in ("--help", "-h") for a in arguments):
        print(help_text())
        return 0
    if COMPLETION & set(arguments):
        complete()
        return 0
    silence_libraries()
    try:
        flags, overrides = split(arguments)
        raw = compose_config(overrides, flags.get("--config-dir"))
        if "--cfg" in flags:
            import yaml

            print(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), end="")
            return 0
        from search.config.settings import Config

        config = Config.check(raw)
        from search.config.device import resolve_device
        from search.engines.check import check_engine

        check_engine(config.engine, len(config.objective))  # before everything else is imported
        resolve_device(config.compute.device)
        from search.loop.run import run

        run(config)
    except Exception as error:
        message = message_of_user_error(error)
        if message is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2
    return 0


def run_command(name: str, arguments: list[str]) -> int:
    """Run the command `search.<name>`; returns its exit code, 2 where there is no such command."""
    known = commands()
    if name in known:
        return int(importlib.import_module(f"search.{name}").main(arguments))
    from search.config.hints import closest_name_hint

    hint = f"There are {', '.join(known)}; options of a search are written key=value"
    print(f"error: {name!r} is not a command.{closest_name_hint(name, known)} {hint}", file=sys.stderr)
    return 2


def commands() -> dict[str, str]:
    """The commands by name, and what each does in one line.

    They are the modules of this folder whose first line says `python -m search.<name>:`; that line is all that is read.
    """
    lines = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        with file.open(encoding="utf-8") as text:
            begin, colon, line = text.readline().strip().partition(": ")
        if colon and begin == f'"""python -m search.{file.stem}':
            lines[file.stem] = line.removesuffix('"""').rstrip(".")
    return lines


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
    return flags, normalise_overrides(overrides)


def help_text() -> str:
    """One line, the options of each group, examples and the other commands."""
    width = max(len(g) for g in GROUPS)
    lines = ["Search how a diffusion model is run; return the Pareto front as schedules.", "", "Options"]
    for group, text in GROUPS.items():
        lines += [f"  {group:<{width}}  {text}", f"  {'':<{width}}  one of: {', '.join(list_options(group))}"]
    lines += [
        "",
        "Also: seed=, resume=<run|latest>, trust=<./folder|package>, runs=<folder>, tracking.enabled=, tracking.uri=",
        "",
        "Examples",
    ]
    lines += [f"  {example}" for example in EXAMPLES]
    lines += [
        "",
        "  -sc install=bash    completion of groups, options and values, by Hydra (also zsh, fish), as is:",
        '                      eval "$(schedule-search -sc install=bash)"',
        "  --cfg job           print the whole configuration and stop; every value can be overridden",
        "  --config-dir <dir>  find more options in <dir>/<group>/<option>.yaml",
        "",
        "Other commands, as python -m search.<command> or schedule-search <command>; each explains itself with --help",
    ]
    known = commands()
    lines += [f"  {name:<{max(map(len, known))}}  {line}" for name, line in known.items()]
    return "\n".join(lines)


def complete() -> None:
    """Let Hydra answer what a shell asks it about the options, which it reads from the command line itself."""
    import hydra

    hydra.main(config_path="pkg://search.conf", config_name="search", version_base="1.3")(lambda config: None)()


def entry() -> int:
    """The command `schedule-search`, which is `python -m search` where a shell can complete it."""
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(entry())
