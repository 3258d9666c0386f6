"""Descriptions of a search and of its schedules for their pages in MLflow, as Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from search.results.attribution import recommendation_sentences
from search.results.certificates import tested_words
from search.results.result import Entry, Result
from search.results.scores import Speedup
from search.results.usage import apply_arguments
from search.tracking import registry, store

ALWAYS = ("macs", "drift", "psnr", "ssim")  # measured by every search, whatever it searches for


def describe_search(result: Result, run: str = "", pages: Mapping[str, str] | None = None) -> str:
    """Text for the search's page: the recommended schedule, the front, how to apply and deploy it.

    Args:
        result: The finished search.
        run: Id of the MLflow run that has the picture of the front; without it the page has no picture.
        pages: Addresses by name: `view` of the charts, `version` of the registered schedule.
    """
    best = result.best
    searched = sorted(result.objectives, key=lambda name: result.kinds.get(name) != "cost")  # costs first
    shown = dict.fromkeys((Speedup.key, *searched, *ALWAYS))
    rows = [
        f"| {'**' + e.name + '**' if e is best else e.name} | {e.role} | "
        + " | ".join(f"{e.held_out[k].value:.3g}" for k in shown)
        + " |"
        for e in result.entries
        if set(shown) <= set(e.held_out)
    ]
    has_picture = run and (result.folder / "figures" / "pareto.png").exists()
    model, pages = f"{result.model}-{result.space}", pages or {}
    server = server_option(result)
    charts = f" [All schedules as charts.]({pages['view']})" if "view" in pages else ""
    statements = " ".join(recommendation_sentences(result))
    registered = f" ([registered]({pages['version']}))" if "version" in pages else ""
    return "\n".join(
        [
            f"### Recommended: {best.name}",
            "",
            f"{len(result.points)} {result.space} schedules for {result.model} were evaluated. Scores are on held-out "
            f"prompts and seeds. {statements}" + charts + (f" _{result.stopped}_" if result.stopped else ""),
            "",
            *([_picture("front and presets", "figures/pareto.png", run), ""] if has_picture else []),
            *_snippet(best, f"python -m search.export run={result.search_id} out={registry.FILE}"),
            "",
            f"Make deployments use it{registered}: `python -m search.promote run={result.search_id} "
            f"alias=production{server}`, and there `python -m search.export model={model} alias=production{server} "
            f"out={registry.FILE}`",
            "",
            f"| schedule | role | {' | '.join(_head(result, name) for name in shown)} |",
            "|---|---|" + "---|" * len(shown),
            *rows,
        ]
    )


def server_option(result: Result) -> str:
    """What has to be typed after commands of a search that was sent to a server: ` uri=<address>`, else nothing."""
    tracking = result.config.get("tracking")
    address = tracking.get("uri") if isinstance(tracking, dict) else None
    return f" uri={store.printable(store.address_without_password(address))}" if isinstance(address, str) else ""


def describe_schedule(result: Result, entry: Entry, run: str, figures: Sequence[str]) -> str:
    """Text for a schedule's page; `figures` are files of the MLflow run `run`."""
    roles = {"front": "on the front", "preset": "a published rule", "teacher": "the pipeline as it is"}
    return "\n".join(
        [
            f"**{entry.name}**, {roles.get(entry.role, entry.role)}"
            + (", recommended" if entry is result.best else "")
            + f"; {result.space} for {result.model}, search `{result.search_id}`"
            + (f"; {words}" if (words := tested_words(entry)) else ""),
            "",
            *(_picture(Path(name).stem, name, run) + "\n" for name in figures),
            *_snippet(entry, f'python -m search.export run={result.search_id} pick="{entry.name}" out={registry.FILE}'),
        ]
    )


def _head(result: Result, name: str) -> str:
    unit = result.units.get(name, "")
    return name + (f" {unit}" if unit not in ("", "ratio") else "")


def _snippet(entry: Entry, export: str) -> list[str]:
    names = entry.schedule.models.names if entry.schedule.models else {}
    models = [letter for letter, part in names.items() if not part.is_gaussian]
    return [
        f"`{export}`",
        "",
        "```python",
        "from search import Schedule",
        f'handle = Schedule.load("{registry.FILE}").apply({apply_arguments(models)})',
        "```",
    ]


def _picture(text: str, file: str, run: str) -> str:
    """An image by an address relative to MLflow's page, so that it works at any server address."""
    return f"![{text}](get-artifact?path={file}&run_uuid={run})"
