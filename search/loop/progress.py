"""Progress bars with an estimate of the time left, the same wherever something takes long."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

OnProgress = Callable[[str, int, int], None]  # on_progress(what, done, total)


def ignore_progress(what: str, done: int, total: int) -> None:
    """The default of `on_progress`: nothing is shown."""


def progress_bar(console: Console, transient: bool = False) -> Progress:
    """Bars whose tasks have a field `note`; with `transient` they are removed at the end."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
    )


@contextmanager
def phase_bars(console: Console) -> Iterator[OnProgress]:
    """A callback `on_progress` that shows one bar per `what`; the bars are removed at the end."""
    with progress_bar(console, transient=True) as progress:
        tasks = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total, note="")
            progress.update(tasks[what], completed=done, total=total)

        yield on_progress
