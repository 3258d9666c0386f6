"""What MLflow gets: one run for the search, and one flat run for every schedule of the front and every preset.

Nested runs are left out of MLflow's charts, so the schedules are not children; a tag joins them to the search.
"""

import base64
import json
import logging
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.figures import axes_of
from search.result import Entry, Result

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

log_ = logging.getLogger("search")
LONGEST = 500  # characters of a parameter


def log(result: Result, root: Path, uri: str | None = None) -> dict[str, str]:
    """Write the result to the store at `uri`, by default SQLite in `root`; return ids and the link of the view.

    A search that is logged again (after a resume) keeps its runs: the same search run, the schedules anew.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    client = MlflowClient(uri or store(root))
    experiment = _experiment(client, f"{result.model}-{result.space}", root, local=uri is None)
    known = {
        run.data.tags.get("schedule", "search"): run.info.run_id
        for run in client.search_runs([experiment], f"tags.search_id = '{result.search_id}'", max_results=1000)
    }
    search = known.pop("search", None) or _create(client, experiment, result.search_id, "search", result)
    _log_search(client, search, result)
    for entry in result.entries:
        digest = f"{entry.role} {entry.schedule.digest}"
        run = known.pop(digest, None)
        if run is None:
            run = _create(client, experiment, entry.name, entry.role, result, {"schedule": digest})
        _log_entry(client, run, result, entry)
    for run in known.values():  # schedules that a resumed search has pushed off the front
        client.delete_run(run)
    found = {"experiment_id": experiment, "run_id": search}
    try:
        found["view"] = _saved_view(client, experiment, result)
    except Exception as error:  # the view's format is MLflow's own affair: nice to have, never in the way
        log_.warning("no saved view: %s", error)
    return found


def store(root: Path) -> str:
    """The SQLite store of a runs folder."""
    return f"sqlite:///{root.resolve() / 'mlflow.db'}"


def ui_command(root: Path) -> str:
    """What to type to look at the store."""
    return f"mlflow ui --backend-store-uri sqlite:///{root / 'mlflow.db'} --port 5000"


def view_url(view: str, port: int = 5000) -> str:
    return f"http://127.0.0.1:{port}/{view}"


def _experiment(client: "MlflowClient", name: str, root: Path, local: bool) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    location = (root.resolve() / "artifacts" / name).as_uri() if local else None
    return client.create_experiment(name, artifact_location=location)


def _create(
    client: "MlflowClient",
    experiment: str,
    name: str,
    role: str,
    result: Result,
    tags: Mapping[str, str] | None = None,
) -> str:
    tags = {"role": role, "search_id": result.search_id, **(tags or {})}
    if role == "search":
        tags |= {f"environment.{k}": v for k, v in result.environment.items()}
    run = client.create_run(experiment, run_name=name, tags=tags).info.run_id
    if role == "search":
        from mlflow.entities import Param

        flat = dict(_flat(result.config))
        client.log_batch(run, params=[Param(k, str(v)[:LONGEST]) for k, v in flat.items()])
        _log_prompts(client, run, result)
    return run


def _log_search(client: "MlflowClient", run: str, result: Result) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [
        Metric(name, float(value), now, int(row["generation"]))
        for row in result.history
        for name, value in row.items()
        if name != "generation"
    ]
    metrics += _metrics(result.best)
    for start in range(0, len(metrics), 1000):
        client.log_batch(run, metrics=metrics[start : start + 1000])
    client.set_tag(run, "mlflow.note.content", describe(result))
    client.set_tag(run, "recommended", result.recommended)
    for name in ("schedules", "figures"):
        if (result.folder / name).is_dir():
            client.log_artifacts(run, str(result.folder / name), name)
    client.log_artifact(run, str(result.folder / "front.json"))
    client.set_terminated(run)


def _log_entry(client: "MlflowClient", run: str, result: Result, entry: Entry) -> None:
    client.log_batch(run, metrics=_metrics(entry))
    client.set_tag(run, "recommended", str(entry.name == result.recommended).lower())
    client.log_artifact(run, str(result.folder / result.file(entry)))
    grid = result.folder / "figures" / "grids" / f"{result.entries.index(entry):02d}.png"
    if grid.exists():
        client.log_artifact(run, str(grid))
    client.set_terminated(run)


def _metrics(entry: Entry) -> list["Metric"]:
    """Held-out scores under their names with `_low` and `_high`; calibration scores as `calibration/...`."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    rows = {f"calibration/{name}": s.value for name, s in entry.calibration.items()}
    for name, s in entry.held_out.items():
        rows |= {name: s.value}
        if s.low is not None and s.high is not None:
            rows |= {f"{name}_low": s.low, f"{name}_high": s.high}
    return [Metric(name, value, now, 0) for name, value in rows.items()]


def _log_prompts(client: "MlflowClient", run: str, result: Result) -> None:
    import mlflow.data
    import pandas
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
            f'handle = Schedule.load("{Path(result.file(best)).name}").apply(pipe)',
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
    x, y = axes_of(result)
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
            "selectedMetrics": ["macs", "speedup", "memory", "ssim", "psnr", "drift"],
        },
    ]
    section = {
        "uuid": "front",
        "name": "front and presets",
        "display": True,
        "isReordered": False,
        "deleted": False,
        "isGenerated": False,
        "columns": 2,
        "cardHeight": 520,
    }
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
        "compareRunSections": [section],
        "isAccordionReordered": False,
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
