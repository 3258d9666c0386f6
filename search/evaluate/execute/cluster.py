"""Runs on several machines: Ray workers with a loaded pipeline execute whole subtrees of a population."""

import logging
import os
import secrets
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from search.evaluate.execute.jobs import Batch, Job, OnDone, Outcome
from search.evaluate.execute.subtrees import PrefixPath, split_into_subtrees
from search.evaluate.execute.worker import JobReport, SchedulePayload, Worker, WorkerInfo
from search.profile.costs import Costs

log = logging.getLogger("search")
GROUPS = 4  # for each worker: so many that workers hardly wait for the last group
DEATHS = 3  # of workers on the same schedule, after which it is not tried again
PATIENCE = 1800  # seconds without a result while no worker has loaded its pipeline
MOST_OWNERS = 2**18  # prefixes, after which the table of their owners is cleared
STORE_BYTES = 2**29  # of Ray's store where it is started here: results are not held there


@dataclass(eq=False)
class WorkerHandle:
    """A worker as this process sees it: `pending` are Ray's references to results, the oldest first.

    `group` are the jobs without a result yet, by their number in the worker's group, in the order of execution.
    """

    actor: Any
    pending: deque[Any]
    place: WorkerInfo | None = None
    group: dict[int, int] = field(default_factory=dict)
    executed: float = 0.0
    steps: int = 0


class Cluster:
    """Executes jobs on Ray workers. `executed` and `steps` are those of all of them, see `Runner`.

    Each worker loads the pipeline of the configuration `model`, and takes `gpus` of one GPU, or where that is 0 so many
    CPU cores as it has `threads`. `workers` null is as many as there is room for. `address` null starts Ray on this
    machine, until `close`. A worker that dies is replaced; its jobs without a result are run again on a free worker.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        costs: Costs,
        threads: int = 1,
        workers: int | None = None,
        gpus: float = 0.0,
        address: str | None = None,
    ) -> None:
        self.costs, self.workers, self.gpus, self.threads, self.address = costs, workers, gpus, threads, address
        self.handles: list[WorkerHandle] = []
        self.owners: dict[int, WorkerHandle] = {}  # by prefix id: the worker that ran it last
        self.executed, self.steps = 0.0, 0
        self._load = dict(model), costs, threads, os.getcwd()
        self._connected = False  # by this object and not by the caller

    def run(self, batch: Batch, jobs: Sequence[Job], on_done: OnDone) -> None:
        """Execute jobs; `on_done` is called in this thread. Any exception, also Ctrl-C, ends the workers first.

        ValueError where one schedule kills several workers.
        """
        try:
            self.start()
            _Call(self, batch, jobs, on_done).finish()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start the workers, if there are none; they load while the caller continues.

        ValueError where there is no room for them.
        """
        if self.handles:
            return
        if not ray.is_initialized():
            self._connect()
        room = self._room()
        if not room or room < (self.workers or 0):
            have = ray.cluster_resources()
            self.close()
            raise ValueError(
                f"compute.workers={self.workers or 'null'}: Ray has {have.get('CPU', 0):g} CPU cores and "
                f"{have.get('GPU', 0):g} GPUs, a worker takes {self._takes()}, so there is room for {room}; type "
                f"compute.workers={max(room, 1)}, or give each less: compute.gpus=0.5 or compute.threads=1"
            )
        self.handles = [self._start_worker() for _ in range(self.workers or room)]

    def close(self) -> None:
        """End the workers, and Ray where it was started here; the next `run` starts them again."""
        for handle in self.handles:
            self._end(handle)
        self.handles = []
        self.owners.clear()
        if self._connected:
            ray.shutdown()
            self._connected = False

    def replace(self, handle: WorkerHandle) -> None:
        """Start a worker in the place of one that died."""
        self._end(handle)
        self.owners = {prefix: owner for prefix, owner in self.owners.items() if owner is not handle}
        self.handles[self.handles.index(handle)] = self._start_worker()

    def _connect(self) -> None:
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self.address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # or Ray writes one into the home folder
            options |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
            if self.workers and not self.gpus:
                options["num_cpus"] = self.workers * self.threads
        ray.init(address=self.address or "local", **options)
        self._connected = True

    def _room(self) -> int:
        """How many workers fit into Ray's machines; a worker's share of a GPU is all of the same one."""
        have = ray.cluster_resources()
        if self.gpus:
            return int(have.get("GPU", 0)) * int(1 / self.gpus + 1e-9)
        return int(have.get("CPU", 0)) // self.threads

    def _takes(self) -> str:
        return f"{self.gpus:g} of a GPU" if self.gpus else f"{self.threads} of the cores"

    def _start_worker(self) -> WorkerHandle:
        needs = {"num_cpus": 0, "num_gpus": self.gpus} if self.gpus else {"num_cpus": self.threads}
        actor = ray.remote(Worker).options(max_restarts=0, **needs).remote()
        return WorkerHandle(actor, deque([actor.load.remote(*self._load)]))

    @staticmethod
    def _end(handle: WorkerHandle) -> None:
        with suppress(RayError):  # it is dead already, or its machine is
            ray.kill(handle.actor)


