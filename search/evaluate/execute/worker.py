"""What a worker of compute=ray is: a process with a pipeline of its own that executes what it is given."""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import Tensor

from search.evaluate.execute.jobs import Batch, Job, Outcome
from search.evaluate.execute.runner import Runner
from search.profile.costs import Costs
from search.schedule import Schedule


@dataclass(frozen=True)
class WorkerInfo:
    """Where a worker is. `gpus` are those that Ray lets it see; results are equal bit for bit where `device` is."""

    pid: int
    host: str
    gpus: str
    device: str


@dataclass(frozen=True)
class SchedulePayload:
    """A schedule on its way: as its file's content, a few KB, for which it is larger by far once it was looked into."""

    content: Mapping[str, Any] | Schedule

    @staticmethod
    def of(schedule: Schedule) -> "SchedulePayload":
        return SchedulePayload(
            schedule if schedule.corrections else schedule.to_dict()
        )  # corrections are tensors beside it

    def opened(self) -> Schedule:
        return self.content if isinstance(self.content, Schedule) else Schedule.from_dict(self.content)


@dataclass(frozen=True)
class JobReport:
    """A result: the job's number in its group, see `Outcome`, and the worker's counts up to then.

    `fitted` is the schedule that was run, where it is not the job's own; `batch` as in `Outcome`.
    """

    number: int
    latents: Tensor
    fitted: SchedulePayload | None
    decided: Mapping[str, list[float]]
    executed: float
    steps: int
    batch: int = 0


class Worker:
    """One runner. Ray calls the methods one after the other, in the order in which they were asked for."""

    def load(self, model: Mapping[str, Any], costs: Costs, threads: int, folder: str) -> WorkerInfo:
        """Load the pipeline of a model's configuration; relative paths in it begin at `folder`."""
        if os.path.isdir(folder):
            os.chdir(folder)
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        try:
            self.runner = Runner(instantiate(dict(model)), costs)
        except InstantiationException as error:  # which would lose what the constructor said on its way back
            raise error.__cause__ or error from None
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        return WorkerInfo(os.getpid(), socket.gethostname(), seen, arithmetic_settings(self.runner.model.device))

    def first(self, batch: Batch, group: Sequence[tuple[SchedulePayload, bool]]) -> JobReport:
        """Begin a group, of each job the schedule and whether it is fitted; the result of what is over first."""
        self.jobs = [Job(parcel.opened(), fit) for parcel, fit in group]
        self.outcomes: Iterator[tuple[int, Outcome]] = self.runner.outcomes(batch, self.jobs)
        return self.next()

    def next(self) -> JobReport:
        """The next result of the group."""
        number, ended = next(self.outcomes)
        fitted = None if ended.schedule is self.jobs[number].schedule else SchedulePayload.of(ended.schedule)
        counts = self.runner.executed, self.runner.steps
        return JobReport(number, ended.latents, fitted, ended.decided, *counts, ended.batch)


def arithmetic_settings(device: torch.device) -> str:
    """What decides about the last bits of a result, apart from the number of threads."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
