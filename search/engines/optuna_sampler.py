"""Optuna's interface of samplers, for rows that an engine chooses itself; and Optuna without its messages."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def row_sampler(pick: Callable[[Any, Any], dict[str, int]]) -> Any:
    """A sampler for Optuna's `ask` that leaves the choice of all parameters to `pick`."""
    from optuna.samplers import BaseSampler

    class Picked(BaseSampler):
        """One trial per row: a row asked before is replaced before it gets into the storage."""

        chosen: dict[str, int]

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
            self.chosen = pick(study, trial)
            return {}

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return self.chosen[param_name]

    return Picked()


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """No log lines and no warnings (of experimental arguments, of categories that are numbers) from Optuna."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