class _Call:
    """One call of `Cluster.run`: handles out groups of jobs and takes their results."""

    def __init__(self, cluster: Cluster, batch: Batch, jobs: Sequence[Job], on_done: OnDone) -> None:
        self.cluster, self.batch, self.jobs, self.on_done = cluster, batch, jobs, on_done
        self.paths = [PrefixPath.of(job, batch, cluster.costs) for job in jobs]
        self.waiting = split_into_subtrees(self.paths, GROUPS * len(cluster.handles))
        self.deaths: Counter[str] = Counter()

    def finish(self) -> None:
        """Hand out groups and take results until all jobs are done."""
        handles = self.cluster.handles
        while self.waiting or any(handle.group for handle in handles):
            for handle in (*handles, *handles):  # a second time, for groups whose owners are busy
                if self.waiting and not handle.pending:
                    self._give(handle)
            heads = {handle.pending[0]: handle for handle in handles if handle.pending}
            ready, _ = ray.wait(list(heads), timeout=PATIENCE)
            if not ready and not any(handle.place for handle in handles):
                raise ValueError(
                    f"no worker has loaded its pipeline in {PATIENCE // 60} minutes; look at `ray status`, and start "
                    "with compute.workers=1"
                )
            for ref in ready:
                self._take(heads[ref])

    def _give(self, handle: WorkerHandle) -> None:
        """Give a free worker a group: one that it has begun, else one that no worker has, else one of a busy worker."""
        ranks = [self._rank(handle, self._owner(group)) for group in self.waiting]
        if not (rank := max(ranks)):
            return
        group = self.waiting.pop(ranks.index(rank))  # of equals the first, which is the costliest
        handle.group = dict(enumerate(group))
        if len(self.cluster.owners) > MOST_OWNERS:
            self.cluster.owners.clear()
        self.cluster.owners.update((prefix, handle) for i in group for prefix in self.paths[i].prefix_ids)
        payloads = [(SchedulePayload.of(self.jobs[i].schedule), self.jobs[i].fit) for i in group]
        handle.pending.append(handle.actor.first.remote(self.batch, payloads))
        handle.pending.extend(handle.actor.next.remote() for _ in group[1:])

    def _owner(self, group: Sequence[int]) -> WorkerHandle | None:
        """The worker with the state that most of a group can continue from."""
        owners = self.cluster.owners
        return next((owners[prefix] for prefix in reversed(self.paths[group[0]].prefix_ids) if prefix in owners), None)

    @staticmethod
    def _rank(handle: WorkerHandle, owner: WorkerHandle | None) -> int:
        return 3 if owner is handle else 2 if owner is None else 1 if owner.pending else 0

    def _take(self, handle: WorkerHandle) -> None:
        """Take the next result of a worker."""
        try:
            result = ray.get(handle.pending.popleft())
        except RayTaskError as error:  # raised by this project's code in the worker
            raise error.cause from error
        except RayError as error:
            self._replace_dead(handle, error)
            return
        if isinstance(result, WorkerInfo):
            handle.place = result
            log.info("loaded: %s", result)
            return
        assert isinstance(result, JobReport)
        self.cluster.executed += result.executed - handle.executed
        self.cluster.steps += result.steps - handle.steps
        handle.executed, handle.steps = result.executed, result.steps
        i = handle.group.pop(result.number)
        schedule = result.fitted.unpack() if result.fitted else self.jobs[i].schedule
        self.on_done(i, Outcome(result.latents, schedule, result.decided, result.batch))

    def _replace_dead(self, handle: WorkerHandle, error: RayError) -> None:
        """Replace a worker that died; its jobs without a result wait for another one, a limited number of times."""
        left = list(handle.group.values())
        digest = self.jobs[left[0]].schedule.digest if left else ""
        self.deaths[digest] += 1
        log.warning("died on %s: %s; %s", digest or "nothing", handle.place, error)
        if self.deaths[digest] == DEATHS:
            work = f"while they ran schedule {digest}" if digest else "before they had loaded the pipeline"
            reason = str(error).strip().splitlines()[-1][:300]
            raise ValueError(
                f"{DEATHS} workers died {work}; the last time: {reason} If memory is short, type compute.workers=1; "
                "every machine of Ray needs this package; compute=local runs it here"
            ) from error
        self.cluster.replace(handle)
        if left:
            self.waiting.insert(0, left)
