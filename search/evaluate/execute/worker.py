"""A worker of compute=ray: a process that loads the pipeline and executes groups of jobs."""

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
    """Where a worker runs.

    Attributes:
        pid: Its process.
        host: Name of its machine.
        gpus: The GPUs that it sees; "" without one.
        device: What determines the last bits: workers with the same text give equal results.
    """

    pid: int
    host: str
    gpus: str
    device: str


@dataclass(frozen=True)
class SchedulePayload:
    """A schedule as it is sent: the content of its file, a few KB; a schedule in use holds much more."""

    content: Mapping[str, Any] | Schedule

    @staticmethod
    def of(schedule: Schedule) -> "SchedulePayload":
        """The payload of a schedule."""
        return SchedulePayload(schedule if schedule.tensors else schedule.to_dict())  # tensors are not in the content

    def unpack(self) -> Schedule:
        """The schedule."""
        return self.content if isinstance(self.content, Schedule) else Schedule.from_dict(self.content)


@dataclass(frozen=True)
class JobReport:
    """A result as a worker sends it.

    Attributes:
        number: The job's number in its group.
        latents: Final latents [B, ...].
        fitted: The schedule that was run, where it is not the one of the job; else None.
        decided: What gates decided, see `Outcome`.
        executed: Block executions of the worker so far.
        steps: Steps of the worker so far.
        batch: See `Outcome`.
    """

    number: int
    latents: Tensor
    fitted: SchedulePayload | None
    decided: Mapping[str, list[float]]
    executed: float
    steps: int
    batch: int = 0


class Worker:
    """One runner. Ray runs the calls of the methods one after the other, in the order in which they were made."""

    def load(self, model: Mapping[str, Any], costs: Costs, threads: int, folder: str) -> WorkerInfo:
        """Load the pipeline of a model's configuration; relative paths in it begin at `folder`."""
        if os.path.isdir(folder):
            os.chdir(folder)
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        try:
            self.runner = Runner(instantiate(dict(model)), costs)
        except InstantiationException as error:  # Ray would lose the message of the constructor
            raise error.__cause__ or error from None
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        return WorkerInfo(os.getpid(), socket.gethostname(), gpus, arithmetic_settings(self.runner.model.device))

    def first(self, batch: Batch, group: Sequence[tuple[SchedulePayload, bool]]) -> JobReport:
        """Begin a group (schedules, and whether each is fitted) and return the result that is ready first."""
        self.jobs = [Job(payload.unpack(), fit) for payload, fit in group]
        self.outcomes: Iterator[tuple[int, Outcome]] = self.runner.outcomes(batch, self.jobs)
        return self.next()

    def next(self) -> JobReport:
        """The next result of the group."""
        number, outcome = next(self.outcomes)
        fitted = None if outcome.schedule is self.jobs[number].schedule else SchedulePayload.of(outcome.schedule)
        counts = self.runner.executed, self.runner.steps
        return JobReport(number, outcome.latents, fitted, outcome.decided, *counts, outcome.batch)


def arithmetic_settings(device: torch.device) -> str:
    """What determines the last bits of a result, apart from the number of threads."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
