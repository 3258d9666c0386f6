"""What the parts of the recommended schedule contribute, in a sentence: on the console, in the report and in MLflow."""

from search.results.certificates import certificate_sentence
from search.results.result import Result


def recommendation_sentences(result: Result) -> list[str]:
    """What is promised of the recommended schedule, and what its parts contribute: whole sentences."""
    texts = certificate_sentence(result), attribution_sentence(result)
    return [f"{text[0].upper()}{text[1:]}." for text in texts if text]


def attribution_sentence(result: Result) -> str:
    """The drift and the MACs of the recommended schedule without each of its parts; empty where that is not known."""
    found = result.attribution
    if found is None:
        return ""
    parts = [
        f"without the {part['name']} {part['drift']:.3f} ({part['difference']:+.3f}, 95 % {part['low']:+.3f} to "
        f"{part['high']:+.3f}) at {part['macs']:.0%}"
        for part in found["parts"]
    ]
    return f"drift {found['drift']:.3f} at {found['macs']:.0%} of the MACs; {'; '.join(parts)}"
