"""Checkpoints and the folder of a search, against what befalls disks and processes."""

import errno
import hashlib
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from search.loop import checkpoint
from search.loop.checkpoint import (
    checkpoint_exists,
    from_bytes,
    previous_checkpoint,
    refuse_pickled_checkpoint,
    save_checkpoint,
    to_bytes,
)
from search.results import disk


def load_checkpoint(path: Path, on_message=lambda text: None):
    return checkpoint.load_checkpoint(path, lambda value: value, on_message)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two checkpoints: 2 is the newest, 1 the one before."""
    made = tmp_path / "checkpoint.bin"
    assert not checkpoint_exists(made)
    for value in (0, 1, 2):
        save_checkpoint({"generation": value}, made)
    return made


def test_the_newest_is_read_and_the_one_before_is_kept(path: Path) -> None:
    assert load_checkpoint(path) == {"generation": 2}
    assert sorted(p.name for p in path.parent.iterdir()) == ["checkpoint.bin", "checkpoint.old.bin"]
    path.unlink()  # what a kill between two renames leaves
    assert checkpoint_exists(path) and load_checkpoint(path) == {"generation": 1}


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


def with_digest(data: bytes) -> bytes:
    """A file of these data that looks as if we had written it: a digest is not a signature."""
    return checkpoint.HEAD + hashlib.sha256(data).digest() + data


def json_only(text: bytes) -> bytes:
    from safetensors.numpy import save

    return save({"json": np.frombuffer(text, dtype=np.uint8)})


DAMAGES = {
    "truncated": truncated,
    "flipped": flipped,
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "a pickle": lambda content: pickle.dumps(print),
    "a pickle with a digest": lambda content: with_digest(pickle.dumps(print)),
    "arrays without JSON": lambda content: with_digest(to_bytes({})[:0]),
    "JSON that names no array": lambda content: with_digest(to_bytes("{'$array'").replace(b"{'$array'", b'{"$array"')),
    "deep JSON": lambda content: with_digest(json_only(b"[" * 100_000)),
    "a number that is too long": lambda content: with_digest(json_only(b"9" * 10_000)),
    "an array that is missing": lambda content: with_digest(json_only(b'{"$array": "7"}')),
    "an array named by a list": lambda content: with_digest(json_only(b'{"$array": []}')),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(path: Path, damage) -> None:
    path.write_bytes(damage(path.read_bytes()))
    told: list[str] = []
    assert load_checkpoint(path, told.append) == {"generation": 1}
    assert len(told) == 1 and str(path) in told[0] and "in checkpoint.old.bin" in told[0]
    previous_checkpoint(path).write_bytes(damage(previous_checkpoint(path).read_bytes()))
    with pytest.raises(ValueError, match=r"no checkpoint .* can be read .*checkpoint.bin: .*checkpoint.old.bin: ") as e:
        load_checkpoint(path)
    assert f"Delete checkpoint*.bin there and type python -m search resume={path.parent.name}" in str(e.value)


def test_every_truncation_of_a_checkpoint_is_noticed(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert load_checkpoint(path) == {"generation": 1}
    path.write_bytes(whole)
    assert load_checkpoint(path) == {"generation": 2}


class MakesAFolder:
    """A pickle that makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("head", [checkpoint.HEAD, b"search checkpoint 1\n"])
def test_nothing_in_a_checkpoint_is_run(path: Path, head: bytes) -> None:
    """Not even with a digest that is right, and in no file that an earlier version would have read."""
    data = pickle.dumps(MakesAFolder(path.parent / "made"))
    for file in (path, previous_checkpoint(path), path.with_name("checkpoint.pkl")):
        file.write_bytes(head + hashlib.sha256(data).digest() + data)
    with pytest.raises(ValueError, match="no checkpoint in .* can be read"):
        load_checkpoint(path)
    assert not (path.parent / "made").exists()


def test_the_pickle_of_an_earlier_version_is_refused_with_what_to_type(tmp_path: Path) -> None:
    refuse_pickled_checkpoint(tmp_path)
    (tmp_path / "checkpoint.old.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"delete checkpoint\*.pkl .* type python -m search resume={tmp_path.name}: "):
        refuse_pickled_checkpoint(tmp_path)
    save_checkpoint({}, tmp_path / checkpoint.NAME)
    refuse_pickled_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "device"])
