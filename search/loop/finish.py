"""Write what a finished search found: files, figures, MLflow, and the last lines."""

import logging
from typing import TYPE_CHECKING

from rich.markup import escape

from search.figures import charts, heatmap
from search.figures.report.page import report_page
from search.loop.held_out import collect_result
from search.loop.progress import phase_bars
from search.results.result import Result
from search.tracking.tracker import last_lines

if TYPE_CHECKING:
    from search.loop.search import Search


log = logging.getLogger("search")


def finish_search(search: "Search", stopped: str) -> Result:
    """Score the front and the baselines on held-out prompts and seeds, write everything, print where it is."""
    console = search.console
    with phase_bars(console) as told:
        result = collect_result(search, stopped, told)
    with console.status("files and figures"):
        write_result(result)
    _last_lines(search, result)
    if search.tracker is not None:
        with console.status("MLflow"):
            found = search.tracker.finish(result)
        for line in last_lines(found, search.config, result.folder):
            console.print(line)
    return result


def write_result(result: Result) -> None:
    """Schedules, front.json, pictures and figures into the run folder."""
    result.save()
    folder = result.folder / "figures"
    for sub in ("heatmaps", "grids"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    (folder / "report.html").write_text(report_page(result), encoding="utf-8")
    (folder / "pareto.png").write_bytes(charts.pareto_png(result))
    (folder / "overview.png").write_bytes(charts.overview_png(result))
    for i, entry in enumerate(result.entries):
        if entry.role == "front":
            (folder / "heatmaps" / f"{i:02d}.png").write_bytes(heatmap.heatmap_png(entry))
            (folder / "grids" / f"{i:02d}.png").write_bytes(charts.grid_png(result, entry))


def _last_lines(search: "Search", result: Result) -> None:
    console, folder = search.console, result.folder
    best = next((e for e in result.entries if e.name == result.recommended), None)
    if result.stopped:
        console.print(f"[yellow]{result.stopped}[/yellow]; go on with: python -m search resume={folder.name}")
    for note in result.notes:
        console.print(f"[yellow]{escape(note)}[/yellow]")
    state = search.state
    console.print(
        f"cost       {state.block_executions:,.0f} block executions; runs that begin alike saved "
        f"{1 - state.block_executions / state.unshared:.0%} of {state.unshared:,.0f}"
    )
    console.print(f"front      {folder / 'front.json'}")
    console.print(f"report     {folder / 'figures' / 'report.html'}")
    console.print(f"figures    {folder / 'figures'}")
    console.print(f"schedules  {folder / 'schedules'}")
    if best is not None and "speedup" in best.held_out:
        s = best.held_out
        kept = s["psnr"].low if s["psnr"].low is not None else s["psnr"].value
        verdict = "no visible loss" if kept >= result.no_visible_loss else "closest to the teacher"
        console.print(
            f"[bold]best at {verdict}: {s['speedup'].value:.2f}× faster[/bold], drift {s['drift'].value:.3f}, "
            f"PSNR {s['psnr'].value:.1f} dB (visible below {result.no_visible_loss:.1f}), on held-out prompts"
        )
        console.print(f"export     python -m search.export run={folder.name} out=schedule.json")
