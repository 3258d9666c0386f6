"""The scripts that count faults for docs/reliability.md, with small counts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults import reliability

SHORT = (sys.executable, "-m", "tests.helpers.short_report")


def test_every_place_of_the_page_is_there_once(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(reliability.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    places = re.findall(r"<!-- (?!end)(.+?) -->", page.read_text(encoding="utf-8"))
    assert len(places) == len(set(places)) >= 9
    for name in places:
        reliability.write(name, r"\1 tried", page)
    assert page.read_text(encoding="utf-8").count(r"-->\1 tried<!-- end -->") == len(places)
    with pytest.raises(ValueError, match="0 places <!-- nothing -->"):
        reliability.write("nothing", "", page)


def test_commands_and_files_of_the_page_are_there(root: Path) -> None:
    text = reliability.PAGE.read_text(encoding="utf-8")
    for name in re.findall(r"python -m benchmarks\.faults\.(\w+)", text):
        assert (root / "benchmarks" / "faults" / f"{name}.py").is_file(), name
    for name in re.findall(r"`(tests/[\w/]+\.py|\.ci/\w+)`", text):
        assert (root / name).is_file(), name


@pytest.mark.slow
def test_a_hundred_generations_with_schedules_in_turn_leave_nothing() -> None:
    from benchmarks.faults.soak import soak

    wrong, looks = soak(140)  # of seven kinds; looked at every seven
    assert wrong == 0 and len(looks) == 20
    begin, end = looks[4], looks[-1]
    assert end.tensors == begin.tensors
    assert end.objects - begin.objects < 200  # of a hundred thousands; a leak of one a generation would be 105


@pytest.mark.slow
def test_mutated_files_are_answered(root: Path) -> None:
    """In a process of its own: its audit hook stays for good."""
    given = ["--schedules", "200", "--configurations", "120", "--seed", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults.fuzz", *given], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "200 schedules: " in done.stdout and "120 configurations: " in done.stdout
    assert all(int(count) > 20 for count in re.findall(r"(\d+) (?:refused|valid)", done.stdout))  # both are tried


@pytest.mark.slow
def test_mutated_run_folders_are_answered(root: Path) -> None:
    """In a process of its own: its audit hook stays for good."""
    given = ["--count", "66", "--seed", "5"]
    done = subprocess.run([*SHORT, "benchmarks.faults.folders", *given], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    assert "66 folders: " in done.stdout


@pytest.mark.slow
def test_killed_at_random_moments(root: Path) -> None:
    """In a process of its own, which forks."""
    given = ["--count", "2", "--generations", "2", "--seed", "5"]
    done = subprocess.run([*SHORT, "benchmarks.faults.kills", *given], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "2 of 2" in done.stdout


@pytest.mark.slow
def test_damaged_and_full_disks(root: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tempfile import TemporaryDirectory\n"
        "from benchmarks.faults.disks import Disks, can_mount\n"
        "from tests.helpers.short_report import short_report\n"
        "with TemporaryDirectory() as work, short_report():\n"
        "    disks = Disks(Path(work), 2)\n"
        "    assert disks.damaged('checkpoint cut in half'), 'checkpoint'\n"
        "    assert disks.damaged('memo half written'), 'memo'\n"
        "    assert not can_mount() or disks.full(512), 'full'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_workers_killed_in_one_search(root: Path) -> None:
    pytest.importorskip("ray", reason="compute=ray is not installed")
    given = ["--count", "1", "--evaluations", "120"]
    done = subprocess.run([*SHORT, "benchmarks.faults.workers", *given], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
