"""compute=ray: groups of a population, and workers whose results are those of one process, whatever becomes of them."""

import os
import pickle
import re
import signal
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path as File
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search import Schedule
from search.config.settings import Compute, Config
from search.evaluate.execute import executors
from search.evaluate.execute.jobs import Batch, Job, Outcome
from search.evaluate.execute.runner import Runner
from search.evaluate.execute.subtrees import PrefixPath, split_into_subtrees
from search.evaluate.execute.worker import SchedulePayload, Worker
from search.models.base import to_schedule
from search.models.pipeline import Pipeline
from search.testing.models import lively, tiny_folder, tiny_model
from search.testing.pipelines import TOKENS
from tests.helpers.repository import ROOT
from tests.helpers.search_process import command, folder, front, search, search_here, wait

STEPS = 8
BATCH = Batch(("red apple", "blue boat, flat style"), (0, 1))


# Groups


def path(*marks: int) -> PrefixPath:
    return PrefixPath(marks, tuple(1.0 + mark % 3 for mark in marks))


def distinct(paths: list[PrefixPath], group: list[int]) -> float:
    """MACs of a group, by hand."""
    return sum(
        {mark: macs for i in group for mark, macs in zip(paths[i].prefix_ids, paths[i].macs, strict=True)}.values()
    )


def numbered(words: list[list[int]]) -> list[PrefixPath]:
    """Paths whose numbers are equal exactly where the words' beginnings are."""
    numbers: dict[tuple, int] = {}
    beginnings = [[tuple(word[: k + 1]) for k in range(len(word))] for word in words]
    return [path(*(numbers.setdefault(b, len(numbers)) for b in found)) for found in beginnings]


words = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=30)


@settings(max_examples=100, deadline=None)
@given(words=words, count=st.integers(1, 40))
def test_groups_hold_every_run_once_and_keep_subtrees_together(words, count):
    paths = numbered(words)
    groups = split_into_subtrees(paths, count)
    assert sorted(i for group in groups for i in group) == list(range(len(paths)))
    assert len(groups) <= count and all(groups)
    costs = [distinct(paths, group) for group in groups]
    assert costs == sorted(costs, reverse=True)
    in_order = sorted(groups, key=lambda group: paths[group[0]].prefix_ids)
    together = [paths[i].prefix_ids for group in in_order for i in group]
    assert together == sorted(together)  # a group is a stretch of the tree


def test_groups_are_cut_where_families_part_and_not_where_most_would_be_repeated():
    families = [[family] * 6 + [end] for family in (0, 1) for end in (0, 1, 2)]
    paths = [PrefixPath(p.prefix_ids, (1.0,) * 7) for p in numbered(families)]
    assert sorted(map(sorted, split_into_subtrees(paths, 2))) == [[0, 1, 2], [3, 4, 5]]
    assert len(split_into_subtrees(paths, 6)) == 2  # of the 9 steps of a family 8 would be in the larger part
    short = [PrefixPath(path.prefix_ids[5:], path.macs[5:]) for path in paths]
    assert len(split_into_subtrees(short, 6)) == 6  # of 4 steps 3 would be, then of 3 steps 2
    assert split_into_subtrees([], 4) == []
    assert paths[1].beyond(paths[0]) == 1 and paths[0].beyond(paths[3]) == 7


def test_paths_of_jobs_count_what_the_costs_count():
    model = tiny_model(STEPS)
    costs = model.costs()
    plain = Job(to_schedule(model, {"plan": {"rules": [["denoiser", "CCRCCRCC"]]}}))
    found = PrefixPath.of(plain, BATCH, costs)
    assert found.prefix_ids == tuple(plain.prefix_ids(BATCH))
    assert sum(found.macs) == pytest.approx(costs.macs(plain.schedule))
    gate = {"group": "transformer_blocks.[1-2]", "actions": "C G*7", "signal": "first_block_residual"}
    gated = Job(to_schedule(model, {"gates": [gate | {"threshold": 0.3, "value": "residual"}]}))
    whole = PrefixPath.of(gated, BATCH, costs)
    assert len(whole.prefix_ids) == 1 and whole.macs == (costs.macs(gated.schedule),)


# What is chosen


def config(**compute: Any) -> SimpleNamespace:
    settings = {"device": "cpu", "threads": 1, "executor": "ray"} | compute
    return SimpleNamespace(compute=Compute(**settings), model=model_config())


