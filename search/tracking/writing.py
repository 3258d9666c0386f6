"""Log a search to MLflow: one run for the search, one for every schedule of the front and every preset.

MLflow leaves nested runs out of its charts, so the schedules are not children; a tag joins them to the search.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.config.settings import Config
from search.results.certificates import certificate_sentence, tested_words
from search.results.folder import TENSORS
from search.results.result import Entry, Result
from search.tracking import registry, store, views
from search.tracking.notes import describe_schedule, describe_search

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger("search")
LONGEST = 500  # characters of a parameter
GENERATION = "generation/"  # prefix of metrics, which gives them a section of their own


def log_result(result: Result, root: Path, uri: str | None = None) -> dict[str, str]:
    """Write the result to the store at `uri`, by default SQLite in `root`.

    A search that is logged again (after a resume) keeps its runs: new schedules are added, those that have left the
    front are deleted, and parameters stay.

    Returns:
        `experiment_id`, `run_id` and pages of the UI; only `error`, with the reason, if the store failed.
    """
    address = store.store_address(root, uri)
    try:
        with store.one_line_errors(address):
            return _log_result(result, root, address)
    except store.StoreError as error:  # the run folder is complete; a locked or unreachable store must not hide it
        log.info("nothing, or not everything, is in MLflow: %s", error, exc_info=True)
        return {"error": str(error)}


def begin_run(client: "MlflowClient", config: Config, folder: Path) -> "Run":
    """The run of a search that is starting: a new one, or after a resume the existing one."""
    experiment = store.experiment_id(client, f"{config.model['name']}-{'+'.join(config.space)}", Path(config.runs))
    if (run := _runs(client, experiment, folder.name).get("search")) is None:
        return _create_search(client, experiment, folder.name, config.model_dump(mode="json"))
    client.update_run(run.info.run_id, status="RUNNING")
    return run


def log_generations(client: "MlflowClient", run: "Run", rows: Sequence[Mapping[str, float]]) -> None:
    """Log generations at the time when they ended, so that one that is logged again is not a second point."""
    from mlflow.entities import Metric

    metrics = [
        Metric(
            GENERATION + name,
            float(value),
            run.info.start_time + int(1000 * row.get("seconds", 0)),
            int(row["generation"]),
        )
        for row in rows
        for name, value in row.items()
        if name != "generation"
    ]
    for start in range(0, len(metrics), 1000):  # the most that a store takes at once
        client.log_batch(run.info.run_id, metrics=metrics[start : start + 1000])


def _log_result(result: Result, root: Path, address: str) -> dict[str, str]:
    client = store.connect_store(address)
    name = f"{result.model}-{result.space}"
    experiment = store.experiment_id(client, name, root)
    existing = _runs(client, experiment, result.search_id)
    search = existing.pop("search", None) or _create_search(client, experiment, result.search_id, result.config)
    best = None
    for entry in result.entries:
        key = registry.registry_key(entry.role, entry.name, entry.schedule.digest)
        tags = {"role": entry.role, "search_id": result.search_id, "schedule": key, "digest": entry.schedule.digest}
        run = existing.pop(key, None) or client.create_run(experiment, run_name=entry.name, tags=tags)
        _log_entry(client, run, result, entry)
        if entry is result.best and entry.role == "front":
            best = run.info.run_id
    for run in existing.values():  # schedules that a resumed search has pushed off the front
        _remove_run(client, run)
    identity = search.info.run_id
    pages = {"page": f"#/experiments/{experiment}/runs/{identity}?{views.TRAINING}"}
    try:  # optional: a store may have no registry, and the format of the view is not documented
        pages["view"] = views.save_chart_view(client, experiment, result)
        if best:
            pages["version"] = _register_newest(client, name, best)
    except Exception as error:
        log.info("not all pages: %s", error)
    _log_search(client, search, result, pages)
    return {"experiment_id": experiment, "run_id": identity} | pages


def _runs(client: "MlflowClient", experiment: str, search_id: str) -> dict[str, "Run"]:
    """The runs of a search in the store: `search` is its own, those of schedules are by their keys."""
    runs = client.search_runs([experiment], f"tags.search_id = {store.quoted(search_id)}", max_results=1000)
    for run in runs:
        store.check_artifacts(client.tracking_uri, run.info.artifact_uri)
    return {run.data.tags.get("schedule", "search"): run for run in runs}


def _create_search(client: "MlflowClient", experiment: str, search_id: str, config: Mapping[str, Any]) -> "Run":
    """A run that starts when the search started, with its configuration."""
    from mlflow.entities import Param

    tags = {
        "role": "search",
        "search_id": search_id,
        "mlflow.source.name": "python -m search",
        "mlflow.source.type": "LOCAL",
        "mlflow.note.content": "The search is running; **Model metrics** has its generations.",
    }
    run = client.create_run(experiment, start_time=_start_time(search_id), run_name=search_id, tags=tags)
    params = [Param(k, str(v)[:LONGEST]) for k, v in _flat(config)]
    for start in range(0, len(params), 100):  # the most that a store takes at once
        client.log_batch(run.info.run_id, params=params[start : start + 100])
    return run


def _start_time(search_id: str) -> int:
    """Milliseconds at which a search started, from its name; now if the folder was renamed."""
    try:
        return int(1000 * datetime.strptime(search_id[:17], "%Y-%m-%d_%H%M%S").timestamp())
    except ValueError:
        return int(1000 * time.time())


def _log_search(client: "MlflowClient", run: "Run", result: Result, pages: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    identity = run.info.run_id
    log_generations(client, run, result.history)
    if not run.inputs.dataset_inputs:
        _log_prompts(client, identity, result)
    tags = {f"environment.{k}": v for k, v in result.environment.items()} | {
        "mlflow.note.content": describe_search(result, identity, pages),
        "recommended": result.recommended,
        "mlflow.source.git.commit": result.environment.get("git", ""),
        "stopped": result.stopped,
        "certificate": certificate_sentence(result),
    }
    client.log_batch(identity, tags=[RunTag(k, v) for k, v in tags.items() if v or k in run.data.tags])
    _log_scores(client, run, {name: score.value for name, score in result.best.held_out.items()})
    for name in ("schedules", "figures"):
        if (result.folder / name).is_dir():
            client.log_artifacts(identity, str(result.folder / name), name)
    front = result.folder / "front.json"
    client.log_artifact(identity, str(front))
    status = "KILLED" if result.stopped.startswith("stopped by") else "FINISHED"
    client.set_terminated(identity, status, int(1000 * front.stat().st_mtime))


def _log_entry(client: "MlflowClient", run: "Run", result: Result, entry: Entry) -> None:
    """Scores under their names, as `calibration/...`, `interval/..._low`, `certificate/misses`; files; pictures."""
    from mlflow.entities import RunTag

    identity = run.info.run_id
    if run.info.run_name != entry.name:
        client.update_run(identity, name=entry.name)
    scores = {name: score.value for name, score in entry.held_out.items()}
    scores |= {f"calibration/{name}": score.value for name, score in entry.calibration.items()}
    for name, score in entry.held_out.items():
        if score.low is not None and score.high is not None:
            scores |= {f"interval/{name}_low": score.low, f"interval/{name}_high": score.high}
    for kind, differences in (("gap", entry.gap), ("change", entry.change)):  # to calibration, to the teacher
        for name, score in differences.items():
            ends = {f"{kind}/{name}_low": score.low, f"{kind}/{name}_high": score.high}
            scores |= {f"{kind}/{name}": score.value} | {end: v for end, v in ends.items() if v is not None}
    if entry.tested:
        scores |= {"certificate/runs": entry.tested.runs, "certificate/misses": entry.tested.misses}
    if entry.worst:
        scores[f"worst/{entry.worst.name}"] = entry.worst.value
    _log_scores(client, run, scores)
    with tempfile.TemporaryDirectory() as folder:  # under fixed names: a resumed search numbers them anew
        figures = _copy_files(result, entry, Path(folder))
        client.log_artifacts(identity, folder)
    tags = {
        "recommended": str(entry is result.best).lower(),
        "mlflow.note.content": describe_schedule(result, entry, identity, figures),
    }
    if entry.tested:
        tags["certificate"] = str(entry.schedule.certificate) if entry.tested.certified else tested_words(entry)
    client.log_batch(identity, tags=[RunTag(k, v) for k, v in tags.items()])
    if entry.images and entry.role == "front" and "mlflow.loggedImages" not in run.data.tags:
        for step, pair in enumerate(_pairs(result, entry)):
            client.log_image(identity, pair, key=views.PICTURES, step=step)
    client.set_terminated(identity)


def _copy_files(result: Result, entry: Entry, folder: Path) -> list[str]:
    """Copy an entry's schedule and figures into a folder; returns the names of the figures."""
    (folder / registry.FOLDER).mkdir()
    file, copy = result.folder / entry.file, folder / registry.FOLDER / registry.FILE
    for ending in (".json", TENSORS):
        if file.with_suffix(ending).exists():
            shutil.copy(file.with_suffix(ending), copy.with_suffix(ending))
    figures = []
    for kind, name in (("grids", "pictures.png"), ("heatmaps", "plan.png")):
        if (picture := result.folder / "figures" / kind / f"{result.number(entry):02d}.png").exists():
            figures.append(Path(shutil.copy(picture, folder / name)).name)
    return figures


