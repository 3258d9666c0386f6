"""Write schedules as files of other tools: `python -m search.export dialect=…`, and the same from Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search.schedule import Schedule


TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def write_dialect(
    schedule: "Schedule | str | Path", dialect: str, out: str | Path | None = None, lossy: bool = False
) -> tuple[Path, list[str]]:
    """Write a schedule in the format of another tool.

    Args:
        schedule: A schedule or its file.
        dialect: Name of the format.
        out: The file to write; by default `schedule.<dialect>` in the current folder.
        lossy: Whether to write it even if the format cannot express a part of the schedule.

    Returns:
        The file, and in words what it does not express.

    Raises:
        ValueError: Something would be lost and `lossy` is False; the message says what.
    """
    from search.schedule import Schedule
    from search.schedule.exchange import dialect_of, export, losses

    loaded = schedule if isinstance(schedule, Schedule) else Schedule.load(schedule)
    lost, text = losses(loaded, dialect), export(loaded, dialect, lossy)
    path = Path(out or f"schedule.{dialect}{dialect_of(dialect).ending}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path, lost


def translate_files(files: Sequence[Path], dialect: str, out: str, lossy: str, many: bool) -> None:
    """Write schedule files in a dialect; print each, what was lost, and how the last one is used."""
    from search.schedule import Schedule
    from search.schedule.exchange import dialect_of

    if lossy.lower() not in TRUTH:
        raise ValueError(f"lossy={lossy!r} is not understood; type lossy=true or lossy=false")
    ending = dialect_of(dialect).ending
    if many and out and Path(out).suffix:
        raise ValueError(f"out={out!r} is a file name; pick=all writes a folder, for example out=schedules")
    for file in files:
        target = Path(out or "schedules") / f"{file.stem}{ending}" if many else out or None
        schedule = Schedule.load(file)
        path, lost = write_dialect(schedule, dialect, target, TRUTH[lossy.lower()])
        print(path)
        for line in lost:
            print(f"  lost: {line}")
    print("\nUse it:")
    print("\n".join(f"    {line}" for line in dialect_of(dialect).use(path, schedule)))
