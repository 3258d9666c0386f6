"""Parts of the file that name denoisers."""

from typing import Annotated, Any

from pydantic import Field

from search.schedule.errors import ScheduleError
from search.schedule.model.contracts import Contract
from search.schedule.model.nodes import MAX_BLOCKS, Tree
from search.schedule.parts.gaussian import GAUSSIAN, gaussian_tensors
from search.schedule.parts.part import Name, Part
from search.schedule.plan.tokens import MAX_STEPS, OWN
from search.schedule.tensors import TensorGroup


class ModelPart(Part):
    """Which denoiser the schedule is for.

    Attributes:
        class_name: Its class, `class` in the file.
        fingerprint: Digest of its architecture, not of its weights; "" accepts any configuration of the class.
        stacks: How many blocks each stack has, or where blocks differ the lengths of the lists in each of them.
        contract: Description of a class that has none in this version (search/schedule/model/contracts.py); else null.
    """

    class_name: Name = Field(alias="class")
    fingerprint: str = Field(default="", max_length=100)
    stacks: dict[Name, int | Annotated[list[dict[Name, int]], Field(max_length=MAX_BLOCKS)]] = Field(max_length=20)
    contract: dict[str, Any] | None = Field(default=None, max_length=5)  # of a class without a contract in this version

    def tree(self) -> Tree:
        """The denoiser's nodes; ScheduleError where the class, the stacks or the contract is wrong."""
        return Tree(self.class_name, self.stacks, Contract.from_dict(self.contract) if self.contract else None)


class OtherPart(ModelPart):
    """Another denoiser, which is given when the schedule is applied: `apply(pipe, models={"S": small_pipe})`.

    One of the class GaussianDenoiser is in the tensors file, and its fingerprint is the digest of these tensors.

    Attributes:
        name: A name for people.
    """

    name: str = Field(default="", max_length=200)

    @property
    def is_gaussian(self) -> bool:
        """Whether it is the distribution of final latents instead of a network."""
        return self.class_name == GAUSSIAN


class ModelsPart(Part):
    """Which denoiser runs at each step, T-Stitch (arXiv:2402.14167); without this part it is always the pipeline's own.

    Attributes:
        names: The other denoisers, by capital letter.
        at: The letter of each step's denoiser [T]; L is the pipeline's own.
    """

    names: dict[Annotated[str, Field(pattern="^[A-KM-Z]$")], OtherPart] = Field(max_length=25)
    at: str = Field(max_length=MAX_STEPS, pattern="^[A-Z]+$")

    @property
    def is_off(self) -> bool:
        """Whether the pipeline's own denoiser runs at every step."""
        return set(self.at) == {OWN}

    @property
    def tensors(self) -> list[TensorGroup]:
        """What the denoisers that run have in the tensors file."""
        used = sorted(set(self.at) - {OWN})
        return [gaussian_tensors(k, part.fingerprint) for k in used if (part := self.names[k]).is_gaussian]

    def normal(self) -> dict[str, Any]:
        """The normal form: without names that no step uses."""
        used = sorted(set(self.at) - {OWN})
        return {
            "names": {k: self.names[k].model_dump(by_alias=True, exclude_defaults=True) for k in used},
            "at": self.at,
        }


def check_models(models: ModelsPart, steps: int) -> None:
    """Raise ScheduleError where a step has no denoiser, or an unknown one."""
    if len(models.at) != steps:
        raise ScheduleError(f"models.at has {len(models.at)} entries; {steps} steps need {steps}")
    for step, letter in enumerate(models.at):
        if letter != OWN and letter not in models.names:
            letters = ", ".join([OWN, *models.names])
            raise ScheduleError(
                f"models.at is {letter!r} at step {step}, which models.names lacks; there are {letters}"
            )
    for part in models.names.values():
        if not part.is_gaussian:
            part.tree()
