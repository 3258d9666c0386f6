"""Write the report of a finished search from its run folder."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from search.figures.report.page import report_page
from search.results.result import Entry, Result


def write_report(folder: Path, out: Path, on_progress: Callable[[str, int, int], None]) -> Path:
    """Write the report of the search in `folder` to `out`; neither a GPU nor a model is needed."""

    def track(entries: Sequence[Entry]) -> Iterable[Entry]:
        for done, entry in enumerate(entries, start=1):
            yield entry
            on_progress("pictures", done, len(entries))

    text = report_page(Result.load(folder), track)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    return out
