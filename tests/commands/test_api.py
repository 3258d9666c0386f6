"""`import search`: light, complete, and each function does what the command of the same name does."""

import doctest
import importlib
import inspect
import subprocess
import sys
import types

import pytest
import torch

import search
from search import api
from search.__main__ import commands
from tests.helpers.finished_search import made_result


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_search_imports_nothing_heavy():
    heavy = ("torch", "diffusers", "numpy", "mlflow", "hydra", "pydantic", "scipy", "rich")
    assert fresh(f"import sys, search, search.api; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_every_public_name_is_there_and_listed():
    assert set(search.__all__) == {*api.__all__, "Schedule", "ScheduleError"}
    assert set(search.__all__) <= set(dir(search))
    for name in api.__all__:
        assert getattr(search, name) is getattr(api, name)


def test_an_unknown_name_is_named_with_those_there_are():
    with pytest.raises(AttributeError, match=r"no attribute 'serch'; public names are Schedule, .*best_within"):
        search.serch  # noqa: B018


@pytest.mark.parametrize("name", sorted({*commands()} & {*api.__all__}))
def test_importing_a_command_does_not_hide_the_function(name):
    module = importlib.import_module(f"search.{name}")
    assert isinstance(module, types.ModuleType) and callable(module.main)
    assert getattr(search, name) is getattr(api, name)


def test_other_modules_are_attributes_as_usual():
    importlib.import_module("search.config.hints")
    assert isinstance(search.config, types.ModuleType)


@pytest.mark.parametrize("name", api.__all__)
def test_functions_have_one_order_of_arguments_and_one_kind_of_help(name):
    function = getattr(api, name)
    parameters = list(inspect.signature(function).parameters.values())
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    kinds = (["schedule", "model"], ["run"], ["run", "pick"], ["limits", "run"], ["name"], ["pipe"], [])
    assert positional[:2] in kinds
    assert all(p.annotation is not p.empty for p in parameters)
    text = inspect.getdoc(function)
    for section in ("Args:", "Returns:", "Raises:", "Example:"):
        assert f"\n{section}\n" in text
    described = text.partition("Args:\n")[2].partition("Returns:")[0]
    assert all(f"    {p.name}: " in described for p in parameters)


@pytest.mark.slow
def test_the_examples_run(tmp_path, monkeypatch, root):
    result = made_result(tmp_path / "runs")
    monkeypatch.chdir(root)
    given = {"search": search, "run": str(result.folder), "folder": tmp_path}
    failed, tried = doctest.testmod(api, extraglobs=given, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried > 10 and not failed


@pytest.mark.slow
def test_a_search_by_names_and_its_progress(tmp_path, short_report):
    from search.testing.models import tiny_folder

    seen = []
    result = search.search(
        "model.steps=4", "model.max_sequence_length=8", f"model.path={tiny_folder()}", "tracking.enabled=false",
        "prompts.calibration_count=2", "prompts.held_out_count=2",
        model="pixart", space="cache", objective=["drift", "macs"], engine="random", seed=3, runs=tmp_path / "runs",
        certify={"criterion": "drift<=0.2", "runs": 32}, budget={"evaluations": 6},
        on_progress=lambda what, done, total: seen.append((what, done, total)),
    )  # fmt: skip
    assert result.folder.parent == tmp_path / "runs" and result.objectives == ["drift", "macs"]
    assert ("search", 6, 6) in seen and torch.is_grad_enabled()
    assert result.config["seed"] == 3 and result.config["engine"]["_target_"].endswith("RandomEngine")
    check_certificates_by_hand(result)


def check_certificates_by_hand(result):
    """Every count of misses is that of the same runs on the stock pipeline, and the worst of them is the worst run."""
    from search.config.prompts import read_prompts
    from search.objectives.drift import Drift
    from search.testing.models import tiny_model

    model = tiny_model(steps=4)
    prompts, seeds = read_prompts("emoji_held_out.txt")[:32], list(range(10_000, 10_032))
    teacher = model.sample(prompts, seeds)
    front = result.of("front")
    assert any(e.tested and e.tested.certified for e in front) and result.certify["new_runs"] >= 30
    for entry in front:
        with entry.schedule.apply(model.pipe):
            drifts = Drift()(model.sample(prompts, seeds), teacher)
        assert (entry.schedule.certificate is not None) == bool(entry.tested and entry.tested.certified)
        if entry.tested:
            assert entry.tested.misses == int((drifts[: entry.tested.runs] > 0.2).sum())
            if entry.tested.certified:
                assert entry.worst.value == pytest.approx(float(drifts.max()), rel=1e-4)
                assert entry.worst.seed == seeds[int(drifts.argmax())]
    certificate = result.best.schedule.certificate
    assert (certificate.runs, certificate.prompts, certificate.noises) == (32, 32, 1)
    computed = [step for step in (1, 2) if result.best.schedule.plan.tokens["denoiser"][step] == "C"]
    assert (certificate.monitor.steps if certificate.monitor else []) == computed  # the last one is not judged
    assert not computed or certificate.monitor.runs == 32 - certificate.misses
