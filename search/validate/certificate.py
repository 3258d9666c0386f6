"""The certificate part of a schedule file, from the runs that decided on it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from search.config.settings import Certify
from search.pareto.certificates import MissCount
from search.validate.environment import current_environment

if TYPE_CHECKING:
    from search.models.base import Model


def certificate_part(
    criterion: str,
    settings: Certify,
    tested: MissCount,
    prompts: Sequence[str],
    model: "Model",
    call: Mapping[str, str] | None = None,
    monitor: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of a schedule file's `certificate`.

    Args:
        criterion: What every run was held to.
        settings: The share and the confidence.
        tested: How many runs decided, and how many of them missed it.
        prompts: Of each of these runs.
        model: The model that they ran on.
        call: What else was particular, by name: a LoRA, another size.
        monitor: What `RecordedRuns.monitor_part` gave.
    """
    environment = current_environment(model)
    counts = Counter(prompts)
    return {
        "criterion": criterion,
        "share": settings.share,
        "confidence": settings.confidence,
        "runs": tested.runs,
        "misses": tested.misses,
        "prompts": len(counts),
        "noises": max(counts.values()),
        "population": population_words(len(counts), max(counts.values())),
        "device": environment.pop("device"),
        "versions": environment,
        "call": dict(call or {}),
        **({"monitor": dict(monitor)} if monitor else {}),
    }


def population_words(prompts: int, noises: int) -> str:
    """What a new run is: of a new prompt where every run had a prompt of its own, else of one of these prompts."""
    if noises == 1:
        return "a new prompt of this kind with new noise"
    return f"new noise on one of these {prompts} prompts" if prompts > 1 else "new noise on this prompt"