def model_config(**more: Any) -> dict[str, Any]:
    """Of a tiny model under which every action shows in the latents."""
    plain = {"_target_": "search.models.pipeline.Pipeline", "name": "pixart", "path": str(loud()), "steps": STEPS}
    call = {"use_resolution_binning": False, "clean_caption": False}
    return plain | {"guidance_scale": 4.0, "max_sequence_length": TOKENS, "call": call} | more


def loud() -> File:
    made = tiny_folder().parent / "loud"
    if not made.exists():
        lively(tiny_model()).pipe.save_pretrained(made)
    return made


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"workers": 0}, "compute.workers=0: give a whole number from 1 to 10000, or null"),
        ({"gpus": 2}, "compute.gpus=2: give a number from 0.01 to 1, or null"),
        ({"address": "nowhere"}, "compute.address=nowhere: give auto, <host>:<port> or ray://<host>:<port>, or null"),
        ({"executor": "local", "workers": 2}, "compute.workers=2 is for workers; type compute=ray compute.workers=2"),
        ({"executor": "local", "gpus": 0.5}, "compute.gpus=0.5 is for workers; type compute=ray compute.gpus=0.5"),
        ({"executor": "dask"}, "compute.executor=dask: give 'local' or 'ray'"),
    ],
)
def test_what_cannot_be_says_what_can(given, told):
    from search.config.compose import compose_config

    raw = compose_config(["+space=cache", "compute=ray"])
    assert raw["compute"]["executor"] == "ray"
    raw["compute"] |= given
    with pytest.raises(ValueError, match=re.escape(told)):
        Config.check(raw)


