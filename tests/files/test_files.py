"""Files of somebody else: what is read, and what is refused without being opened."""

import os
import socket

import pytest

from search import files
from search.files import FileRefused, check_folder_of_files, read_regular_file


def test_regular_files_are_read_also_through_a_link_that_stays_inside(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").symlink_to("a")
    assert read_regular_file(tmp_path / "a", 7) == read_regular_file(tmp_path / "b", 7, inside=tmp_path) == b"content"
    with pytest.raises(FileRefused, match="a: the file has more than the 6 bytes that it may have"):
        read_regular_file(tmp_path / "a", 6)
    with pytest.raises(FileNotFoundError):
        read_regular_file(tmp_path / "none", 7)
    with pytest.raises(FileRefused, match="cannot read 'a.x00b': embedded null byte"):
        read_regular_file("a\0b", 7)


def test_a_link_that_leads_out_is_refused(tmp_path):
    (tmp_path / "outside").write_text("secret")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "front.json").symlink_to("../outside")
    assert read_regular_file(tmp_path / "run" / "front.json", 9) == b"secret"
    with pytest.raises(FileRefused, match="front.json is a link that leads out of .*run; put the file itself there"):
        read_regular_file(tmp_path / "run" / "front.json", 9, inside=tmp_path / "run")


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (make_pipe, "a named pipe"),
        (make_socket, "a socket"),
        (os.mkdir, "a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
    ],
)
def test_what_is_not_a_regular_file_is_refused_and_not_waited_for(make, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # paths of sockets are short
    make(files.Path("x"))
    with pytest.raises(FileRefused, match=f"x is {kind}, and not a regular file"):
        read_regular_file("x", 9)
    if kind != "a folder":
        with pytest.raises(FileRefused, match="x is (a named pipe|a socket), and not|x is a link that leads out of"):
            check_folder_of_files(files.Path())


def test_a_folder_holds_files_and_links_that_stay_inside(tmp_path, monkeypatch):
    (tmp_path / "run" / "figures").mkdir(parents=True)
    (tmp_path / "run" / "figures" / "a.png").write_text("")
    (tmp_path / "run" / "newest.png").symlink_to("figures/a.png")
    check_folder_of_files(tmp_path / "run")
    (tmp_path / "link").symlink_to("run")  # the folder itself is where its user says
    check_folder_of_files(tmp_path / "link")
    monkeypatch.setattr(files, "MOST_FILES", 2)
    with pytest.raises(FileRefused, match="run has more than 2 files; it is not the folder of a search"):
        check_folder_of_files(tmp_path / "run")
    monkeypatch.undo()
    (tmp_path / "run" / "schedules").symlink_to(tmp_path)  # what is written or removed there would be outside
    with pytest.raises(FileRefused, match="schedules is a link that leads out of .*run; remove it"):
        check_folder_of_files(tmp_path / "run")
