"""Schedules as versions of a registered model: deployments load the version that has an alias such as `production`.

The registered model is named after the pipeline and the space (`pixart-cache`). Every search adds its recommended
schedule as a version and moves the alias `newest`; all other aliases are the user's.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.results.folder import TENSORS
from search.results.front import read_front
from search.tracking import store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

FOLDER, FILE = "schedule", "schedule.json"  # among a run's files
NEWEST = "newest"  # the only alias that a search moves


def registered_model_of(folder: Path, root: Path, uri: str | None = None) -> tuple[str, str]:
    """The registered model of a finished search, and the store that it is in (`address_to_use`)."""
    front = read_front(folder)
    tracking = front["config"].get("tracking")
    named = tracking.get("uri") if isinstance(tracking, dict) else None
    address = store.address_to_use(root, uri, named if isinstance(named, str) else "", folder)
    return f"{front['model']}-{front['space']}", address


def register(client: "MlflowClient", name: str, run: str) -> "ModelVersion":
    """The version of the schedule of an MLflow run; it is created if there is none yet."""
    from mlflow.exceptions import MlflowException

    if versions := client.search_model_versions(f"name = {store.quoted(name)} and run_id = '{run}'"):
        return versions[0]
    try:
        client.get_registered_model(name)
    except MlflowException:
        _create(client, name)
    logged = client.get_run(run)
    tags, scores = logged.data.tags, logged.data.metrics
    version_tags = {key: f"{scores[key]:.4g}" for key in scores if "/" not in key}
    version_tags |= {key: tags[key] for key in ("search_id", "role", "digest") if key in tags}
    version_tags["name"] = logged.info.run_name
    return client.create_model_version(
        name,
        f"{logged.info.artifact_uri}/{FOLDER}",
        run,
        tags=version_tags,
        description=f"{logged.info.run_name}, from search {tags['search_id']}",
        await_creation_for=0,
    )


def registry_key(role: str, name: str, digest: str) -> str:
    """The key of a schedule within its search. On the front it is the digest: names there hold measured times."""
    return f"{role} {digest if role == 'front' else name}"


def promote(address: str, name: str, schedule: str, search_id: str, alias: str) -> tuple[str, str | None]:
    """Move an alias to the schedule with this key.

    Args:
        address: The MLflow store.
        name: The registered model, such as `pixart-cache`.
        schedule: The schedule's `registry_key`.
        search_id: Name of the run folder of its search.
        alias: Such as `production`.

    Returns:
        The version that has the alias now, and the version that had it before, or None.

    Raises:
        ValueError: The store cannot be reached or does not have the schedule; the message says what to type.
    """
    with _client(address, name) as client:
        experiment = client.get_experiment_by_name(name)
        query = f"tags.search_id = {store.quoted(search_id)}"
        runs = client.search_runs([experiment.experiment_id], query) if experiment else []
        run = next((run.info.run_id for run in runs if run.data.tags.get("schedule") == schedule), None)
        if run is None:
            raise store.StoreError(
                f"MLflow at {store.address_without_password(address)} has no such schedule of "
                f"{search_id}; send the search there with: "
                f"python -m search.send run={search_id} uri={store.address_without_password(address)}"
            )
        version = register(client, name, run).version
        before = client.get_registered_model(name).aliases.get(alias)
        client.set_registered_model_alias(name, alias, version)
    return str(version), None if before is None else str(before)


def fetch_by_alias(address: str, name: str, alias: str, out: Path) -> Path:
    """Download the schedule that an alias names, check it, and write it to `out`, its tensors next to it.

    Raises:
        ValueError: There is no such alias, or its file cannot be applied; the message says what to type.
    """
    with tempfile.TemporaryDirectory() as folder:
        with _client(address, name) as client:
            run = _aliased_version(client, name, alias).run_id
            store.check_artifacts(address, client.get_run(run).info.artifact_uri)
            downloaded = Path(client.download_artifacts(run, FOLDER, folder))
        return _copy_checked(downloaded / FILE, out, f"{name}@{alias}")


def _copy_checked(file: Path, out: Path, what: str) -> Path:
    """Copy a schedule file that loads, and the tensors that belong to it; returns the new path."""
    from search.schedule import Schedule

    if out.suffix == TENSORS:
        raise ValueError(f"out={str(out)!r} is the name of a schedule's file of tensors; type out=schedule.json")
    try:
        Schedule.load(file)
    except ValueError as error:
        raise ValueError(f"{what} is not a schedule that can be applied, so nothing is written: {error}") from None
    out.parent.mkdir(parents=True, exist_ok=True)
    if (tensors := file.with_suffix(TENSORS)).exists():
        shutil.copy(tensors, out.with_suffix(TENSORS))
    return Path(shutil.copy(file, out))


def _aliased_version(client: "MlflowClient", name: str, alias: str) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException:
        names = ", ".join(sorted(model.name for model in client.search_registered_models())) or "none yet"
        raise store.StoreError(f"there is no registered model {name!r}; there are: {names}") from None
    if alias not in aliases:
        existing = ", ".join(f"{key} (version {version})" for key, version in sorted(aliases.items())) or "none"
        raise store.StoreError(
            f"no version of {name} has the alias {alias!r}; there are: {existing}. Set it with: "
            f"python -m search.promote run=<search> alias={alias}"
        )
    return client.get_model_version_by_alias(name, alias)


def _create(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    text = (
        "Schedules of searches. That of the newest search has the alias newest; move production with "
        f"python -m search.promote alias=production, and load it with python -m search.export model={name} "
        "alias=production out=schedule.json"
    )
    try:
        client.create_registered_model(name, description=text)
    except MlflowException:  # another search has just created it
        client.get_registered_model(name)


@contextmanager
def _client(address: str, name: str) -> Iterator[Any]:
    """A client of the store; its errors become a ValueError of one line."""
    file = Path(address.removeprefix("sqlite:///"))
    if address.startswith("sqlite:") and not file.exists():
        raise ValueError(f"there is no MLflow database {file}; type runs=<folder of searches> or uri=http://<server>")
    with store.one_line_errors(address, f"{name}: "):
        yield store.connect_store(address)
