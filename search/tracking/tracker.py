"""Log a search to MLflow while it runs; send its result, and earlier results that were not sent yet."""

import logging
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from search.config.settings import Config
from search.files import check_folder_of_files
from search.results import disk
from search.results.result import Result
from search.tracking import spool, store, writing
from search.tracking.quiet import silent_libraries

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger("search")
PATIENCE = 60  # seconds that a finished search waits for its last generations to be logged
Row = Mapping[str, float]  # the record of a generation


class Tracker:
    """Logs one row per generation from a thread of its own, so that a store can neither slow a search nor end it.

    An error of the store is reported once to `on_message`; its rows are sent again with the next generation. `finish`
    sends the result.
    """

    def __init__(self, config: Config, folder: Path, on_message: Callable[[str], None]) -> None:
        self.config, self.folder, self.on_message = config, folder, on_message
        self.store = store.store_address(Path(config.runs), config.tracking.uri)
        self.rows: SimpleQueue[Row | str] = SimpleQueue()  # a string is the last item: the status of the run
        self.thread = Thread(target=self._write, name="MLflow", daemon=True)
        self.reported = False  # whether an error was reported

    def __enter__(self) -> "Tracker":
        self.thread.start()
        return self

    def generation(self, row: Row) -> None:
        """Queue the record of a generation."""
        self.rows.put(dict(row))

    def finish(self, result: Result) -> dict[str, str]:
        """Send the result, then earlier results that wait; returns ids and pages, or the reason as `error`."""
        runs = Path(self.config.runs)
        spool.add_to_spool(result.folder, self.store)  # until it is sent
        try:
            self._end("")
            if self.thread.is_alive():
                return {"error": f"MLflow at {store.address_without_password(self.store)}: it does not answer in time"}
            pages = deliver_result(result, runs, self.store)
            if "error" not in pages:
                deliver_waiting_results(runs, self.store)
        except KeyboardInterrupt:
            return {"error": "stopped by Ctrl-C"}
        return pages

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None:
            self._end("KILLED" if issubclass(kind, KeyboardInterrupt | SystemExit) else "FAILED", seconds=10)

    def _end(self, status: str, seconds: float | None = None) -> None:
        self.rows.put(status)
        self.thread.join(PATIENCE if seconds is None else seconds)

    def _write(self) -> None:
        client: MlflowClient | None = None
        run: Run | None = None
        waiting: list[Row] = []
        item: Row | str = {}
        while not isinstance(item, str):
            try:
                with silent_libraries():
                    client = client or store.connect_store(self.store)
                    run = run or writing.begin_run(client, self.config, self.folder)
                    writing.log_generations(client, run, waiting)
                waiting = []
            except Exception as error:  # of any kind: the search goes on
                self._report(error)
            item = self.rows.get()
            if not isinstance(item, str):
                waiting.append(item)
        if item and client and run:
            try:
                client.set_terminated(run.info.run_id, item)
            except Exception as error:
                self._report(error)

    def _report(self, error: Exception) -> None:
        log.info("MLflow: %s", error, exc_info=not self.reported)
        if not self.reported:
            self.reported = True
            self.on_message(
                f"MLflow at {store.address_without_password(self.store)}: {store.failure_reason(error)}; "
                "the search goes on without it"
            )


def deliver_result(result: Result, root: Path, uri: str | None = None) -> dict[str, str]:
    """Log a result to the store at `uri`, by default SQLite in `root`; returns ids and pages, or `error`.

    Until that has succeeded a file in the run folder says that it waits.
    """
    address = store.store_address(root, uri)
    spool.add_to_spool(result.folder, address)
    pages = writing.log_result(result, root, address)
    if "error" not in pages:
        spool.mark_sent(result.folder)
    return pages


def deliver_folder(folder: Path, root: Path, address: str) -> dict[str, str]:
    """Send the result of a run folder, as `deliver_result` does.

    Raises:
        ValueError: It holds no whole result, or the result of another search, whose runs it would replace in the store;
            or a search that still runs there sends its own.
    """
    check_folder_of_files(folder)
    with disk.locked_run_folder(folder):
        result = Result.load(folder)
        if result.search_id != folder.resolve().name:
            raise ValueError(f"{folder} is the result of the search {result.search_id}; give the folder this name")
        return deliver_result(result, root, address)


def deliver_waiting_results(root: Path, address: str) -> list[str]:
    """Send the results that wait for this store, until one fails; returns the names of the searches that were sent."""
    sent = []
    for folder, store_of_folder in spool.unsent_folders(root).items():
        if store_of_folder != address:
            continue
        try:
            pages = deliver_folder(folder, root, address)
        except ValueError as error:
            log.info("%s waits: %s", folder.name, error)
            continue
        if "error" in pages:
            break
        sent.append(folder.name)
    return sent


def last_lines(pages: Mapping[str, str], config: Config, folder: Path) -> list[str]:
    """The lines about MLflow that end a search: where to look, or how to send what was not sent.

    `pages` is what `Tracker.finish` returned.
    """
    if error := pages.get("error"):
        where = "" if config.runs == "runs" else f" runs={shlex.quote(config.runs)}"
        if config.tracking.uri:
            where += f" uri={shlex.quote(store.address_without_password(config.tracking.uri))}"
        return [
            f"[yellow]MLflow was not written: {escape(error)}[/yellow]",
            escape(f"send       python -m search.send run={folder.name}{where}"),
        ]
    runs, uri = Path(config.runs), config.tracking.uri
    addresses = [store.page_url(pages[page], uri) for page in ("page", "view") if page in pages]
    return [
        f"review     {escape(store.ui_command(runs, uri))}",
        *(f"{'then open' if not i else '':>20}  {escape(page)}" for i, page in enumerate(addresses)),
    ]
