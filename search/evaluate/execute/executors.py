"""What `compute=` chooses: this process, or workers. Nothing of Ray is imported unless it is asked for."""

from importlib.util import find_spec
from typing import Protocol

import torch

from search.config.settings import Compute, Config
from search.evaluate.execute.jobs import Executor
from search.models.base import Model
from search.profile.costs import Costs


class Workers(Executor, Protocol):
    """An executor that has to be closed."""

    def close(self) -> None: ...


def check_compute(compute: Compute) -> None:
    """ValueError where what was chosen is not installed."""
    if compute.executor == "ray" and find_spec("ray") is None:
        raise ValueError(
            'compute=ray needs Ray: pip install "diffusion-schedule-search[distributed]", or '
            '-e ".[distributed]" here; compute=local needs nothing'
        )


def start_workers(config: Config, model: Model, costs: Costs) -> Workers | None:
    """The workers that run schedules for this model, as many threads in each as here; None where it is run here."""
    compute = config.compute
    if compute.executor == "local":
        return None
    from search.evaluate.execute.cluster import Cluster

    device = model.device.type  # of several GPUs Ray chooses
    gpus = compute.gpus if compute.gpus is not None else float(device == "cuda")
    given = dict(config.model) | {"device": device}
    cluster = Cluster(given, costs, torch.get_num_threads(), compute.workers, gpus, compute.address)
    cluster.start()
    return cluster
