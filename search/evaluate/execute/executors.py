"""What `compute=` chooses: this process, or Ray workers. Ray is imported only for workers."""

from importlib.util import find_spec
from typing import Protocol

import torch

from search.config.settings import Compute, Config
from search.evaluate.execute.jobs import Executor
from search.models.base import Model
from search.profile.costs import Costs


class Workers(Executor, Protocol):
    """An executor that has to be closed."""

    def close(self) -> None:
        """End the workers."""


def check_compute(compute: Compute) -> None:
    """ValueError where the chosen executor is not installed."""
    if compute.executor == "ray" and find_spec("ray") is None:
        raise ValueError(
            'compute=ray needs Ray: pip install "diffusion-schedule-search[distributed]", or '
            '-e ".[distributed]" here; compute=local needs nothing'
        )


def start_workers(config: Config, model: Model, costs: Costs) -> Workers | None:
    """Workers that run schedules for this model, each with as many threads as this process; None for compute=local."""
    compute = config.compute
    if compute.executor == "local":
        return None
    from search.evaluate.execute.cluster import Cluster

    device = model.device.type  # Ray chooses among several GPUs
    gpus = compute.gpus if compute.gpus is not None else float(device == "cuda")
    model_config = dict(config.model) | {"device": device}
    cluster = Cluster(model_config, costs, torch.get_num_threads(), compute.workers, gpus, compute.address)
    cluster.start()
    return cluster
