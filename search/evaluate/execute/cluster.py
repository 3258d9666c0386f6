"""Runs on several machines: Ray workers that keep a pipeline loaded execute whole subtrees of a population."""

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

from search.evaluate.execute.jobs import Batch, Done, Job, Outcome
from search.evaluate.execute.subtrees import PrefixPath, split_into_subtrees
from search.evaluate.execute.worker import JobReport, SchedulePayload, Worker, WorkerInfo
from search.profile.costs import Costs

log = logging.getLogger("search")
GROUPS = 4  # for each worker: so many that the last ones to finish hardly keep the others waiting
DEATHS = 3  # of workers on the same schedule, after which it is not tried again
PATIENCE = 1800  # seconds without a result while no worker has loaded its pipeline
KNOWN = 2**18  # beginnings of runs, after which it is forgotten who has them
PASSED = 2**29  # bytes of Ray's store where it is started here: results pass through it, nothing stays


@dataclass(eq=False)
class WorkerHandle:
    """A worker as it is seen from here: `asked` are Ray's promises of what it was asked for, the oldest first.

    `group` are the jobs that it has not told of yet, by their number in its group, in the order in which they are run.
    """

    actor: Any
    asked: deque[Any]
    place: WorkerInfo | None = None
    group: dict[int, int] = field(default_factory=dict)
    executed: float = 0.0
    steps: int = 0


class Cluster:
    """Executes jobs on Ray workers. `executed` and `steps` are those of all of them, see `Runner`.

    Each worker loads the pipeline of the configuration `model`, and takes `gpus` of one GPU, or where that is 0 so many
    CPU cores as it has `threads`. `workers` null is as many as there is room for. `address` null starts Ray on this
    machine, until `close`. A worker that dies is replaced; what it had not told of is run again by whichever is free.
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
        self.hands: list[WorkerHandle] = []
        self.owners: dict[int, WorkerHandle] = {}  # of beginnings of runs: who was given them last
        self.executed, self.steps = 0.0, 0
        self._load = dict(model), costs, threads, os.getcwd()
        self._connected = False  # by this object, not by the caller

    def run(self, batch: Batch, jobs: Sequence[Job], done: Done) -> None:
        """Execute jobs; `done` is called in this thread. Whatever is raised, Ctrl-C too, ends the workers first.

        ValueError where one schedule is the death of several workers.
        """
        try:
            self.start()
            _Call(self, batch, jobs, done).finish()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Ask for the workers where there are none yet; they load while the caller goes on.

        ValueError where there is no room for them.
        """
        if self.hands:
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
        self.hands = [self._hand() for _ in range(self.workers or room)]

    def close(self) -> None:
        """End the workers, and Ray where it was started here; the next `run` starts them again."""
        for hand in self.hands:
            self._end(hand)
        self.hands = []
        self.owners.clear()
        if self._connected:
            ray.shutdown()
            self._connected = False

    def replace(self, hand: WorkerHandle) -> None:
        """Ask for a worker in the place of one that died."""
        self._end(hand)
        self.owners = {mark: owner for mark, owner in self.owners.items() if owner is not hand}
        self.hands[self.hands.index(hand)] = self._hand()

    def _connect(self) -> None:
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self.address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # or Ray writes one into the home folder
            options |= {"include_dashboard": False, "object_store_memory": PASSED}
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

    def _hand(self) -> WorkerHandle:
        needs = {"num_cpus": 0, "num_gpus": self.gpus} if self.gpus else {"num_cpus": self.threads}
        actor = ray.remote(Worker).options(max_restarts=0, **needs).remote()
        return WorkerHandle(actor, deque([actor.load.remote(*self._load)]))

    @staticmethod
    def _end(hand: WorkerHandle) -> None:
        with suppress(RayError):  # it is dead already, or its machine is
            ray.kill(hand.actor)


