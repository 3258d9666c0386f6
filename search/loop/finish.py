"""Write the files, figures and MLflow runs of a finished search, and print where they are."""

import logging

from rich.console import Console
from rich.markup import escape

from search.figures import charts, heatmap, pictures
from search.figures.report.page import report_page
from search.loop.finished import FinishedSearch
from search.loop.held_out import collect_result
from search.loop.progress import phase_bars
from search.results.attribution import attribution_sentence
from search.results.certificates import certificate_sentence
from search.results.result import Result
from search.tracking.tracker import Tracker, last_lines

log = logging.getLogger("search")


def finish_search(finished: FinishedSearch, console: Console, tracker: Tracker | None = None) -> Result:
    """Score the front and the baselines on held-out prompts and seeds, write everything, print where it is."""
    with phase_bars(console) as on_progress:
        result = collect_result(finished, on_progress)
    with console.status("files and figures"):
        write_result(result)
    _print_summary(finished, result, console)
    if tracker is not None:
        with console.status("MLflow"):
            pages = tracker.finish(result)
        for line in last_lines(pages, finished.config, result.folder):
            console.print(line)
    return result


def write_result(result: Result) -> None:
    """Schedules, front.json, pictures and figures into the run folder."""
    result.save()
    folder = result.folder / "figures"
    for name in ("heatmaps", "grids"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "report.html").write_text(report_page(result), encoding="utf-8")
    (folder / "pareto.png").write_bytes(charts.pareto_png(result))
    (folder / "overview.png").write_bytes(pictures.overview_png(result))
    for i, entry in enumerate(result.entries):
        if entry.role == "front":
            (folder / "heatmaps" / f"{i:02d}.png").write_bytes(heatmap.heatmap_png(entry))
            (folder / "grids" / f"{i:02d}.png").write_bytes(pictures.grid_png(result, entry))


def _print_summary(finished: FinishedSearch, result: Result, console: Console) -> None:
    folder, state = result.folder, finished.state
    best = next((e for e in result.entries if e.name == result.recommended), None)
    if result.stopped:
        console.print(result.stopped, style="yellow", markup=False, end="")
        console.print(f"; go on with: python -m search resume={folder.name}", markup=False)
    for note in result.notes:
        console.print(f"[yellow]{escape(note)}[/yellow]")
    console.print(
        f"cost       {state.block_executions:,.0f} block executions; runs that begin alike saved "
        f"{1 - state.block_executions / state.unshared:.0%} of {state.unshared:,.0f}"
    )
    if (asked := result.certify) is not None:
        blocks, runs = asked["block_executions"], asked["new_runs"]
        console.print(f"           {blocks:,} block executions more for certificates, in {runs:,} runs")
    if result.attribution is not None:
        blocks = result.attribution["block_executions"]
        console.print(f"           {blocks:,} block executions more to leave out each part of the recommended schedule")
    written = {"front": "front.json", "report": "figures/report.html", "figures": "figures", "schedules": "schedules"}
    for name, path in written.items():
        console.print(f"{name:<10} {folder / path}", markup=False)
    if best is not None and "speedup" in best.held_out:
        scores = best.held_out
        verdict = "recommended" if best.schedule.certificate else "closest to the teacher"
        console.print(
            f"[bold]{verdict}: {scores['speedup'].value:.2f}× faster[/bold], "
            f"drift {scores['drift'].value:.3f}, PSNR {scores['psnr'].value:.1f} dB on average of the held-out prompts"
        )
        console.print(f"export     python -m search.export run={folder.name} out=schedule.json", markup=False)
        if sentence := attribution_sentence(result):
            console.print(f"parts      {sentence}", markup=False)
        if sentence := certificate_sentence(result):
            console.print(sentence, markup=False)
