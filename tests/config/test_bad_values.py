"""Wrong values are found when the command line is read, before anything is loaded: one line that says what to type."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from search.__main__ import main
from search.config.compose import compose_config, list_options, normalise_overrides
from search.config.device import resolve_device
from search.config.settings import Config
from search.engines.base import Engine
from search.engines.check import check_engine
from search.loop.components import make_components
from tests.helpers.repository import ROOT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["engine=nsga2", "engine.population=1"], "population 1 is too small; use engine.population=24"),
        (["engine=nsga2", "engine.population=abc"], "engine.population=abc: give a valid integer"),
        (["engine=nsga2", "engine.population=2.5"], "engine.population=2.5: give a valid integer"),
        (["engine=nsga2", "engine.population=true"], "engine.population=True: give a valid integer"),
        (["engine=nsga2", "engine.population=1000000000"], "give a number of at most 1000000"),
        (["engine=ecad", "engine.mutation=nan"], "engine.mutation=nan: give a number of at most 1000000"),
        (["+engine.foo=3"], "there is no engine.foo of PredictorEngine; its arguments: engine.population, engine."),
        (["engine=bayes", "engine.sampler=grid"], "engine.sampler=grid: give 'tpe' or 'gp'"),
        (["engine=[nsga2,dp]"], r"engine=[nsga2,dp]: give one name; only space and objective take several"),
        (["model=[pixart,dit]"], r"model=[pixart,dit]: give one name; only space and objective take several"),
        (["+space=[cache,cache]"], "space=[cache,cache]: cache is named twice"),
        (["objective=[drift,drift]"], "objective=[drift,drift]: drift is named twice"),
        (["+space=bits", "+space.bits.foo=3"], "there is no space.bits.foo of BitsSpace; its arguments: space.bits.f"),
        (["+space=bits", "space.bits.elide=7"], "space.bits.elide=7: give a valid boolean"),
        (["+space=cache", "space.cache.max_order=abc"], "space.cache.max_order=abc: give a valid integer"),
        (["+space=cache", "space.cache.axis=abc"], "space.cache.axis=abc: give 'index', 'timestep', 'sigma' or 'logs"),
        (["objective=[drift,mmd]", "objective.mmd.width=abc"], "objective.mmd.width=abc: give a valid number"),
        (["objective=[drift,mmd]", "objective.mmd.width=inf"], "objective.mmd.width=inf: give a number of at most 1."),
        (["objective=[drift,psnr]", "+objective.psnr.foo=1"], "there is no objective.psnr.foo of Psnr; its argume"),
        (["guard=[mmd]", "guard.mmd.width=[1]"], "guard.mmd.width=[1]: give a valid number"),
        (
            ["certify.share=0.99"],
            "certify: a share of 0.99 at a confidence of 0.95 takes 304 runs or more",
        ),
        (["certify=psnr>=30", "certify.share=1"], "certify.share=1: give a number from 0.01 to 0.9999"),
        (["certify=lpips<=0.1"], "certify: 'lpips<=0.1': there is no score 'lpips'; there are drift, psnr, ssim, clip"),
        (["space={a:1}"], "space={a:1}: give the name of an option, as --help lists them"),
    ],
)
def test_one_line_before_anything_is_loaded(arguments, message, capsys, tmp_path):
    assert main([*arguments, f"runs={tmp_path / 'runs'}"]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert not (tmp_path / "runs").exists()


def test_engines_are_checked_without_torch():
    code = (
        "import sys; from search.__main__ import main\n"
        "assert main(['engine=nsga2', 'engine.population=1']) == 2\n"
        "assert not {'torch', 'diffusers'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", list_options("engine"))
def test_every_engine_passes_with_its_defaults(name):
    config = Config.check(compose_config(normalise_overrides([f"engine={name}"])))
    check_engine(config.engine, 2)
    check_engine(config.engine, 3)


class Own(Engine):
    """Somebody's own engine, whose constructor refuses something."""

    def __init__(self, start, depth: int = 2, words: list[str] | None = None):
        if depth > 5:
            raise ValueError(f"depth {depth} is too deep")

    def ask(self, n):
        return np.zeros((0, 1), dtype=int)

    def state(self):
        return {}

    def restore(self, state):
        pass


def test_engines_of_other_people_are_checked_alike():
    target = f"{__name__}.Own"
    check_engine({"_target_": target, "depth": 3, "words": ["a"]}, 2)
    with pytest.raises(ValueError, match="depth 6 is too deep"):
        check_engine({"_target_": target, "depth": 6}, 2)
    with pytest.raises(ValueError, match="engine.words=7: give a valid list"):
        check_engine({"_target_": target, "words": 7}, 2)
    with pytest.raises(ValueError, match="'nowhere.Engine' cannot be imported: No module named 'nowhere'"):
        check_engine({"_target_": "nowhere.Engine"}, 2)
    with pytest.raises(ValueError, match="'builtins.dict' is not a subclass of search.engines.base.Engine"):
        check_engine({"_target_": "builtins.dict"}, 2)


@pytest.mark.parametrize("section", ["space", "objective"])
def test_every_space_and_objective_passes_with_its_defaults(section):
    names = [name for name in list_options(section) if name not in ("lpips", "reward")]  # which need more
    raw = compose_config(normalise_overrides([f"{section}=[{','.join(names)}]"]))
    assert set(make_components(section, Config.check(raw).model_dump()[section])) == set(names)


class OwnSpace:
    """Somebody's own space, whose types pydantic does not know or cannot be looked up."""

    def __init__(self, table: torch.Tensor | None = None, **more: object) -> None:
        self.more = more


class OwnObjective:
    def __init__(self, path: "Nowhere" = None) -> None:  # noqa: F821
        self.path = path


def test_classes_of_other_people_are_checked_alike():
    made = make_components("space", {"own": {"_target_": f"{__name__}.OwnSpace", "anything": 3}})
    assert made["own"].more == {"anything": 3}
    with pytest.raises(ValueError, match=r"space.own.table=3: give an instance of Tensor"):
        make_components("space", {"own": {"_target_": f"{__name__}.OwnSpace", "table": 3}})
    made = make_components("objective", {"own": {"_target_": f"{__name__}.OwnObjective", "path": 3}})
    assert made["own"].path == 3
    nested = {"_target_": f"{__name__}.OwnObjective", "path": {"_target_": f"{__name__}.OwnObjective"}}
    assert isinstance(make_components("objective", {"own": nested})["own"].path, OwnObjective)


def test_devices_that_are_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    for name in ("cuda", "cuda:0", "cuda:99"):
        with pytest.raises(ValueError, match=f"compute.device={name}: this machine has cpu"):
            resolve_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == "cuda" and resolve_device("cuda:1") == "cuda:1"
    with pytest.raises(ValueError, match=r"compute.device=cuda:2: this machine has cpu, cuda:0, cuda:1"):
        resolve_device("cuda:2")