class _Call:
    """One call of `Cluster.run`: which groups wait, and what comes of the others."""

    def __init__(self, cluster: Cluster, batch: Batch, jobs: Sequence[Job], done: Done) -> None:
        self.cluster, self.batch, self.jobs, self.done = cluster, batch, jobs, done
        self.paths = [PrefixPath.of(job, batch, cluster.costs) for job in jobs]
        self.waiting = split_into_subtrees(self.paths, GROUPS * len(cluster.hands))
        self.deaths: Counter[str] = Counter()

    def finish(self) -> None:
        """WorkerHandle out groups and take results until all are over."""
        hands = self.cluster.hands
        while self.waiting or any(hand.group for hand in hands):
            for hand in (*hands, *hands):  # a second time, for what is left when its owners have enough
                if self.waiting and not hand.asked:
                    self._give(hand)
            heads = {hand.asked[0]: hand for hand in hands if hand.asked}
            ready, _ = ray.wait(list(heads), timeout=PATIENCE)
            if not ready and not any(hand.place for hand in hands):
                raise ValueError(
                    f"no worker has loaded its pipeline in {PATIENCE // 60} minutes; look at `ray status`, and begin "
                    "with compute.workers=1"
                )
            for ref in ready:
                self._take(heads[ref])

    def _give(self, hand: WorkerHandle) -> None:
        """To a worker that is free: what it has begun before, or nobody has; or else what a busy one has begun."""
        ranks = [self._rank(hand, self._owner(group)) for group in self.waiting]
        if not (rank := max(ranks)):
            return
        group = self.waiting.pop(ranks.index(rank))  # of equals the first, which is the costliest
        hand.group = dict(enumerate(group))
        if len(self.cluster.owners) > KNOWN:
            self.cluster.owners.clear()
        self.cluster.owners.update((mark, hand) for i in group for mark in self.paths[i].prefix_ids)
        parcels = [(SchedulePayload.of(self.jobs[i].schedule), self.jobs[i].fit) for i in group]
        hand.asked.append(hand.actor.first.remote(self.batch, parcels))
        hand.asked.extend(hand.actor.next.remote() for _ in group[1:])

    def _owner(self, group: Sequence[int]) -> WorkerHandle | None:
        """Who has the state that most of a group can go on from."""
        owners = self.cluster.owners
        return next((owners[mark] for mark in reversed(self.paths[group[0]].prefix_ids) if mark in owners), None)

    @staticmethod
    def _rank(hand: WorkerHandle, owner: WorkerHandle | None) -> int:
        return 3 if owner is hand else 2 if owner is None else 1 if owner.asked else 0

    def _take(self, hand: WorkerHandle) -> None:
        """What a worker has to tell next."""
        try:
            told = ray.get(hand.asked.popleft())
        except RayTaskError as error:  # what our own code raised there
            raise error.cause from error
        except RayError as error:
            self._bury(hand, error)
            return
        if isinstance(told, WorkerInfo):
            hand.place = told
            log.info("loaded: %s", told)
            return
        assert isinstance(told, JobReport)
        self.cluster.executed += told.executed - hand.executed
        self.cluster.steps += told.steps - hand.steps
        hand.executed, hand.steps = told.executed, told.steps
        i = hand.group.pop(told.number)
        schedule = told.fitted.opened() if told.fitted else self.jobs[i].schedule
        self.done(i, Outcome(told.latents, schedule, told.decided, told.batch))

    def _bury(self, hand: WorkerHandle, error: RayError) -> None:
        """Replace a worker; what it had not told of waits for another one, but not for ever."""
        left = list(hand.group.values())
        digest = self.jobs[left[0]].schedule.digest if left else ""
        self.deaths[digest] += 1
        log.warning("died on %s: %s; %s", digest or "nothing", hand.place, error)
        if self.deaths[digest] == DEATHS:
            work = f"while they ran schedule {digest}" if digest else "before they had loaded the pipeline"
            reason = str(error).strip().splitlines()[-1][:300]
            raise ValueError(
                f"{DEATHS} workers died {work}; the last time: {reason} If memory is short, type compute.workers=1; "
                "every machine of Ray needs this package; compute=local runs it here"
            ) from error
        self.cluster.replace(hand)
        if left:
            self.waiting.insert(0, left)
