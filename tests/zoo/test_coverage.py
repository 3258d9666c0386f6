"""docs/coverage.md says what works on each tiny pipeline; here it is tried again."""

import pytest

from tests.zoo.coverage import PAGE, rows, shown

FAST = ("FluxTransformer2DModel", "ZImageTransformer2DModel")
LINES = PAGE.read_text(encoding="utf-8").splitlines()


SAMPLES = [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in shown()]


@pytest.mark.parametrize("name", SAMPLES)
def test_the_page_says_what_works(name: str) -> None:
    written = [line for line in LINES if line.startswith(f"| {name} |")]
    assert written and rows(name) == written


def test_every_sample_is_on_the_page_and_most_are_exact() -> None:
    assert {line.split(" | ")[0].removeprefix("| ") for line in LINES if line.startswith("| ")} >= set(shown())
    for column in (-3, -2):  # off in its own call, and as a model of a search
        exact = {_class(line) for line in LINES if line.startswith("| ") and line.split("|")[column].strip() == "equal"}
        assert len(exact) >= 75


def _class(line: str) -> str:
    return line.split(" | ")[0].removeprefix("| ").partition("/")[0]
