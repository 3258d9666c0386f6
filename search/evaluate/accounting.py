"""How much work the candidates of a search are, in block executions."""

from collections.abc import Mapping, Sequence

from search.evaluate.execute.jobs import Batch, Job
from search.profile.costs import Costs


class Accounting:
    """Counts work in MACs of one block (both CFG halves) per picture.

    Attributes:
        block_executions: Work so far; every distinct beginning of a run counts once, whichever candidate runs it.
        unshared: Work so far if no run shared its beginning with another one.
        counted: Numbers of the beginnings that `block_executions` has.
    """

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self.block_executions = self.unshared = 0.0
        self.counted: set[int] = set()

    def add_macs(self, macs: float) -> None:
        """Count work that nothing else shares."""
        self.block_executions += macs / self.costs.block_macs
        self.unshared += macs / self.costs.block_macs

    def add_job(self, job: Job, batch: Batch, decided: Mapping[str, Sequence[float]]) -> None:
        """Count a job on one batch: of its run the steps that no other run had begun with.

        Args:
            job: What is run; a job that runs alone counts as a whole.
            batch: The prompts that it is run on.
            decided: Of each group with a gate the share of the batch that computed it at each step [T].
        """
        if job.alone:
            self.add_macs(self.costs.measured(decided).macs(job.schedule) * len(batch))
            return
        for prefix, macs in zip(job.prefix_ids(batch), self.costs.macs_by_step(job.schedule), strict=True):
            blocks = macs / self.costs.block_macs * len(batch)
            self.unshared += blocks
            if prefix not in self.counted:
                self.counted.add(prefix)
                self.block_executions += blocks
