"""Tests that a space, an engine, an objective or a model family of your own inherits, and tiny models to run them on.

    from search.testing import SpaceContract

    class TestMine(SpaceContract):
        @pytest.fixture
        def space(self):
            return MySpace()

Needs pytest and hypothesis, which nothing else of the package needs.
"""

import pytest

CONTRACTS = ("space_contract", "engine_contract", "objective_contract", "model_contract")
for _name in CONTRACTS:
    pytest.register_assert_rewrite(f"search.testing.{_name}")

from search.testing.engine_contract import EngineContract, EvolutionContract, LearningContract  # noqa: E402
from search.testing.model_contract import ModelContract  # noqa: E402
from search.testing.objective_contract import CostContract, QualityContract  # noqa: E402
from search.testing.space_contract import SpaceContract  # noqa: E402

__all__ = [
    "CostContract",
    "EngineContract",
    "EvolutionContract",
    "LearningContract",
    "ModelContract",
    "QualityContract",
    "SpaceContract",
]
