"""The chart view of a search in the format of MLflow's UI: scatter, parallel coordinates and pictures.

The format is not documented; it is that of MLflow 3.17. A search does not depend on it.
"""

import base64
import json
import time
import zlib
from typing import TYPE_CHECKING, Any

from search.results.result import Result

if TYPE_CHECKING:
    from mlflow import MlflowClient

PICTURES = "before and after"  # the key of the image grid: one held-out prompt per step
TRAINING = "workflowType=machine_learning"  # otherwise MLflow opens its pages for language models


def save_chart_view(client: "MlflowClient", experiment: str, result: Result) -> str:
    """Save the view as a tag of the experiment; returns the address of its page."""
    now = int(time.time() * 1000)
    key = "".join(c for c in result.search_id if c.isalnum())
    packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(_state(result)).encode())).decode()
    body = {"name": f"front of {result.search_id}", "createdAt": now, "updatedAt": now, "state": packed}
    client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{key}", json.dumps(body))
    return f"#/experiments/{experiment}/runs?viewStateShareKey={key}&compareRunsMode=CHART&{TRAINING}"


def _state(result: Result) -> dict[str, Any]:
    x, y = result.axes
    columns = dict.fromkeys((x, y, "speedup", "psnr"))
    return {
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
        "selectedColumns": ["tags.`role`", *(f"metrics.`{name}`" for name in columns)],
        "compareRunCharts": _charts(result),
        "compareRunSections": _sections(result),
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
    }


def _charts(result: Result) -> list[dict[str, Any]]:
    x, y = result.axes
    more_scores = [name for name in result.best.held_out if name not in (x, y)]
    shared = {"runsCountToCompare": 100, "deleted": False, "isGenerated": False}
    return [
        {
            "uuid": "pareto",
            "type": "SCATTER",
            "metricSectionId": "front",
            "displayName": f"{y} against {x}",
            "xaxis": {"key": x, "type": "METRIC"},
            "yaxis": {"key": y, "type": "METRIC"},
            **shared,
        },
        {
            "uuid": "parallel",
            "type": "PARALLEL",
            "metricSectionId": "front",
            "displayName": "all scores",
            "showAllRuns": True,
            "selectedParams": [],
            "selectedMetrics": [x, *more_scores, y],  # the last one gives the colour
            **shared,
        },
        {
            "uuid": "pictures",
            "type": "IMAGE",
            "metricSectionId": "pictures",
            "displayName": PICTURES,
            "imageKeys": [PICTURES],
            "step": 0,
            **shared,
        },
    ]


def _sections(result: Result) -> list[dict[str, Any]]:
    """Our sections first; the UI adds one for every prefix of metrics, and those are closed at first."""
    differences = [kind for kind in ("gap", "change") if getattr(result.best, kind)]
    prefixes = ["calibration", "interval", *differences, "Model metrics"]
    rows = [
        ("front", "front and presets", True, 2, 520),
        ("pictures", "held-out pictures, before and after", True, 1, 420),
        *((prefix, prefix, False, 2, 520) for prefix in prefixes),
    ]
    return [
        {
            "uuid": uuid,
            "name": name,
            "display": display,
            "columns": columns,
            "cardHeight": height,
            "isReordered": True,
            "deleted": False,
            "isGenerated": False,
        }
        for uuid, name, display, columns, height in rows
    ]
