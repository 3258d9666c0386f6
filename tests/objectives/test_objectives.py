"""Drift, PSNR and the costs against values by hand; test_every_objective.py has what all of them must do."""

import pytest
import torch

from search.objectives.drift import Drift
from search.objectives.latency import Latency
from search.objectives.macs import Macs
from search.objectives.memory import Memory
from search.objectives.psnr import Psnr
from search.profile.costs import Costs
from search.testing.models import tiny_model


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_drift_by_hand():
    teacher = torch.tensor([[[[3.0, 4.0]]]])
    assert float(Drift()(teacher + torch.tensor([0.0, 0.5]), teacher)[0]) == pytest.approx(0.1)


def test_psnr_by_hand(pictures):
    run = (pictures * 0.5) + 0.1
    mse = ((run - pictures) ** 2).mean((1, 2, 3))
    assert Psnr()(run, pictures).tolist() == pytest.approx((-10 * mse.log10()).tolist(), rel=1e-4)


def test_costs_of_the_teacher_are_their_worst_values():
    from search.models.base import to_schedule

    model = tiny_model()
    ms = {"run": 1.0, "denoiser": 2.0, "attn1": 0.1, "attn2": 0.1, "ff": 0.1}
    sizes = {n.name: 8 for n in model.target.tree}
    components = {n.name: 10 for n in model.target.tree if n.kind == "component"}
    costs = Costs(6, components, 5, sizes, ms)
    off = to_schedule(model, {})
    assert Macs()(off, costs) == 1.0 == Macs().worst(costs)
    assert Latency()(off, costs) == pytest.approx(Latency().worst(costs)) == pytest.approx(1 + 6 * (2 + 0.9))
    assert Memory()(off, costs) == 0.0 < Memory().worst(costs)


def test_latency_without_calibration_says_what_to_call():
    from search.calibrate.latency import add_latency
    from search.models.base import to_schedule

    with pytest.raises(ValueError, match="latency was not calibrated; call search.calibrate.latency.add_latency first"):
        Costs(6, {}, 1, {}).latency(to_schedule(tiny_model(), {}))
    assert callable(add_latency)


@pytest.mark.parametrize(("over", "expected"), [("mean", 3.0), ("median", 1.5), ("q90", 6.2), ("log", 2.0)])
def test_what_an_engine_is_given_of_several_prompts(over, expected):
    assert Drift(over).aggregate([1.0, 1.0, 2.0, 8.0]) == pytest.approx(expected)
    assert Drift(over).aggregate([0.0, 0.0, 0.0]) == 0.0


def test_the_worst_of_ten_prompts_is_the_lowest_where_more_is_better():
    values = [float(psnr) for psnr in range(20, 31)]
    assert Psnr("q90").aggregate(values) == pytest.approx(-21.0)
    with pytest.raises(ValueError, match=r"objective\.psnr\.over=log is for errors, of which less is better"):
        Psnr("log")