@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379", "ray://head:10001", None])
def test_addresses(address):
    assert config(address=address).compute.address == address


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(executors, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "diffusion-schedule-search\[distributed\]"'):
        executors.check_compute(config().compute)
    executors.check_compute(config(executor="local").compute)


def test_searches_of_before_workers_resume():
    assert Compute(device="auto", threads=None).executor == "local"


@pytest.mark.slow
def test_a_local_search_imports_nothing_of_ray(root):
    code = "import sys, search.loop.run, search.loop.finish; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


# Workers


def schedules(model: Any) -> list[Schedule]:
    """Two families that reuse whole steps, and one that forecasts components."""
    texts = [("denoiser", f"C{'R' * r}{'C' * (5 - r)}{end}") for r in (0, 2) for end in ("CC", "CR", "RC", "RR")]
    texts += [("transformer_blocks.*:ff", f"CCC{end}") for end in ("RCRCC", "RCRCR", "RCF1RC")]
    return [to_schedule(model, {"plan": {"rules": [list(rule)]}}) for rule in texts]


def gated(model: Any) -> Schedule:
    gate = {"group": "transformer_blocks.[1-2]", "actions": "C G*7", "signal": "first_block_residual"}
    return to_schedule(model, {"gates": [gate | {"threshold": 0.3, "value": "residual"}]})


def run(executor: Any, jobs: list[Job]) -> list[Outcome]:
    found: dict[int, Outcome] = {}
    executor.run(BATCH, jobs, lambda i, outcome: found.__setitem__(i, outcome))
    return [found[i] for i in range(len(jobs))]


def same(a: list[Outcome], b: list[Outcome]) -> bool:
    return all(
        torch.equal(x.latents, y.latents) and x.schedule == y.schedule and dict(x.decided) == dict(y.decided)
        for x, y in zip(a, b, strict=True)
    )


@pytest.fixture(scope="module")
def local() -> tuple:
    model = Pipeline(**{k: v for k, v in model_config().items() if k != "_target_"})
    jobs = [Job(each, fit) for fit in (False, True) for each in schedules(model)] + [Job(gated(model))]
    runner = Runner(model, model.costs())
    return model, runner, jobs, run(runner, jobs)


def test_a_worker_gives_what_its_runner_gives(local):
    model, runner, jobs, expected = local
    threads = torch.get_num_threads()
    with torch.no_grad():
        worker = Worker()
        place = worker.load(model_config(), runner.costs, threads, os.getcwd())
        reports = [worker.first(BATCH, [(SchedulePayload.of(job.schedule), job.fit) for job in jobs])]
        reports += [worker.next() for _ in jobs[1:]]
    assert place.pid == os.getpid() and torch.__version__ in place.device
    assert sorted(report.number for report in reports) == list(range(len(jobs)))
    reports.sort(key=lambda report: report.number)
    assert all((report.fitted is not None) == job.fit for report, job in zip(reports, jobs, strict=True))
    schedules = [r.fitted.unpack() if r.fitted else job.schedule for r, job in zip(reports, jobs, strict=True)]
    assert same([Outcome(r.latents, s, r.decided) for r, s in zip(reports, schedules, strict=True)], expected)
    assert (worker.runner.executed, worker.runner.steps) == (runner.executed, runner.steps)


def test_parcels_are_opened_as_they_were_packed(local):
    model, _, jobs, _ = local
    corrected = schedules(model)[8].with_corrections(
        {
            f"transformer_blocks.0:ff.{name}": torch.full((2, 16), value)
            for name, value in (("scale", 0.5), ("shift", 2.0))
        }
    )
    for schedule in (jobs[0].schedule, corrected):
        opened = pickle.loads(pickle.dumps(SchedulePayload.of(schedule))).unpack()
        assert opened == schedule and opened.to_dict() == schedule.to_dict()
        assert list(opened.corrections) == list(schedule.corrections)  # equal digests mean equal tensors
    assert len(pickle.dumps(SchedulePayload.of(jobs[0].schedule))) < 3000


@pytest.fixture(scope="module")
def machines():
    """Ray on this machine, which believes that it has three GPUs."""
    ray = pytest.importorskip("ray", reason="compute=ray is not installed")
    os.environ.setdefault("RAY_AUTH_TOKEN", "0" * 64)  # else Ray writes a token into the home folder
    ray.init(num_cpus=4, num_gpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=2**28)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def cluster(machines, local):
    """Two workers, each with a GPU of its own as Ray thinks."""
    from search.evaluate.execute.cluster import Cluster

    made = Cluster(model_config(), local[1].costs, torch.get_num_threads(), workers=2, gpus=1)
    made.start()
    yield made
    made.close()


@pytest.mark.slow
class TestWorkers:
    def test_results_are_those_of_one_process(self, cluster, local, machines):
        _, runner, jobs, expected = local
        machines.wait([handle.pending[0] for handle in cluster.handles], num_returns=2)
        assert same(run(cluster, jobs), expected)
        assert all(handle.executed for handle in cluster.handles)
        assert cluster.executed == pytest.approx(sum(handle.executed for handle in cluster.handles))
        assert runner.steps < cluster.steps < 2 * runner.steps  # what both begin with, both run
        assert {handle.place.gpus for handle in cluster.handles} == {"0", "1"}
        assert os.getpid() not in {handle.place.pid for handle in cluster.handles}

    def test_a_later_population_goes_on_where_its_beginning_was_run(self, cluster, local):
        model = local[0]
        run(cluster, [Job(to_schedule(model, {"plan": {"rules": [["denoiser", "CRRRRCRC"]]}}))])
        for end in ("CRCC", "RRCC"):  # the worker that has the state, whichever is asked for first
            before = cluster.steps
            run(cluster, [Job(to_schedule(model, {"plan": {"rules": [["denoiser", "CRRR" + end]]}}))])
            assert cluster.steps - before == 4 - (end == "RRCC")

    def test_a_killed_worker_loses_nothing_and_only_its_group_is_run_again(self, cluster, local, monkeypatch):
        from search.evaluate.execute import cluster as module

        model = local[0]
        plans = [[["denoiser", "CC" + "".join(end)]] for end in product("CR", repeat=6)]
        jobs = [Job(to_schedule(model, {"plan": {"rules": rules}})) for rules in plans]
        expected = run(Runner(model, local[1].costs), jobs)
        handed: list[list[int]] = []
        give = module._Call._give
        monkeypatch.setattr(module._Call, "_give", lambda call, handle: _watched(give, call, handle, handed))
        found: dict[int, Outcome] = {}
        untold: list[int] = []

        def done(i: int, outcome: Outcome) -> None:
            assert i not in found
            found[i] = outcome
            handle = max(cluster.handles, key=lambda handle: len(handle.group))
            if not untold and len(found) > 2 and len(handle.group) > 3:
                os.kill(handle.place.pid, signal.SIGKILL)
                untold.extend(handle.group.values())

        cluster.run(BATCH, jobs, done)
        assert untold and same([found[i] for i in range(len(jobs))], expected)
        again = Counter(i for group in handed for i in group) - Counter(range(len(jobs)))
        assert again and set(again) <= set(untold) and set(again.values()) == {1}
        assert len(cluster.handles) == 2

    def test_two_workers_on_one_gpu(self, cluster, machines, local):
        from search.evaluate.execute.cluster import Cluster

        halves = Cluster(model_config(), local[1].costs, workers=2, gpus=0.5)
        with pytest.raises(ValueError, match=r"compute.workers=7: Ray has 4 CPU cores and 3 GPUs, .* room for 6; type"):
            Cluster(model_config(), local[1].costs, workers=7, gpus=0.5).start()
        with pytest.raises(ValueError, match=r"compute.workers=null: .* a worker takes 5 of the cores, .* room for 0"):
            Cluster(model_config(), local[1].costs, threads=5).start()
        try:
            halves.start()
            machines.wait([handle.pending[0] for handle in halves.handles], num_returns=2)
            assert same(run(halves, local[2][:4]), local[3][:4])
            assert {handle.place.gpus for handle in halves.handles if handle.place} == {"2"}
        finally:
            halves.close()

    @pytest.mark.parametrize(
        ("broken", "told"),
        [
            ({"path": "nowhere"}, "^model.path='nowhere' cannot be loaded"),
            ({"_target_": "tests.evaluate.test_ray.Raises"}, "^not today$"),
            ({"_target_": "tests.evaluate.test_ray.Dies"}, "^3 workers died while they ran schedule {digest}"),
        ],
        ids=["load", "raise", "die"],
    )
    def test_what_goes_wrong_is_said_once(self, machines, local, broken, told):
        from search.evaluate.execute.cluster import Cluster

        model, runner, jobs, _ = local
        made = Cluster(model_config(**broken), runner.costs, workers=1)
        with pytest.raises(ValueError, match=told.format(digest=jobs[0].schedule.digest)):
            run(made, jobs[:1])
        assert not made.handles and machines.is_initialized()  # it ends what it began

    def test_ctrl_c_ends_the_workers(self, machines, local):
        from search.evaluate.execute.cluster import Cluster

        made = Cluster(model_config(), local[1].costs, workers=1)

        def done(i: int, outcome: Outcome) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            made.run(BATCH, local[2], done)
        assert not made.handles
        assert same(run(made, local[2][:1]), local[3][:1])  # and begins again where it is asked
        made.close()


def _watched(give: Any, call: Any, handle: Any, handed: list[list[int]]) -> None:
    give(call, handle)
    if handle.group:
        handed.append(list(handle.group.values()))


class Raises(Pipeline):
    """A model that finds fault with what it is asked, once it is loaded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.apply = self.fail

    def fail(self, *_: Any, **__: Any) -> Any:
        raise ValueError("not today")


class Dies(Raises):
    """A model that the system kills."""

    def fail(self, *_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


# Whole searches


@pytest.mark.slow
def test_a_search_on_workers_ends_in_the_same_front(tmp_path):
    pytest.importorskip("ray", reason="compute=ray is not installed")
    done = search_here(tmp_path / "local" / "runs", "budget.evaluations=24")
    assert done.returncode == 0, done.stderr
    done = search(tmp_path / "ray" / "runs", "budget.evaluations=24", "compute=ray", "compute.workers=2")
    assert done.returncode == 0, done.stderr
    assert front(tmp_path / "ray" / "runs") == front(tmp_path / "local" / "runs")


@pytest.mark.slow
def test_ctrl_c_in_a_search_on_workers_leaves_no_process(tmp_path):
    pytest.importorskip("ray", reason="compute=ray is not installed")
    runs = tmp_path / "runs"
    process = subprocess.Popen(
        command(runs, "budget.evaluations=100000", "compute=ray", "compute.workers=1"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    log = lambda: "".join(p.read_text() for p in runs.glob("*/search.log"))  # noqa: E731
    wait(lambda: log().count("generation {") >= 1)
    worker = int(re.findall(r"pid=(\d+)", log())[0])
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everybody is told
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "stopped by Ctrl-C" in text
    assert (folder(runs) / "front.json").exists()
    wait(lambda: not File(f"/proc/{worker}").exists(), seconds=20)
