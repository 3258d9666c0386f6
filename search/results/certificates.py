"""What the certificates of a search say, in sentences: the same on the console, in the report and in MLflow."""

from search.pareto.certificates import StoppingRule
from search.results.pick import CONDITION
from search.results.result import Entry, Result


def certificate_sentence(result: Result) -> str:
    """What is promised of the recommended schedule, or what is missing; empty where nothing was asked for."""
    if result.certify is None:
        return ""
    certificate = result.best.schedule.certificate
    if result.best.role == "front" and certificate is not None:
        return f"certified: {certificate}"
    asked = result.certify
    promise = f"{asked['criterion']} with a probability of at least {asked['share']:.4g}"
    first = next((entry for entry in result.of("front") if entry.tested), None)
    return f"no schedule is certified ({promise}, confidence {asked['confidence']:.4g}){missing_words(result, first)}"


def missing_words(result: Result, entry: Entry | None) -> str:
    """How many runs without a miss a schedule needs yet, as the end of a sentence; empty for one without a test."""
    asked = result.certify
    if asked is None or entry is None or entry.tested is None or entry.tested.certified:
        return ""
    tested = entry.tested
    rule = StoppingRule.of(asked["share"], asked["confidence"], asked["runs"])
    return (
        f": {entry.name} missed {tested.misses} of {tested.runs} runs; {rule.further_runs(tested)} further ones "
        "without a miss are missing"
    )


def tested_words(entry: Entry) -> str:
    """The result of a schedule's test in a few words; empty where it was not tested."""
    if entry.tested is None:
        return ""
    runs = f"{entry.tested.misses} of {entry.tested.runs} missed"
    return f"certified, {runs}" if entry.tested.certified else f"not certified, {runs}"


def worst_words(entry: Entry, unit: str = "") -> str:
    """The worst run of a schedule in a few words; empty where none is known."""
    if entry.worst is None:
        return ""
    unit = "" if unit == "ratio" else f" {unit}".rstrip()
    return f"worst run: {entry.worst.name} {entry.worst.value:.3g}{unit}, {entry.worst.prompt}"


def criterion_limit(result: Result, name: str) -> float | None:
    """The limit of the criterion, where it is on this score; else None."""
    match = CONDITION.fullmatch(result.certify["criterion"]) if result.certify else None
    return float(match[3]) if match and match[1] == name else None
