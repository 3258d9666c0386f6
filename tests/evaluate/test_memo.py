"""The memo: never the end of a search, whatever became of its file; several processes, no loss."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from search.evaluate import memo as module
from search.evaluate.memo import Memo


def fill(path: Path, count: int = 200) -> None:
    memo = Memo(path)
    for i in range(count):
        memo.put("context", f"digest {i}", {"drift": [float(i)] * 20})
        memo.put_latents("context", f"digest {i}", torch.full((2, 4, 8, 8), float(i)))
    memo.close()


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(50_000))


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def half_written(path: Path) -> None:
    """The head is whole, so it opens; every page behind it is zeros."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(bytes(size - 3 * 4096))


def foreign(path: Path) -> None:
    path.unlink()
    base = sqlite3.connect(path)
    base.execute("create table memo (other text)")
    base.commit()
    base.close()


@pytest.mark.parametrize("damage", [garbage, truncated, emptied, half_written, foreign])
def test_a_damaged_memo_is_moved_aside_and_begun_anew(tmp_path: Path, damage) -> None:
    path, told = tmp_path / "memo.sqlite", []
    fill(path)
    damage(path)
    before = path.read_bytes()
    memo = Memo(path, on_message=told.append)
    for i in range(200):  # all that a search does
        memo.get("context", f"digest {i}")
        memo.latents("context", f"digest {i}")
    memo.put("context", "new", {"drift": [1.0, 2.0]})
    memo.put_latents("context", "new", torch.ones(3))
    assert memo.get("context", "new") == {"drift": [1.0, 2.0]}
    assert torch.equal(memo.latents("context", "new"), torch.ones(3))
    memo.close()
    if damage is emptied:  # an empty file is a new one
        assert told == []
        return
    assert len(told) == 1 and "memo.sqlite is damaged" in told[0] and "it is now memo.broken.sqlite" in told[0]
    assert (tmp_path / "memo.broken.sqlite").read_bytes()[:4096] == before[:4096] or damage is not garbage
    assert Memo(path, on_message=told.append).get("context", "new") == {"drift": [1.0, 2.0]} and len(told) == 1


def test_what_was_put_last_outlives_a_file_that_breaks_under_it(tmp_path: Path) -> None:
    path, told = tmp_path / "memo.sqlite", []
    memo = Memo(path, on_message=told.append)
    memo.put_latents("context", "mine", torch.arange(6.0))
    memo.put("context", "mine", {"drift": [1.0]})
    memo._base.execute("pragma wal_checkpoint(truncate)")
    garbage(path)
    memo._base.execute("pragma cache_size = 0")
    memo.put("context", "mine", {"psnr": [30.0]})
    assert memo.get("context", "mine") == {"drift": [1.0], "psnr": [30.0]}
    assert torch.equal(memo.latents("context", "mine"), torch.arange(6.0))
    assert len(told) == 1


def test_a_locked_memo_gives_way_to_a_spare(tmp_path: Path) -> None:
    path, told = tmp_path / "memo.sqlite", []
    fill(path, 2)
    other = sqlite3.connect(path)
    other.execute("pragma locking_mode=exclusive")
    other.execute("begin exclusive")
    memo = Memo(path, spare=tmp_path / "spare.sqlite", on_message=told.append, patience=0.1)
    memo.put("context", "new", {"drift": [1.0]})
    assert memo.get("context", "new") == {"drift": [1.0]} and memo.get("context", "digest 0") == {}
    assert len(told) == 1 and "cannot be used (database is locked); this search keeps what it measures in" in told[0]
    other.rollback()
    other.close()
    assert Memo(path).get("context", "digest 1") == {"drift": [1.0] * 20}  # it was left alone


def test_a_memo_that_cannot_be_written_gives_way_to_a_spare(tmp_path: Path, monkeypatch) -> None:
    """Opened read-only by SQLite itself: file modes say nothing to root."""
    path, told = tmp_path / "memo.sqlite", []
    fill(path, 2)
    connect = sqlite3.connect

    def closed(given, timeout):
        mode = "ro" if Path(given) == path else "rwc"
        return connect(f"file:{given}?mode={mode}", timeout=timeout, uri=True)

    monkeypatch.setattr(module.sqlite3, "connect", closed)
    memo = Memo(path, spare=tmp_path / "spare.sqlite", on_message=told.append)
    memo.put("context", "new", {"drift": [1.0]})
    assert memo.get("context", "new") == {"drift": [1.0]}
    assert len(told) == 1 and "readonly" in told[0]
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        Memo(path).put("context", "new", {"drift": [1.0]})


