"""Every objective that has a YAML file keeps the contract; one whose weights are not at hand says what to type."""

from typing import Any

import pytest
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate

from search.config.compose import compose_config, list_options, normalise_overrides
from search.objectives.base import Cost, Quality
from search.testing import CostContract, QualityContract


def written(name: str) -> dict[str, Any]:
    """What the YAML file says."""
    return compose_config(normalise_overrides([f"objective=[{name}]"]))["objective"][name]


def of(kind: type) -> list[str]:
    return [name for name in list_options("objective") if issubclass(get_class(written(name)["_target_"]), kind)]


def made(name: str) -> Any:
    try:
        return instantiate(written(name))
    except InstantiationException as error:  # weights that are not at hand; test_network_objectives.py has random ones
        pytest.skip(str(error))


def test_each_is_a_cost_or_a_quality_and_called_what_people_type():
    assert sorted(of(Cost) + of(Quality)) == sorted(list_options("objective"))
    assert all(get_class(written(name)["_target_"]).key == name for name in list_options("objective"))


@pytest.mark.parametrize("name", of(Quality))
class TestEveryQuality(QualityContract):
    @pytest.fixture
    def objective(self, name: str) -> Quality:
        return made(name)


@pytest.mark.parametrize("name", of(Cost))
class TestEveryCost(CostContract):
    @pytest.fixture
    def objective(self, name: str) -> Cost:
        return made(name)
