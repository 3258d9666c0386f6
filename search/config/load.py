"""Load what a configuration names: the pipeline and the prompts."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from search.config import options as command
from search.config.compose import compose_config, normalise_overrides
from search.config.device import resolve_device
from search.config.options import number_option
from search.config.prompts import read_prompts
from search.config.settings import Config, Prompts
from search.models.base import Model, plain_arguments
from search.schedule import Schedule
from search.schedule.apply.stitch import gaussians_of

HELD_OUT_SEED = 10_000  # added to seeds, so that held-out noise is never the calibration noise
# Which option of the model an argument of the recorded pipeline call sets.
CALL = {"num_inference_steps": "steps"} | {
    name: name for name in ("guidance_scale", "height", "width", "max_sequence_length", "num_frames")
}


def config_for_schedule(schedule: Schedule, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a schedule's model; `overrides` as on the command line: `model=`, `prompts.held_out=`.

    Without `model=` it is the model that the schedule was searched on. Steps, guidance scale and size are those of that
    search unless they are given or it was another model.

    Raises:
        ValueError: The file does not name a model and no override does.
    """
    searched_model, overrides = schedule.made.get("model"), list(overrides)
    typed = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    if (name := typed.get("model", searched_model)) is None:
        raise ValueError("the schedule does not say which model it is for; type model=<name>, as for a search")
    if "model" not in typed and not re.fullmatch(r"[\w.-]{1,200}", str(name)):  # of a file: it is given to Hydra below
        raise ValueError(f"made.model is {name!r:.80}, which is not the name of a model; type model=<name>")
    if "model" not in typed:
        overrides.append(f"model={name}")
    call = schedule.call_of_search if searched_model in (None, name) else {}
    for argument, value in call.items():
        key = f"model.{CALL[argument]}" if argument in CALL else f"model.call.{argument}"
        if key not in typed and type(value) in (int, float, bool) and argument.isidentifier():
            overrides.append(f"++{key}={str(value).lower()}")
    return Config.check(compose_config(normalise_overrides(overrides)))


def load_model(name: str, *overrides: str) -> Model:
    """A model by its option, to be handed to several functions: `load("pixart", "model.path=/data/mine")`."""
    return model_from_config(Config.check(compose_config(normalise_overrides([f"model={name}", *overrides]))))


def open_schedule_and_model(
    schedule: Schedule | str | Path, model: Model | str | None = None
) -> tuple[Schedule, Model, Config]:
    """A schedule or its file, and a loaded model, the name of its option, or None for the one that the file names.

    The configuration is that of the model's name, for its prompts.
    """
    schedule = schedule if isinstance(schedule, Schedule) else Schedule.load(schedule)
    name = model if isinstance(model, str) or model is None else model.name
    config = config_for_schedule(schedule, [] if name is None else [f"model={name}"])
    loaded = model_from_config(config) if model is None or isinstance(model, str) else model
    add_gaussians_of(schedule, loaded)
    return schedule, loaded, config


def add_gaussians_of(schedule: Schedule, model: Model) -> None:
    """Let a model have the Gaussians of a schedule file, as it had them in the search."""
    for letter, gaussian in gaussians_of(schedule.document.at, schedule.tensors).items():
        model.add_gaussian(letter, gaussian)


def title_of_schedule(schedule: Schedule | str | Path) -> str:
    """What a table or a figure calls a schedule: the name of its file."""
    return "schedule" if isinstance(schedule, Schedule) else Path(schedule).stem


def model_from_config(config: Config, **arguments: Any) -> Model:
    """The pipeline, loaded; `arguments` take the place of the configured ones."""
    model: Model = instantiate(dict(config.model) | {"device": resolve_device(config.compute.device)} | arguments)
    return model


def config_for_pipe(config: Config, pipe: Any, call: Mapping[str, Any]) -> Config:
    """The configuration of a search on a pipeline that is given: it says where that comes from, and the plain call."""
    source = str(getattr(getattr(pipe, "config", None), "_name_or_path", "") or "")
    plain = plain_arguments(call)
    model = {
        "_target_": "search.models.pipeline.Pipeline",
        "name": type(pipe).__name__,
        "path": source or None,
        "steps": plain.pop("num_inference_steps", None),
        "call": plain,
    }
    return Config.check(config.model_dump() | {"model": model, "trust": config.trust})


def example_of(prompts: Sequence[str]) -> dict[str, Any]:
    """The argument of a model whose call needs more than a text: the first of these prompts."""
    return {"example": prompts[0]} if prompts[0].startswith("{") else {}


def with_batches_that_run(
    config: Config, model: Model, prompts: Sequence[str], on_message: Callable[[str], None]
) -> Config:
    """The configuration, with prompts run one by one where the pipeline takes no lists of them."""
    settings = config.prompts
    if settings.batch == 1 or not (reason := model.why_no_batches(prompts[:2])):
        return config
    on_message(f"prompts are run one by one, as the pipeline takes no two at once: {reason}")
    return config.model_copy(update={"prompts": settings.model_copy(update={"batch": 1})})


def prompts_from_config(prompts: Prompts) -> tuple[list[str], list[str]]:
    """Calibration and held-out prompts, which must not share any."""
    calibration = read_prompts(prompts.calibration)[: prompts.calibration_count]
    held_out = read_prompts(prompts.held_out)[: prompts.held_out_count]
    if shared := sorted(set(calibration) & set(held_out) - {"{}"}):  # {}: the call as it is, other noise
        raise ValueError(
            f"{shared[0]!r} is a calibration prompt and a held-out prompt; held-out scores need prompts that the "
            "search has not seen: type prompts.held_out=<another text file>"
        )
    return calibration, held_out


def load_from_options(options: command.Options, steps: str = "") -> "tuple[Schedule, Model, Any]":
    """What the options of this command and of transfer name: schedule, model with its LoRA, and configuration."""
    from search.models.lora import merge
    from search.schedule import Schedule

    if not options["schedule"]:
        raise ValueError("which schedule? Type its file first: schedule.json, as python -m search.export writes it")
    schedule = Schedule.load(options["schedule"])
    overrides = list(options.overrides)
    overrides += [f"++model.guidance_scale={options['guidance']}"] if options["guidance"] else []
    overrides += [f"++model.steps={steps}"] if steps else []
    config = config_for_schedule(schedule, overrides)
    model = model_from_config(config)
    if options["lora"]:
        merge(model, options["lora"], number_option("lora_scale", options, {"lora_scale": "1"}))
    return schedule, model, config


def held_out_prompts(config: Any, overrides: Sequence[str] = ()) -> list[str]:
    """All held-out prompts of the file, those that searches report on first; fewer where that was typed."""
    typed = any("prompts.held_out_count=" in override for override in overrides)
    return prompts_from_config(config.prompts if typed else config.prompts.model_copy(update={"held_out_count": None}))[
        1
    ]
