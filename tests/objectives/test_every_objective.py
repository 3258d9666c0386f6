"""Every objective that has a YAML file keeps the contract; one whose weights are not at hand says what to type."""

from functools import cache
from typing import Any

import pytest
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from search.config.compose import list_options
from search.objectives.base import Cost, Quality
from search.testing import CostContract, QualityContract
from tests.helpers.repository import ROOT


@cache
def written(name: str) -> dict[str, Any]:
    """What the YAML file says."""
    return OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "objective" / f"{name}.yaml"))


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
