"""Everything that can be called after `import search`; docs/api.md says which command each function is.

The first arguments are what a function acts on, a schedule or a finished search, then the model; all else is given by
name. `on_progress(what, done, total)` is called as work goes on. Nothing heavy is imported before a function is called.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.loop.progress import OnProgress
    from search.models.base import Model
    from search.observe.contract import Observation
    from search.results.choice import Choice
    from search.results.result import Result
    from search.schedule import Schedule
    from search.tracking.promotion import Promoted
    from search.validate.ablation import Explanation
    from search.validate.before_after import Generated
    from search.validate.transfer import Transfer
    from search.validate.verdict import Verdict

__all__ = [
    "best_within",
    "contract",
    "explain",
    "export",
    "generate",
    "load_model",
    "promote",
    "report",
    "search",
    "transfer",
    "verify",
]


def search(
    *arguments: Any,
    model: str | None = None,
    call: Mapping[str, Any] | None = None,
    space: str | Sequence[str] | None = None,
    objective: Sequence[str] | None = None,
    engine: str | None = None,
    prompts: str | Sequence[str | Mapping[str, Any]] | None = None,
    held_out: Sequence[str | Mapping[str, Any]] | None = None,
    budget: str | Mapping[str, int | float] | None = None,
    certify: str | Mapping[str, str | int | float] | None = None,
    runs: str | Path | None = None,
    seed: int | None = None,
    on_progress: "OnProgress | None" = None,
) -> "Result":
    """Search how a model is run, and return the finished search; its files are in a new folder below `runs`.

    Args:
        arguments: A pipeline, on its device, in its type, with its adapters; then, or only, options as they are typed
            after `python -m search`, such as `"budget.evaluations=60"`.
        model: Name of a model's option (conf/model), by default `pixart`, which is bundled.
        call: Arguments of the pipeline's call, such as `{"num_inference_steps": 28, "height": 1024}`.
        space: Name or names of what is searched (conf/space), by default `cache`.
        objective: Two or more objectives (conf/objective), by default drift and macs.
        engine: Name of an engine's option (conf/engine), by default `predictor`.
        prompts: Name of a prompts option (conf/prompts), by default that of the model; or prompts, each a text or
            arguments of the call, pictures by their files.
        held_out: Prompts that the front is scored on; by default every second one of `prompts`.
        budget: Name of a budget option (conf/budget), or limits such as `{"evaluations": 100, "minutes": 30}`.
        certify: What is promised about the next run, by default `"psnr>=30"`; `"off"`; or with more settings
            `{"criterion": "psnr>=30", "share": 0.95, "confidence": 0.95, "runs": 128}` (docs/certificates.md).
        runs: Folder in which the search makes its own.
        seed: Of the engine; the same seed gives the same front.
        on_progress: Called with what is done, how many candidates are evaluated, and of how many.

    Returns:
        The front, the published rules and the teacher with their scores; a notebook shows it as a picture and a table.

    Raises:
        ValueError: An option or value does not exist; the text says which there are.

    Example:
        >>> result = search.search(space="cache", budget={"evaluations": 60})  # doctest: +SKIP
        >>> result.best.name  # doctest: +SKIP
        '3.4× · drift 0.061'
    """
    from search.config.compose import compose_config, normalise_overrides
    from search.config.load import config_for_pipe, prompts_from_config
    from search.config.prompts import prompt_lists
    from search.config.settings import Config
    from search.loop.run import run
    from search.models.pipeline import Pipeline

    pipe, overrides = (arguments[0], arguments[1:]) if arguments and callable(arguments[0]) else (None, arguments)
    if pipe is not None and model is not None:
        raise ValueError(f"model={model} names another pipeline than the {type(pipe).__name__} that is given")
    option = prompts if isinstance(prompts, str) else None
    named = {"model": model or (pipe and "any"), "engine": engine, "prompts": option, "seed": seed, "runs": runs}
    texts = [f"{name}={value}" for name, value in named.items() if value is not None]
    if space is not None:
        texts.append(f"+space={_joined(space)}")
    if objective is not None:
        texts.append(f"objective={_joined(objective)}")
    if isinstance(budget, str):
        texts.append(f"budget={budget}")
    elif budget is not None:
        texts += [f"budget.{name}={'null' if value is None else value}" for name, value in budget.items()]
    settings = {"criterion": certify} if isinstance(certify, str) else certify or {}
    texts += [f"certify.{name}={value}" for name, value in settings.items()]
    raw = compose_config(normalise_overrides([*texts, *overrides]))
    raw["prompts"] |= prompt_lists(prompts, held_out)
    if pipe is None:
        raw["model"] |= {"call": {**raw["model"].get("call", {}), **(call or {})}} if call else {}
        return run(Config.check(raw), on_progress or _silent)
    config = config_for_pipe(Config.check(raw), pipe, call or {})
    example = prompts_from_config(config.prompts)[0][0]
    given = Pipeline(type(pipe).__name__, pipe=pipe, call=call or {}, example=example)
    return run(config, on_progress or _silent, given)


def load_model(name: str = "pixart", *overrides: str) -> "Model":
    """Load a model once, to hand it to several functions.

    Args:
        name: Name of a model's option (conf/model).
        overrides: Options as they are typed on the command line, such as `"model.path=/data/mine"`.

    Returns:
        The pipeline as searches run it; `model.pipe` is the pipeline of diffusers.

    Raises:
        ValueError: There is no such option, or its weights cannot be found.

    Example:
        >>> model = search.load_model("pixart", "model.steps=10")
        >>> type(model.pipe).__name__, model.target.steps
        ('PixArtAlphaPipeline', 10)
    """
    from search.config import load

    return load.load_model(name, *overrides)


def contract(pipe: Any, *, call: Mapping[str, Any] | None = None) -> "Observation":
    """Watch one call of any pipeline, and say what of its denoiser can be planned, proved on the denoiser itself.

    Args:
        pipe: A pipeline of diffusers as it is: on its device, in its type, with its adapters; or any callable object
            with a scheduler and modules. Nothing stays on it.
        call: Keyword arguments of the pipeline's call. Without `num_inference_steps` two steps are made, without
            `output_type` it ends at the latents, where the pipeline has such arguments.

    Returns:
        The observed run and the contract of each denoiser; `contracts[0].contract.to_dict()` is what a schedule's
        `model.contract` holds.

    Raises:
        ScheduleError: The call fails, or nothing in it can be planned; the text says what was seen.

    Example:
        >>> from search.testing import pipelines
        >>> pipe = pipelines.flux()
        >>> pipe.set_progress_bar_config(disable=True)
        >>> seen = contract(pipe, call={"prompt": "red apple", "height": 32, "width": 32}).contracts[0]
        >>> [(stack.name, stack.components) for stack in seen.contract.stacks]
        [('transformer_blocks', ('attn', 'ff', 'ff_context')),
         ('single_transformer_blocks', ('proj_mlp', 'attn', 'proj_out'))]
    """
    from search.observe.contract import observe, short_call

    return observe(pipe, short_call(pipe, call or {}))


def best_within(limits: str, run: str = "latest", *, runs: str | Path = "runs") -> "Choice":
    """Find the best schedules of a finished search within limits, without a new search.

    Args:
        limits: Conditions on held-out scores joined by `and`, such as `"latency<=400ms and memory<=1GB"`. Limits on
            cost give the least drift first, one on quality the fastest.
        run: `latest`, the name of a folder below `runs`, or a path.
        runs: Folder of the searches.

    Returns:
        What fits, the best first; `.schedule` is the best one, loaded.

    Raises:
        ValueError: Nothing fits; the text says what can be had.

    Example:
        >>> choice = search.best_within("macs<=90%", run)
        >>> choice.schedule.steps
        6
    """
    from search.results import choice
    from search.results.folder import find_run

    return choice.best_within(limits, find_run(run, Path(runs)))


def export(
    run: str = "latest",
    pick: str = "recommended",
    *,
    out: str | Path = "schedule.json",
    runs: str | Path = "runs",
    alias: str = "",
    model: str = "",
    uri: str = "",
) -> list[Path]:
    """Copy schedules of a finished search to files that production loads.

    Args:
        run: `latest`, the name of a folder below `runs`, or a path.
        pick: `recommended`, `knee`, `all`, a schedule's name, or conditions on held-out scores.
        out: The file to write; for `pick="all"` a folder.
        runs: Folder of the searches.
        alias: Write what this alias names in MLflow's registry instead.
        model: Registered model of the alias, such as `pixart-cache`; no search is needed then.
        uri: MLflow server of the alias; by default the database in `runs`.

    Returns:
        Paths of the files that were written.

    Raises:
        ValueError: There is no such search, schedule or alias; the text says what to type.

    Example:
        >>> [path] = search.export(run, "knee", out=folder / "schedule.json")
        >>> search.Schedule.load(path).steps
        6
    """
    from search.results.export import copy_schedules
    from search.results.folder import find_run

    if not alias and not model:
        if uri:
            raise ValueError(f"uri={uri} is where an alias is looked up; type alias=production, too")
        return copy_schedules(find_run(run, Path(runs)), pick, Path(out))
    from search.tracking import registry, store

    alias = alias or "production"
    if pick != "recommended":
        raise ValueError(f"pick={pick!r}: alias={alias} says which schedule; leave out pick=, or alias= and model=")
    if model:
        name, address = model, store.store_address(Path(runs), uri)
    else:
        name, address = registry.registered_model_of(find_run(run, Path(runs)), Path(runs), uri)
    return [registry.fetch_by_alias(address, name, alias, Path(out))]


def report(
    run: str = "latest",
    *,
    out: str | Path = "report.html",
    runs: str | Path = "runs",
    on_progress: "OnProgress | None" = None,
) -> Path:
    """Write the report of a finished search: one HTML page that works offline.

    Args:
        run: `latest`, the name of a folder below `runs`, or a path.
        out: The file to write.
        runs: Folder of the searches.
        on_progress: Called after the pictures of every schedule.

    Returns:
        Path of the page.

    Raises:
        ValueError: There is no such search.

    Example:
        >>> search.report(run, out=folder / "report.html").name
        'report.html'
    """
    from search.figures.report.writing import write_report
    from search.results.folder import find_run

    return write_report(find_run(run, Path(runs)), Path(out), on_progress or _silent)


def promote(
    run: str = "latest",
    pick: str = "recommended",
    alias: str = "production",
    *,
    runs: str | Path = "runs",
    uri: str | None = None,
) -> "Promoted":
    """Let an alias of MLflow's registry name a schedule of a finished search; deployments that follow it get it.

    Args:
        run: `latest`, the name of a folder below `runs`, or a path.
        pick: `recommended`, `knee`, a schedule's name, or conditions on held-out scores.
        alias: The alias that is moved.
        runs: Folder of the searches.
        uri: MLflow server; by default the database in `runs`. An address that only the run folder names is not used.

    Returns:
        What the alias names now, and what it named before.

    Raises:
        ValueError: There is no such search or schedule, or the server does not know it.

    Example:
        >>> print(search.promote(pick="psnr>=30"))  # doctest: +SKIP
        production of pixart-cache is version 2 (was version 1): 3.4× · drift 0.061
    """
    from search.results.folder import find_run
    from search.tracking.promotion import move_alias

    if pick == "all":
        raise ValueError("pick=all: an alias names one schedule; type pick=recommended, or a condition")
    return move_alias(find_run(run, Path(runs)), pick, alias, Path(runs), uri)


def generate(
    schedule: "Schedule | str | Path",
    model: "Model | str | None" = None,
    *,
    prompts: str | Sequence[str],
    seed: int = 0,
    repeats: int = 3,
    name: str = "",
    on_progress: "OnProgress | None" = None,
) -> "Generated":
    """Draw prompts with the untouched pipeline and under a schedule, from the same noise; whole calls are timed.

    Args:
        schedule: A schedule or its file.
        model: A loaded model, the name of its option, or None for the one that the schedule was searched on.
        prompts: What to draw.
        seed: Of the first prompt's noise; each further prompt has the next one.
        repeats: Timed rounds, after one that warms up.
        name: Title of the figure; by default the file's name.
        on_progress: Called after every round.

    Returns:
        Pictures uint8 [H, W, 3] before and after, PSNR in dB, times in milliseconds; a notebook shows them.

    Raises:
        ValueError: The schedule does not say which model it is for, or the model gives no pictures.
        ScheduleError: The schedule is for another denoiser.

    Example:
        >>> generated = search.generate("docs/presets/pixart/fora-n-3.json", "pixart", prompts="red apple", repeats=1)
        >>> generated.after[0].shape
        (64, 64, 3)
    """
    from search.validate import before_after

    return before_after.generate(schedule, model, prompts, seed, repeats, name, on_progress or _silent)


def explain(
    schedule: "Schedule | str | Path",
    model: "Model | str | None" = None,
    *,
    samples: int = 8,
    by: Sequence[str] = ("part", "mechanism", "nodes", "step"),
    name: str = "",
    on_progress: "OnProgress | None" = None,
) -> "Explanation":
    """Measure what every decision of a schedule saves and costs, left out and taken alone.

    Args:
        schedule: A schedule or its file.
        model: A loaded model, the name of its option, or None for the one that the schedule was searched on.
        samples: Held-out prompts that it is measured on.
        by: Which decisions: parts of the file, mechanisms in them, kinds of nodes, single steps.
        name: Title of the figure; by default the file's name.
        on_progress: Called after every run.

    Returns:
        Effects with paired 95 % intervals; a notebook shows them as bars.

    Raises:
        ValueError: The schedule does not say which model it is for.

    Example:
        >>> explained = search.explain("docs/presets/pixart/fora-n-3.json", "pixart", samples=2, by=["mechanism"])
        >>> explained.prompts
        2
    """
    from search.validate import ablation

    report_run = on_progress or _silent
    return ablation.explain(schedule, model, samples, by, name, lambda done, total: report_run("runs", done, total))


def verify(
    schedule: "Schedule | str | Path",
    model: "Model | str | None" = None,
    *,
    criterion: str = "",
    certify: str = "",
    share: float = 0.9,
    confidence: float = 0.95,
    tolerance: float = 1.25,
    prompts: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    seconds: float = 60.0,
    samples: int = 256,
    batch: int = 8,
    on_message: Callable[[str], None] | None = None,
) -> "Verdict":
    """Test whether a schedule still holds: on this device, checkpoint, LoRA, resolution, number of steps.

    Args:
        schedule: A schedule or its file.
        model: A loaded model, the name of its option, or None for the one that the schedule was searched on.
        criterion: What means must meet, such as `"drift<=0.1 and psnr>=30"`; by default what the file claims.
        certify: What every run must meet, such as `"psnr>=30"`; by default that of the file's certificate, which is
            renewed. `"off"` verifies means.
        share: Of new runs that meet it, at least; a certificate in the file has its own.
        confidence: Of the certificate; a certificate in the file has its own.
        tolerance: How many times the claimed drift is accepted where there is no criterion.
        prompts: By default the model's held-out prompts.
        seeds: Of the noise; by default seeds that no search uses.
        seconds: Time that it may take.
        samples: Pictures at most.
        batch: Pictures of one call.
        on_message: Called with a line after every batch.

    Returns:
        `passed` is True, False, or None where it was not decided, with scores, intervals and the reason; `schedule` has
        the renewed certificate.

    Raises:
        ValueError: There is nothing to hold the schedule to.

    Example:
        >>> verdict = search.verify("docs/presets/pixart/fora-n-3.json", "pixart", criterion="drift<=1", samples=8)
        >>> verdict.passed
        True
    """
    from search.validate import verifier

    say = on_message or _silent
    return verifier.verify(
        schedule, model, prompts, seeds, tolerance, criterion, seconds, samples, batch, say, certify, share, confidence
    )


def transfer(
    schedule: "Schedule | str | Path",
    model: "Model | str | None" = None,
    *,
    criterion: str = "",
    tolerance: float = 1.25,
    prompts: tuple[Sequence[str], Sequence[str]] | None = None,
    refit: bool = True,
    runs: int = 64,
    seconds: float = 60.0,
    samples: int = 64,
    batch: int = 8,
    seed: int = 0,
    on_message: Callable[[str], None] | None = None,
) -> "Transfer":
    """Carry a schedule over to a model with another number of steps, size, guidance scale, LoRA or checkpoint.

    Args:
        schedule: A schedule or its file.
        model: A loaded model, the name of its option, or None for the one that the schedule was searched on.
        criterion: What the new schedule must hold; by default what the file claims.
        tolerance: How many times the claimed drift is accepted where there is no criterion.
        prompts: Calibration and held-out prompts; by default those of the model that the file names.
        refit: Fit a fitted solver, and corrections, anew; False drops them.
        runs: Schedules that are run at most to find repairs; 0 repairs nothing.
        seconds: Time that each verification may take.
        samples: Pictures of a verification at most.
        batch: Pictures of one call.
        seed: Of the calibration noise.
        on_message: Called with a line as work goes on.

    Returns:
        The verdict, and the new schedule where it holds; `schedule` is None where it does not.

    Raises:
        ValueError: There is nothing to hold the schedule to, or a part of it does not carry over.

    Example:
        >>> thirty = search.load_model("pixart", "model.steps=30")
        >>> search.transfer("schedule.json", thirty).schedule.save("schedule30.json")  # doctest: +SKIP
    """
    from search.config.load import open_schedule_and_model
    from search.validate.transfer import transfer as carry

    if model is None or isinstance(model, str):
        schedule, model, _ = open_schedule_and_model(schedule, model)
    say = on_message or _silent
    return carry(
        schedule, model, prompts, tolerance, criterion, refit, runs, seconds, samples, batch, seed, say
    )  # fmt: skip


def _joined(names: str | Sequence[str]) -> str:
    """One name, or several as Hydra reads a list."""
    return names if isinstance(names, str) else f"[{','.join(names)}]"


def _silent(*_: Any) -> None:
    """No report of progress."""
