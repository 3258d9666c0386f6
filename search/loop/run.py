"""Run a search from its configuration to its result."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path

import torch
from hydra.errors import InstantiationException
from rich.console import Console
from rich.markup import escape

from search.config.compose import message_of_user_error
from search.config.settings import Config
from search.config.trust import check_classes, check_storage
from search.loop.checkpoint import refuse_pickled_checkpoint
from search.loop.finish import finish_search
from search.loop.interrupt import remembered_interrupt
from search.loop.progress import OnProgress, ignore_progress
from search.loop.search import Search
from search.models.base import Model
from search.models.loading import without_downloads
from search.results import disk
from search.results.disk import new_run_folder
from search.results.folder import find_run
from search.results.result import Result
from search.tracking.tracker import Tracker


def run(config: Config, on_progress: OnProgress = ignore_progress, model: Model | None = None) -> Result:
    """Search, or resume a search, write the result into its run folder, and print where it is.

    `on_progress` is called with how many candidates are evaluated, of how many. `model` takes the place of the one that
    the configuration names.
    """
    console = Console(soft_wrap=True)
    disk.check_writable(root := Path(config.runs))
    resumed = find_run(config.resume, root) if config.resume else None
    with ExitStack() as contexts:
        contexts.enter_context(torch.no_grad())  # within this call only: callers may train afterwards
        if resumed:  # the search as it was saved; only the budget, the tracking and the machine may differ
            contexts.enter_context(disk.explain_disk_errors(resumed, f"python -m search resume={resumed.name}"))
            contexts.enter_context(disk.locked_run_folder(resumed))
            refuse_pickled_checkpoint(resumed)
            contexts.enter_context(without_downloads())
            contexts.enter_context(_explain_components(resumed / "config.yaml"))
            changed = {name: getattr(config, name) for name in ("budget", "tracking", "compute", "runs", "trust")}
            typed, config = config, Config.load(resumed / "config.yaml").model_copy(update=changed)
            check_classes(dict(config), config.trust)  # all of them, before one is imported
            check_storage(config.engine, typed.engine)
        with console.status(f"loading {escape(config.model['name'])}"):
            search = Search(config, console, model)  # mistakes of the user show here, before a folder is made
        with disk.explain_disk_errors(root, "the same command again"):
            folder = resumed or new_run_folder(root, "+".join(config.space), config.model["name"])
        if not resumed:
            contexts.enter_context(disk.explain_disk_errors(folder, f"python -m search resume={folder.name}"))
            contexts.enter_context(disk.locked_run_folder(folder))
        check_interrupt = contexts.enter_context(remembered_interrupt())

        def progress(what: str, done: int, total: int) -> None:
            check_interrupt()
            on_progress(what, done, total)

        search.on_progress = progress
        return _run(search, folder)


@contextmanager
def _explain_components(file: Path) -> Iterator[None]:
    """Whatever a class raises for the arguments that a saved configuration gives it becomes one line."""
    try:
        yield
    except InstantiationException as error:
        if message_of_user_error(error) is not None:  # said well enough
            raise
        reason = f"{error.__cause__ or error}"
        name = re.search(r"target '([^']{1,200})'", str(error))
        text = " ".join(f"{name[1] if name else 'a class'}: {reason}".split())[:500]
        raise ValueError(f"{file} has arguments that its classes do not take: {text}") from error


def _run(search: Search, folder: Path) -> Result:
    """Run a loaded search in a folder that is locked for this process."""
    config, console = search.config, search.console
    config.save(folder / "config.yaml")
    what = f"{'+'.join(config.space)} on {config.model['name']}"
    console.print(f"[bold]search[/bold] {escape(what)} → {escape(str(folder))}")
    if config.tracking.enabled:
        search.tracker = Tracker(config, folder, search.warn)
    with disk.log_to_file(folder / "search.log"), closing(search), search.tracker or nullcontext():
        try:
            with console.status("preparing: teacher and cost tables") as status:
                search.on_prepare = lambda text: status.update(f"preparing: {escape(text)}")
                search.prepare(folder)
            stopped = search.loop()
        except KeyboardInterrupt:
            console.print(
                f"stopped before the first generation; go on with: python -m search resume={folder.name}", markup=False
            )
            raise SystemExit(130) from None
        return finish_search(search.finished(stopped), console, search.tracker)