def test_only_regular_files_are_read(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "link":
        path.symlink_to(__file__)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    messages: list[str] = []
    assert load_checkpoint(path, messages.append) == {"generation": 1}
    assert "not a regular file" in messages[0] or "is a link that leads out of" in messages[0]


def test_sizes_are_bounded(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "MAX_JSON", 10)
    with pytest.raises(ValueError, match="its JSON has 17 bytes, at most 10 are read"):
        load_checkpoint(path)
    monkeypatch.setattr(checkpoint, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match="the file has more than the 10 bytes that it may have"):
        load_checkpoint(path)


def test_what_does_not_fit_gives_way_to_the_one_before(path: Path) -> None:
    messages: list[str] = []
    for error in (
        ValueError("archive.x: wrong"),
        KeyError("archive.x"),
        TypeError("archive.x"),
        IndexError("archive.x"),
    ):

        def parse(value, error=error):
            if value["generation"] == 2:
                raise error
            return value

        assert checkpoint.load_checkpoint(path, parse, messages.append) == {"generation": 1}
        assert "archive.x" in messages[-1]


def test_plain_data_comes_back_as_it_was() -> None:
    value = {
        "numbers": [1, 2**200, -0.0, 1e-300, float("inf"), True, None, "text"],
        "arrays": {
            f"{dtype} {shape}": np.ones(shape, dtype)
            for dtype in ("?", "<i8", "<u8", "<f8", "<f4")
            for shape in ((), (0, 3), (2, 1))
        },
        "transposed": np.arange(6).reshape(2, 3).T,
        "tuple": (1, (2,)),
    }
    back = from_bytes(to_bytes(value))
    assert back["numbers"] == value["numbers"] and back["tuple"] == [1, [2]]
    for name, array in {**value["arrays"], "transposed": value["transposed"]}.items():
        other = back["arrays"].get(name, back["transposed"])
        assert other.dtype == array.dtype and other.shape == array.shape and (other == array).all()
        assert other.flags.writeable


@pytest.mark.parametrize(
    "value",
    [{1: 2}, {"a": {3}}, [b"bytes"], np.array([None]), {"$array": "0"}, np.array(["text"]), np.int64(3), object()],
)
def test_what_is_not_plain_data_is_refused_with_its_place(value) -> None:
    with pytest.raises(TypeError, match=r"state.here\[0\].* is a \w+, which is not plain data: use dictionaries"):
        to_bytes({"here": [value]})


def test_a_write_that_fails_leaves_the_checkpoints_as_they_were(path: Path, monkeypatch) -> None:
    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint({"generation": 3}, path)
    assert load_checkpoint(path) == {"generation": 2} and load_checkpoint(previous_checkpoint(path)) == {
        "generation": 1
    }
    assert len(list(path.parent.iterdir())) == 2  # and no half-written file


# Folders


def holder(folder: Path) -> subprocess.Popen:
    """Another process that searches in a folder."""
    code = (
        "import sys, time; from pathlib import Path; from search.results import disk\n"
        "with disk.locked_run_folder(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "in\n"
    return process


def test_two_searches_in_one_folder_and_the_lock_of_a_killed_one(tmp_path: Path) -> None:
    other = holder(tmp_path)
    try:
        told = rf"another search is running in {tmp_path} \(process {other.pid} on .*\); wait until it ends"
        with pytest.raises(ValueError, match=told), disk.locked_run_folder(tmp_path):
            raise AssertionError
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    with disk.locked_run_folder(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / "lock").read_text()
    with disk.locked_run_folder(tmp_path):
        pass


def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def none(*_) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with disk.locked_run_folder(tmp_path), disk.locked_run_folder(tmp_path):
        pass


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "there is no room left on the disk of .*make room, then type again please"),
        (errno.EDQUOT, "there is no room left"),
        (
            errno.EROFS,
            r"x cannot be written to \(Read-only file system\); allow it, then type again please; or type runs",
        ),
    ],
)
def test_disks_that_are_full_or_read_only(tmp_path: Path, number: int, told: str) -> None:
    with pytest.raises(ValueError, match=told), disk.explain_disk_errors(tmp_path, "again please"):
        raise OSError(number, os.strerror(number), str(tmp_path / "x"))


def test_other_errors_of_files_are_not_explained_away(tmp_path: Path) -> None:
    for error in (FileNotFoundError(2, "No such file", "x"), PermissionError(13, "Permission denied", "/elsewhere/x")):
        with pytest.raises(OSError) as caught, disk.explain_disk_errors(tmp_path, ""):
            raise error
        assert caught.value is error


def test_runs_that_cannot_be_written_to_are_told_first(tmp_path: Path, monkeypatch) -> None:
    disk.check_writable(tmp_path / "deep" / "runs")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is not a folder; type runs=<another folder>"):
        disk.check_writable(tmp_path / "file" / "runs")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ValueError, match=f"nothing can be written to {tmp_path}; type runs=<another folder>"):
        disk.check_writable(tmp_path / "runs")


def test_a_log_on_a_full_disk_is_silent(capsys) -> None:
    import logging

    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with disk.log_to_file(Path("/dev/full")):
        logging.getLogger("search").info("text")
    assert capsys.readouterr().err == ""


def test_each_search_of_a_process_has_its_own_log(tmp_path: Path) -> None:
    import logging

    before = list(logging.getLogger().handlers), logging.getLogger().level
    for name in ("a", "b"):
        with disk.log_to_file(tmp_path / name):
            logging.getLogger("search").info("of %s", name)
    assert [(tmp_path / name).read_text().partition(" of ")[2] for name in "ab"] == ["a\n", "b\n"]
    assert before == (list(logging.getLogger().handlers), logging.getLogger().level)
