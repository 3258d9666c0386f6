"""What MLflow gets: one run for the search, and one flat run for every schedule of the front and every preset.

Nested runs are left out of MLflow's charts, so the schedules are not children; a tag joins them to the search.
"""

import base64
import json
import logging
import os
import shlex
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.result import TENSORS, Entry, Result, applied_to

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log_ = logging.getLogger("search")
LONGEST = 500  # characters of a parameter
PORT = 5000  # MLflow's own choice


def log(result: Result, root: Path, uri: str | None = None) -> dict[str, str]:
    """Write the result to the store at `uri`, by default SQLite in `root`; return ids and the link of the view.

    A search that is logged again (after a resume) keeps its runs: what is new is added, what has left the front
    is deleted, and parameters stay. A store that refuses is a warning, never the end of a search.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for chatty in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        return _log(result, root, uri)
    except Exception as error:  # the run folder is complete; a locked or unreachable store must not hide it
        log_.warning("nothing, or not everything, is in MLflow: %s", error, exc_info=True)
        return {"error": f"MLflow at {uri or store(root)} refused: {error}"}


def store(root: Path) -> str:
    """The SQLite store of a runs folder."""
    return f"sqlite:///{root.resolve() / 'mlflow.db'}"


def ui_command(root: Path, uri: str | None = None) -> str:
    """What to type to look at the store."""
    if uri and uri.startswith("http"):
        return f"open {uri}"
    return f"mlflow ui --backend-store-uri {shlex.quote(uri or 'sqlite:///' + str(root / 'mlflow.db'))} --port {PORT}"


def view_url(view: str, uri: str | None = None) -> str:
    """Address of a view, once the UI is up."""
    server = uri.rstrip("/") if uri and uri.startswith("http") else f"http://127.0.0.1:{PORT}"
    return f"{server}/{view}"


def _log(result: Result, root: Path, uri: str | None) -> dict[str, str]:
    from mlflow import MlflowClient

    client = MlflowClient(uri or store(root))
    experiment = _experiment(client, f"{result.model}-{result.space}", root, local=uri is None)
    known = {
        run.data.tags.get("schedule", "search"): run
        for run in client.search_runs([experiment], f"tags.search_id = '{result.search_id}'", max_results=1000)
    }
    search = known.pop("search", None) or _create_search(client, experiment, result)
    _log_search(client, search, result)
    for entry in result.entries:
        # the name of a schedule on the front holds measured times: it may change, its digest does not
        key = f"{entry.role} {entry.schedule.digest if entry.role == 'front' else entry.name}"
        tags = {"role": entry.role, "search_id": result.search_id, "schedule": key, "digest": entry.schedule.digest}
        run = known.pop(key, None) or client.create_run(experiment, run_name=entry.name, tags=tags)
        _log_entry(client, run, result, entry)
    for run in known.values():  # schedules that a resumed search has pushed off the front
        client.delete_run(run.info.run_id)
    found = {"experiment_id": experiment, "run_id": search.info.run_id}
    try:
        found["view"] = _saved_view(client, experiment, result)
    except Exception as error:  # the view's format is MLflow's own affair: nice to have, never in the way
        log_.warning("no saved view: %s", error)
    return found


def _experiment(client: "MlflowClient", name: str, root: Path, local: bool) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    if found is not None:
        return found.experiment_id
    location = (root.resolve() / "artifacts" / name).as_uri() if local else None
    return client.create_experiment(name, artifact_location=location)


def _create_search(client: "MlflowClient", experiment: str, result: Result) -> "Run":
    """A run that begins when the search began, with all that never changes."""
    from mlflow.entities import Param

    seconds = result.history[-1]["seconds"] if result.history and "seconds" in result.history[-1] else 0
    tags = {
        "role": "search",
        "search_id": result.search_id,
        "mlflow.source.name": "python -m search",
        "mlflow.source.type": "LOCAL",
        **({"mlflow.source.git.commit": result.environment["git"]} if result.environment.get("git") else {}),
        **{f"environment.{k}": v for k, v in result.environment.items()},
    }
    began = int((time.time() - seconds) * 1000)
    run = client.create_run(experiment, start_time=began, run_name=result.search_id, tags=tags)
    params = [Param(k, str(v)[:LONGEST]) for k, v in _flat(result.config)]
    for start in range(0, len(params), 100):  # the most that a store takes at once
        client.log_batch(run.info.run_id, params=params[start : start + 100])
    _log_prompts(client, run.info.run_id, result)
    return run


def _log_search(client: "MlflowClient", run: "Run", result: Result) -> None:
    from mlflow.entities import Metric

    # At the time they belong to, so that a generation that is logged again is the same point, not a second one.
    metrics = [
        Metric(name, float(value), run.info.start_time + int(1000 * row.get("seconds", 0)), int(row["generation"]))
        for row in result.history
        for name, value in row.items()
        if name != "generation"
    ]
    for start in range(0, len(metrics), 1000):
        client.log_batch(run.info.run_id, metrics=metrics[start : start + 1000])
    tags = {"mlflow.note.content": describe(result), "recommended": result.recommended}
    if result.stopped or "stopped" in run.data.tags:
        tags["stopped"] = result.stopped
    _log_scores(client, run, result.best, tags)
    for name in ("schedules", "figures"):
        if (result.folder / name).is_dir():
            client.log_artifacts(run.info.run_id, str(result.folder / name), name)
    client.log_artifact(run.info.run_id, str(result.folder / "front.json"))
    client.set_terminated(run.info.run_id)


def _log_entry(client: "MlflowClient", run: "Run", result: Result, entry: Entry) -> None:
    if run.info.run_name != entry.name:
        client.update_run(run.info.run_id, name=entry.name)
    _log_scores(client, run, entry, {"recommended": str(entry.name == result.recommended).lower()})
    file = result.folder / result.file(entry)
    for written in (file, file.with_suffix(TENSORS)):
        if written.exists():
            client.log_artifact(run.info.run_id, str(written))
    for kind in ("grids", "heatmaps"):
        picture = result.folder / "figures" / kind / f"{result.number(entry):02d}.png"
        if picture.exists():
            client.log_artifact(run.info.run_id, str(picture), kind)
    client.set_terminated(run.info.run_id)


def _log_scores(client: "MlflowClient", run: "Run", entry: Entry, tags: Mapping[str, str]) -> None:
    """Held-out scores under their names with `_low` and `_high`; calibration scores as `calibration/...`."""
    from mlflow.entities import Metric, RunTag

    rows = {f"calibration/{name}": s.value for name, s in entry.calibration.items()}
    for name, s in entry.held_out.items():
        rows |= {name: s.value}
        if s.low is not None and s.high is not None:
            rows |= {f"{name}_low": s.low, f"{name}_high": s.high}
    now = int(time.time() * 1000)
    known = run.data.metrics
    metrics = [Metric(name, value, now, 0) for name, value in rows.items() if known.get(name) != value]
    client.log_batch(run.info.run_id, metrics=metrics, tags=[RunTag(k, v) for k, v in tags.items()])


def _log_prompts(client: "MlflowClient", run: str, result: Result) -> None:
    import mlflow.data
    import pandas  # type: ignore[import-untyped]
    from mlflow.entities import DatasetInput, InputTag

    inputs = []
    for split, prompts in result.prompts.items():
        dataset = mlflow.data.from_pandas(pandas.DataFrame({"prompt": prompts}), name=f"prompts, {split}")
        inputs.append(DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", split)]))
    client.log_inputs(run, inputs)


def describe(result: Result) -> str:
    """The run page's text: what was found, how to apply it, how to export it."""
    rows = [
        f"| {'**' + e.name + '**' if e.name == result.recommended else e.name} | {e.role} | "
        + " | ".join(f"{e.held_out[k].value:.3g}" for k in ("speedup", "macs", "drift", "psnr", "ssim"))
        + " |"
        for e in result.entries
        if {"speedup", "macs", "drift", "psnr", "ssim"} <= set(e.held_out)
    ]
    best = result.best
    others = best.schedule.models.names if best.schedule.models else {}
    note = f"\n\n_{result.stopped}_" if result.stopped else ""
    return "\n".join(
        [
            f"### {result.space} schedules for {result.model}{note}",
            "",
            f"{len(result.points)} candidates evaluated. Recommended: **{best.name}**. Scores below are on "
            f"held-out prompts and seeds; a PSNR under {result.no_visible_loss:.1f} dB can be seen.",
            "",
            "| schedule | role | speed-up | MACs | drift | PSNR dB | SSIM |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            "```python",
            "from search import Schedule",
            f'handle = Schedule.load("{Path(result.file(best)).name}").apply({applied_to(others)})',
            "```",
            "",
            f"`python -m search.export run={result.search_id} out=schedule.json`",
        ]
    )


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def _saved_view(client: "MlflowClient", experiment: str, result: Result) -> str:
    """A chart view as the UI itself saves it (read off MLflow 3.17): scatter and parallel coordinates."""
    x, y = result.axes
    charts = [
        {
            "uuid": "pareto",
            "type": "SCATTER",
            "runsCountToCompare": 100,
            "metricSectionId": "front",
            "deleted": False,
            "isGenerated": False,
            "displayName": f"{y} against {x}",
            "xaxis": {"key": x, "type": "METRIC"},
            "yaxis": {"key": y, "type": "METRIC"},
        },
        {
            "uuid": "parallel",
            "type": "PARALLEL",
            "runsCountToCompare": 100,
            "metricSectionId": "front",
            "deleted": False,
            "isGenerated": False,
            "displayName": "all scores",
            "showAllRuns": True,
            "selectedParams": [],
            "selectedMetrics": [x, *(m for m in result.best.held_out if m not in (x, y)), y],  # the last one colours
        },
    ]
    sections = [  # the UI makes one for every prefix of metrics; ours comes first, the others are folded
        {
            "uuid": uuid, "name": name, "display": uuid == "front", "isReordered": True, "deleted": False,
            "isGenerated": False, "columns": 2, "cardHeight": 520,
        }
        for uuid, name in (("front", "front and presets"), ("calibration",) * 2, ("Model metrics",) * 2)
    ]  # fmt: skip
    state = {
        "searchFilter": f"tags.search_id = '{result.search_id}' and tags.role != 'search'",
        "orderByKey": f"metrics.`{x}`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "runsHiddenMode": "SHOWALL",
        "runsHidden": [],
        "runsPinned": [],
        "runsExpanded": {},
        "runListHidden": False,
        "viewMaximized": False,
        "selectedColumns": ["tags.`role`", *(f"metrics.`{m}`" for m in ("speedup", "macs", "drift", "psnr"))],
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
    }
    now = int(time.time() * 1000)
    key = "".join(c for c in result.search_id if c.isalnum())
    packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    body = {"name": f"front of {result.search_id}", "createdAt": now, "updatedAt": now, "state": packed}
    client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{key}", json.dumps(body))
    return f"#/experiments/{experiment}/runs?viewStateShareKey={key}&compareRunsMode=CHART"