def test_a_full_disk_is_an_error_of_the_disk(tmp_path: Path) -> None:
    memo = Memo(tmp_path / "memo.sqlite")
    memo._base.execute("pragma max_page_count = 20")
    with pytest.raises(OSError, match="No space left|no room") as caught:
        memo.put_latents("context", "large", torch.zeros(100_000))
    assert caught.value.errno == 28


def test_errors_of_ours_are_not_hidden(tmp_path: Path) -> None:
    memo = Memo(tmp_path / "memo.sqlite")
    with pytest.raises(sqlite3.ProgrammingError):
        memo._do(lambda base: base.execute("select ?", (1, 2)))


WRITER = """
import sys, torch; from pathlib import Path; from search.evaluate.memo import Memo
memo = Memo(Path(sys.argv[1]))
for i in range(int(sys.argv[3])):
    memo.put("context", f"{sys.argv[2]} {i}", {"drift": [float(i)]})
    memo.put("context", "both", {f"{sys.argv[2]} {i}": [float(i)]})
    memo.put_latents("context", f"{sys.argv[2]} {i}", torch.full((4,), float(i)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("damage", [None, garbage])
def test_processes_on_one_memo_lose_nothing(tmp_path: Path, damage) -> None:
    path, count, names = tmp_path / "memo.sqlite", 300, ("a", "b", "c")
    if damage:
        fill(path, 2)
        damage(path)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, str(count)]) for name in names]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    memo = Memo(path)
    assert len(memo.get("context", "both")) == count * len(names)
    for name in names:
        for i in range(count):
            assert memo.get("context", f"{name} {i}") == {"drift": [float(i)]}
            assert torch.equal(memo.latents("context", f"{name} {i}"), torch.full((4,), float(i)))


@pytest.mark.parametrize("value", [None, 7, b"\xff", "[]]", '["a"]', "{}", "[true]", "[" * 9999])
def test_values_that_are_not_numbers_are_absent(tmp_path: Path, value) -> None:
    path = tmp_path / "memo.sqlite"
    fill(path, 2)
    with sqlite3.connect(path) as base:
        base.execute("update memo set value = ? where digest = 'digest 0'", (value,))
    memo = Memo(path)
    assert memo.get("context", "digest 0") == {} and memo.get("context", "digest 1") == {"drift": [1.0] * 20}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("dtype", "load"),
        ("dtype", "float64"),
        ("dtype", None),
        ("shape", "[2, 4, 8]"),
        ("shape", "[-2, -4, 8, 8]"),
        ("shape", "x"),
        ("data", b""),
        ("data", "text"),
    ],
)
def test_latents_that_do_not_fit_together_are_absent(tmp_path: Path, column, value) -> None:
    path = tmp_path / "memo.sqlite"
    fill(path, 2)
    with sqlite3.connect(path) as base:
        base.execute(f"update latents set {column} = ? where digest = 'digest 0'", (value,))
    memo = Memo(path)
    assert memo.latents("context", "digest 0") is None
    assert torch.equal(memo.latents("context", "digest 1"), torch.ones(2, 4, 8, 8))


def test_a_memo_with_views_is_put_aside_and_not_asked(tmp_path: Path) -> None:
    path, told = tmp_path / "memo.sqlite", []
    fill(path, 1)
    with sqlite3.connect(path) as base:
        base.execute("alter table memo rename to other")
        endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select i from n"
        columns = "'context' as context, i as digest, i as name, i as value"
        base.execute(f"create view memo as select {columns} from ({endless})")
    memo = Memo(path, on_message=told.append)
    assert memo.get("context", "digest 0") == {} and (tmp_path / "memo.broken.sqlite").exists()
    assert "the database of another program" in told[0]


@pytest.mark.parametrize("target", ["/etc/passwd", "memo.sqlite", "/dev/zero"])
def test_a_memo_that_is_a_link_out_of_its_folder_is_refused(tmp_path: Path, target) -> None:
    (tmp_path / "memo.sqlite").symlink_to(target)
    with pytest.raises(ValueError, match="memo.sqlite is not a file of this folder; remove it, or type runs=<another"):
        Memo(tmp_path / "memo.sqlite")
