"""Every experiment composes, can be overridden, and begins a search on a small model; names and plus signs."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate

from search.__main__ import main
from search.calibrate.propose.proposals import Proposals
from search.config.compose import compose_config, list_options, normalise_overrides
from search.config.settings import CONF, Config
from search.engines.base import EngineInputs
from search.evaluate.evaluator import Evaluator
from search.evaluate.memo import Memo
from search.objectives.base import Objective
from search.objectives.drift import Drift
from search.profile.count import count_costs
from search.spaces.joint import JointSpace
from search.testing.models import tiny_model

NAMES = list_options("experiment")
# What each work searches, and how.
EXPECTED = {
    "autodiffusion": (["timesteps", "skip"], "AutoDiffusionEngine", "presets"),
    "cachequant": (["cache", "bits"], "ProposalEngine", "none"),
    "ecad": (["cache"], "EcadEngine", "intervals"),
    "ecad_working": (["cache"], "EcadEngine", "intervals"),
    "fora": (["cache"], "ProposalEngine", "none"),
    "olss": (["timesteps", "solver"], "ProposalEngine", "none"),
    "s3": (["timesteps", "solver"], "PredictorEngine", "presets"),
    "smoothcache": (["cache"], "ProposalEngine", "none"),
    "taylorseer": (["cache"], "ProposalEngine", "none"),
}


def config(*arguments: str) -> Config:
    return Config.check(compose_config(normalise_overrides(list(arguments))))


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_composes_and_passes_the_check(name: str) -> None:
    found = config(f"+experiment={name}")
    assert found.space
    assert len(found.objective) > 1
    assert found.budget.evaluations <= 300  # small scale: minutes on two cores
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n# ")  # and a line that says which work it is


@pytest.mark.parametrize("name", EXPECTED)
def test_experiments_are_what_their_works_search(name: str) -> None:
    found = config(f"experiment={name}")
    engine = found.engine["_target_"].rpartition(".")[2]
    assert (list(found.space), engine, found.initial) == EXPECTED[name]
    assert not found.refit


def test_ecad_as_published_and_with_working_mutation_differ_in_mutation_alone() -> None:
    published, working = (config(f"+experiment={name}").model_dump() for name in ("ecad", "ecad_working"))
    changed = {key for key in published["engine"] if published["engine"][key] != working["engine"][key]}
    assert changed == {"mutation", "flips"}
    assert published | {"engine": None} == working | {"engine": None}
    engine = published["engine"]
    assert [engine[k] for k in ("population", "points", "crossover", "mutation", "flips")] == [72, 4, 0.9, 0.05, 1]
    assert (published["space"]["cache"]["granularity"], published["space"]["cache"]["max_order"]) == ("component", 0)


@pytest.mark.parametrize("name", NAMES)
def test_everything_may_be_overridden(name: str) -> None:
    options = ["engine=random", "budget.evaluations=5", "model=pixart_alpha_256", "objective=[ssim,macs]", "seed=3"]
    found = config(*options, f"experiment={name}", "initial=none")
    assert found.engine == {"_target_": "search.engines.random.RandomEngine"}
    assert (found.budget.evaluations, found.seed, found.initial) == (5, 3, "none")
    assert (found.model["name"], list(found.objective)) == ("pixart_alpha_256", ["ssim", "macs"])


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_the_space_of_an_experiment_may_be_another_one(plus: str) -> None:
    found = config("+experiment=ecad", f"{plus}space=[cache,bits]", "space.cache.max_order=1")
    assert list(found.space) == ["cache", "bits"]
    assert (found.space["cache"]["granularity"], found.space["cache"]["max_order"]) == ("component", 1)


def test_an_own_experiment_in_another_folder(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - ecad\n  - override /space: [cache, skip]\nseed: 7\n"
    )
    found = Config.check(compose_config(normalise_overrides(["experiment=mine"]), str(tmp_path)))
    assert (list(found.space), found.seed) == (["cache", "skip"], 7)


def test_an_unknown_experiment_is_told_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["+experiment=ecat"]) == 2
    told = capsys.readouterr().err
    assert "experiment=ecat is not an option. Did you mean ecad? Available options: autodiffusion, " in told
    assert all(re.search(rf"\b{name}\b", told) for name in NAMES)


# On a model


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    model = tiny_model(steps=5)
    costs = count_costs(model.denoiser, model.target.tree, model.target.steps, model.once)
    memo = Memo(Path(tmp_path_factory.mktemp("memo")) / "memo.sqlite")
    return Evaluator(model, ["red apple", "blue boat"], [0, 1], {"drift": Drift()}, costs, memo)


def proposals(found: Config, probe: Evaluator) -> tuple[Proposals, dict[str, Objective]]:
    parts = [instantiate(part) for part in found.space.values()]
    space = parts[0] if len(parts) == 1 else JointSpace(parts)
    objectives = {key: instantiate(part) for key, part in found.objective.items()}
    return Proposals(space, probe.model.target, probe.model, probe, probe.costs, list(objectives.values())), objectives


@pytest.mark.parametrize("name", EXPECTED)
def test_the_engine_begins_on_the_experiment_s_space(name: str, probe: Evaluator) -> None:
    found = config(f"+experiment={name}")
    given, objectives = proposals(found, probe)
    genes = given.space.genes(probe.model.target)
    worst = np.array([o.minimised(o.worst(probe.costs)) for o in objectives.values()])
    seeds = given.initial_rows(found.initial)
    assert bool(len(seeds)) == (found.initial != "none")
    start = EngineInputs(genes, 2, np.random.default_rng(0), seeds, worst, given.methods(), given.table)
    engine = instantiate(found.engine | {"_partial_": True})(start)
    rows = engine.ask(24)
    assert len(rows) > 3
    assert not rows[0].any()


def tokens(given: Proposals, row: np.ndarray) -> dict[str, str]:
    """Actions of every planned component of a row."""
    plan: Any = given.space.decode(row, given.target).get("plan", {"rules": []})
    return dict(plan["rules"])


def test_intervals_are_fora_and_parts_of_it(probe: Evaluator) -> None:
    given, _ = proposals(config("+experiment=fora"), probe)
    rows = [tokens(given, row) for row in given.methods()["intervals"]()]
    names = {node.name for node in given.target.tree if node.kind == "component"}
    assert {"CRCRC", "CRRCR", "CRRRC", "CRRRR"} == {text for row in rows for text in row.values()}
    assert all(len(set(row.values())) == 1 for row in rows)  # one N in every row
    assert dict.fromkeys(names, "CRRCR") in rows
    assert {name: "CRCRC" for name in names if name.endswith("attn2")} in rows
    assert {name: "CRCRC" for name in names if ":attn" in name} in rows
    fora = [x.tolist() for n, x in given.presets().items() if n.startswith("FORA")]
    assert len(fora) == 4


def test_a_higher_threshold_of_smoothcache_never_computes_more(probe: Evaluator) -> None:
    given, _ = proposals(config("+experiment=smoothcache"), probe)
    rows = [tokens(given, row) for row in given.methods()["smoothcache"]()]
    computed = [sum(text.count("C") for text in row.values()) - 5 * len(row) for row in rows]
    assert len(set(computed)) > 2
    assert computed == sorted(computed, reverse=True)


def test_cachequant_is_every_segmentation_with_and_without_bits(probe: Evaluator) -> None:
    given, _ = proposals(config("+experiment=cachequant"), probe)
    rows = given.methods()["cachequant"]()
    caches, bits = given.space.split(rows[0], given.target), given.space.spaces[1].presets(given.target)
    assert len(caches) == 2
    split = [tuple(part.tobytes() for part in given.space.split(row, given.target)) for row in rows]
    off = {tuple(bytes(len(part)) for part in split[0])}
    seen = [{pair[i] for pair in split} for i in (0, 1)]
    assert {(a, b) for a in seen[0] for b in seen[1]} - off == set(split)
    assert len(seen[1]) == 1 + len(bits)
    alone = [tokens(given, row) for row in rows if not given.space.split(row, given.target)[1].any()]
    assert all(len(set(row.values())) == 1 for row in alone)  # all components at once


def test_distances_are_those_of_the_outputs(probe: Evaluator) -> None:
    given, _ = proposals(config("+experiment=cachequant"), probe)
    outputs = []
    remover = given.model.denoiser.register_forward_hook(lambda _, __, out: outputs.append(out[0].double()))
    probe.run_teacher()
    remover.remove()
    table = given.tables.distances
    assert table.shape == (5, 5)
    for s, t in ((0, 0), (1, 3), (4, 2)):
        assert table[s, t] == pytest.approx(float((outputs[s] - outputs[t]).abs().sum()))
    before = len(outputs)
    probe.run_teacher()
    assert len(outputs) == before


@pytest.mark.parametrize(
    ("space", "begin", "told"),
    [
        ("skip", "intervals", r"intervals reuses components, and skip reuses none; use \+space=cache"),
        ("bits", "cachequant", "cachequant reuses components, and bits reuses none"),
        (
            "cache",
            "smoothcach",
            "initial=smoothcach is unknown; choose from proposals, none, .*example initial=presets",
        ),
    ],
)
def test_what_cannot_begin_is_told(space: str, begin: str, told: str, probe: Evaluator) -> None:
    given, _ = proposals(config(f"space={space}"), probe)
    with pytest.raises(ValueError, match=told):
        given.initial_rows(begin)


def test_a_granularity_without_kinds_is_told(probe: Evaluator) -> None:
    given, _ = proposals(config("space=cache", "space.cache.granularity=block"), probe)
    with pytest.raises(ValueError, match=r"smoothcache reuses whole .*use space\.cache\.granularity=component"):
        given.initial_rows("smoothcache")