def _log_scores(client: "MlflowClient", run: "Run", scores: Mapping[str, float]) -> None:
    """Log the scores that differ from those in the store."""
    from mlflow.entities import Metric

    now, logged = int(time.time() * 1000), run.data.metrics
    metrics = [Metric(name, value, now, 0) for name, value in scores.items() if logged.get(name) != value]
    client.log_batch(run.info.run_id, metrics=metrics)


def _log_prompts(client: "MlflowClient", run: str, result: Result) -> None:
    import mlflow.data
    import pandas  # type: ignore[import-untyped]
    from mlflow.entities import DatasetInput, InputTag

    inputs = []
    for split, prompts in result.prompts.items():
        dataset = mlflow.data.from_pandas(pandas.DataFrame({"prompt": prompts}), name=f"prompts, {split}")
        inputs.append(DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", split)]))
    client.log_inputs(run, inputs)


def _remove_run(client: "MlflowClient", run: "Run") -> None:
    """Delete a run, unless a registered version needs its files."""
    if client.search_model_versions(f"run_id = '{run.info.run_id}'"):
        client.set_tag(run.info.run_id, "role", "earlier")
    else:
        client.delete_run(run.info.run_id)


def _register_newest(client: "MlflowClient", name: str, run: str) -> str:
    """Register the recommended schedule and move the alias `newest` to it; returns the page of its version."""
    version = registry.register(client, name, run).version
    client.set_registered_model_alias(name, registry.NEWEST, version)
    return f"#/models/{name}/versions/{version}?{views.TRAINING}"


def _pairs(result: Result, entry: Entry) -> "Iterator[np.ndarray]":
    """The teacher's and the schedule's picture [H, 2 W + gap, 3] of each prompt."""
    import numpy as np

    for before, after in zip(result.entries[-1].images or [], entry.images or [], strict=False):
        gap = np.full((before.shape[0], before.shape[1] // 32, 3), 255, np.uint8)
        yield np.concatenate([before, gap, after], axis=1)


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node
