"""The run of a search that goes on, stores that do not answer, and what waits for them."""

import socket
import threading
from types import SimpleNamespace

import pytest

from search.loop import run as running
from search.results import disk
from search.send import main as send
from search.tracking import spool, store, tracker, writing
from search.tracking.sending import send_searches
from search.tracking.tracker import Tracker, deliver_result, deliver_waiting_results, last_lines
from tests.helpers.configuration import config
from tests.helpers.finished_search import made_result

ROWS = [{"generation": g, "seconds": 10.0 * g, "hypervolume": 0.7 + 0.02 * g} for g in range(3)]
NAME = "2026-01-02_030405_cache_tiny"


@pytest.fixture
def nobody():
    """Address of a server that is not there: the port is bound, and nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{closed.getsockname()[1]}"


@pytest.fixture
def refusing(monkeypatch):
    """How often a store was asked that always refuses."""
    asked = []

    def connect(address):
        asked.append(address)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(store, "connect_store", connect)
    return asked


# Stores that do not answer


def test_a_store_that_refuses_is_told_once_and_asked_again(tmp_path, refusing):
    said = []
    with Tracker(config(tmp_path), tmp_path / NAME, said.append) as live:
        for row in ROWS:
            live.generation(row)
        live._end("")
    assert said == [f"MLflow at {store.store_address(tmp_path)}: it does not answer; the search goes on without it"]
    assert len(refusing) == 1 + len(ROWS)


def test_what_was_refused_is_logged_when_the_store_is_back(tmp_path, monkeypatch):
    logged, answers = [], iter([False, False, True, True])

    def connect(address):
        if not next(answers):
            raise ConnectionRefusedError
        return object()

    monkeypatch.setattr(store, "connect_store", connect)
    monkeypatch.setattr(writing, "begin_run", lambda *_: object())
    monkeypatch.setattr(writing, "log_generations", lambda client, run, rows: logged.append(list(rows)))
    with Tracker(config(tmp_path), tmp_path / NAME, lambda text: None) as live:
        for row in ROWS:
            live.generation(row)
        live._end("")
    assert logged == [ROWS[:2], ROWS[2:]]


def test_a_store_that_hangs_holds_up_neither_the_search_nor_its_result(tmp_path, monkeypatch):
    answer = threading.Event()
    monkeypatch.setattr(store, "connect_store", lambda address: answer.wait())
    monkeypatch.setattr(tracker, "PATIENCE", 0.05)
    result = made_result(tmp_path, NAME)
    with Tracker(config(tmp_path), result.folder, lambda text: None) as live:
        for row in ROWS:
            live.generation(row)  # comes back, though nothing is taken
        found = live.finish(result)
    answer.set()
    assert found == {"error": f"MLflow at {store.store_address(tmp_path)}: it does not answer in time"}
    assert list(spool.unsent_folders(tmp_path)) == [result.folder]


def test_ctrl_c_while_it_is_sent_leaves_it_waiting(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tracker, "deliver_result", interrupted)
    result = made_result(tmp_path, NAME)
    live = Tracker(config(tmp_path), result.folder, lambda text: None)
    monkeypatch.setattr(live, "_end", lambda status: None)
    assert live.finish(result) == {"error": "stopped by Ctrl-C"}
    assert list(spool.unsent_folders(tmp_path)) == [result.folder]


def test_the_last_lines_say_where_to_look_or_how_to_send(tmp_path):
    here, there = config("runs"), config(tmp_path, "http://me:secret@host")
    refused = last_lines({"error": "MLflow at [x]: no"}, here, tmp_path / NAME)
    assert refused[0] == r"[yellow]MLflow was not written: MLflow at \[x]: no[/yellow]"
    assert refused[1] == f"send       python -m search.send run={NAME}"
    assert (
        last_lines({"error": ""}, there, tmp_path)
        and f"runs={tmp_path} uri='http://***@host'" in last_lines({"error": "x"}, there, tmp_path)[1]
    )
    lines = last_lines({"page": "#/a", "view": "#/b"}, there, tmp_path)
    assert [line.split() for line in lines] == [
        ["review", "open", "http://***@host"],
        ["then", "open", "http://***@host/#/a"],
        ["http://***@host/#/b"],
    ]


def test_nothing_waits(tmp_path, capsys):
    assert send([f"runs={tmp_path}"]) == 0
    assert capsys.readouterr().out == "nothing waits\n"


def test_sending_says_what_to_type(tmp_path, refusing, capsys):
    result = made_result(tmp_path, NAME)
    assert send([f"runs={tmp_path}", "run=latest"]) == 2
    told = capsys.readouterr().err
    assert f"error: {NAME} was not sent: MLflow at sqlite:///" in told and "it does not answer" in told
    assert list(spool.unsent_folders(tmp_path)) == [result.folder]
    with disk.locked_run_folder(result.folder):
        assert send([f"runs={tmp_path}"]) == 2
    assert "another search is running in" in capsys.readouterr().err


def test_what_waits_for_another_store_or_is_still_searched_is_left_alone(tmp_path, monkeypatch):
    results = [made_result(tmp_path, f"2026-01-0{day}_000000_cache_tiny") for day in (1, 2, 3, 4)]
    for result, address in zip(results, ("sqlite:///a", "sqlite:///a", "http://b", "sqlite:///a"), strict=True):
        spool.add_to_spool(result.folder, address)
    logged = []
    monkeypatch.setattr(writing, "log_result", lambda result, *_: logged.append(result.search_id) or {})
    with disk.locked_run_folder(results[1].folder):
        sent = deliver_waiting_results(tmp_path, "sqlite:///a")
    assert sent == logged == [results[0].search_id, results[3].search_id]
    assert list(spool.unsent_folders(tmp_path)) == [results[1].folder, results[2].folder]


def test_two_searches_that_end_together_send_their_own_results_only(tmp_path, monkeypatch):
    """The second ends, and sends what waits, while a slow store still takes the result of the first."""
    first, second = (made_result(tmp_path, f"2026-01-0{day}_000000_cache_tiny") for day in (1, 2))
    logged, slow, go_on = [], threading.Event(), threading.Event()

    def log_result(result, *_):
        logged.append(result.search_id)
        if result.search_id == first.search_id:
            slow.set()
            assert go_on.wait(60)
        return {}

    monkeypatch.setattr(writing, "log_result", log_result)
    monkeypatch.setattr(Tracker, "_end", lambda *_: None)

    def end(result):
        Tracker(config(tmp_path), result.folder, print).finish(result)

    monkeypatch.setattr(
        running, "Search", lambda config, console, model: SimpleNamespace(config=config, console=console)
    )
    monkeypatch.setattr(running, "_run", lambda search, folder: end(first if folder == first.folder else second))
    monkeypatch.setattr(running, "new_run_folder", lambda *_: next(folders))
    folders = iter([first.folder, second.folder])
    thread = threading.Thread(target=running.run, args=[config(tmp_path)])
    thread.start()
    assert slow.wait(60)
    running.run(config(tmp_path))
    go_on.set()
    thread.join()
    assert logged == [first.search_id, second.search_id] and not spool.unsent_folders(tmp_path)


# Real ones


@pytest.mark.slow
def test_a_search_that_goes_on_can_be_watched(tmp_path):
    from mlflow import MlflowClient

    folder, seen = tmp_path / NAME, []
    with Tracker(config(tmp_path), folder, seen.append) as live:
        live.generation(ROWS[0])
        live.generation(ROWS[1])
        live._end("")
    assert not seen
    client = MlflowClient(store.store_address(tmp_path))
    (run,) = client.search_runs([client.get_experiment_by_name("tiny-cache").experiment_id])
    assert run.info.status == "RUNNING" and run.info.run_name == NAME and run.data.tags["role"] == "search"
    assert run.data.params["model.name"] == "tiny" and "is running" in run.data.tags["mlflow.note.content"]

    def points():
        found = client.get_metric_history(run.info.run_id, "generation/hypervolume")
        return [(p.step, p.value, p.timestamp - run.info.start_time) for p in found]

    assert points() == [(0, 0.7, 0), (1, 0.72, 10_000)]
    with pytest.raises(ZeroDivisionError), Tracker(config(tmp_path), folder, seen.append):
        1 / 0  # noqa: B018
    assert client.get_run(run.info.run_id).info.status == "FAILED"
    with pytest.raises(SystemExit), Tracker(config(tmp_path), folder, seen.append):
        raise SystemExit(130)
    assert client.get_run(run.info.run_id).info.status == "KILLED"

    result = made_result(tmp_path, NAME)
    result.history = ROWS
    with Tracker(config(tmp_path), folder, seen.append) as live:  # resumed: the same run
        live.generation(ROWS[2])
        found = live.finish(result)
    assert found["run_id"] == run.info.run_id and not spool.unsent_folders(tmp_path) and not seen
    assert points() == [(0, 0.7, 0), (1, 0.72, 10_000), (2, 0.74, 20_000)]
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_what_could_not_be_sent_is_sent_by_the_next_search(tmp_path, nobody, caplog, capsys):
    from mlflow import MlflowClient

    first, second, third = (made_result(tmp_path, f"2026-01-0{day}_000000_cache_tiny") for day in (1, 2, 3))
    assert "it does not answer" in deliver_result(first, tmp_path, nobody)["error"]
    assert spool.unsent_folders(tmp_path) == {first.folder: nobody}
    assert send([f"runs={tmp_path}", f"uri={nobody}"]) == 2  # still nobody there
    assert "try again with: python -m search.send" in capsys.readouterr().err
    spool.add_to_spool(second.folder, store.store_address(tmp_path))  # killed, say
    with Tracker(config(tmp_path), third.folder, print) as live:
        assert "error" not in live.finish(third)
    assert spool.unsent_folders(tmp_path) == {first.folder: nobody}
    pages = send_searches(runs=tmp_path, uri=store.store_address(tmp_path))
    assert list(pages) == [first.search_id] and not spool.unsent_folders(tmp_path)
    client = MlflowClient(store.store_address(tmp_path))
    experiment = client.get_experiment_by_name("tiny-cache").experiment_id
    found = client.search_runs([experiment], "tags.role = 'search'")
    assert {r.info.run_name for r in found} == {first.search_id, second.search_id, third.search_id}
