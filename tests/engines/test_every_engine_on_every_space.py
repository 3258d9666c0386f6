"""Every engine on every space, from the proposals of a real model: it works, or one line says why not and what to type.

Spaces are those of conf/space: one more is here as soon as it has a YAML file. It runs on the first tiny model that it
applies to, which it says itself: `genes` raises ValueError on others.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate

from search.calibrate.propose.proposals import Proposals
from search.config.compose import compose_config, list_options, normalise_overrides
from search.engines.base import EngineInputs
from search.evaluate.evaluator import Evaluator
from search.evaluate.memo import Memo
from search.models.base import to_schedule
from search.objectives.drift import Drift
from search.objectives.macs import Macs
from search.schedule.apply.gaussian import Gaussian
from search.spaces.base import Space
from search.spaces.joint import JointSpace
from search.testing.models import save_tiny, tiny_family, tiny_model

PROMPTS = ["red apple", "blue boat"]
# Options that make a space small enough for a test, and spaces that are searched together. What is not here runs alone
# and as its YAML file says.
SMALL: dict[str, list[str]] = {
    "timesteps": ["form=sigma", "points=30"],
    "cache": ["max_order=0"],
    "bits": ["formats=[w8a8d,w4a8d]"],
    "guidance": ["scales=[0.5]", "branches=[O,R]"],
    "gates": ["granularity=constant"],
    "timesteps+solver": [],
    "cache+bits": ["cache.granularity=step", "bits.formats=[w8a8d]"],
    "skip+guidance": ["guidance.scales=[]", "guidance.branches=[O]"],
    "stitch+cache": ["cache.granularity=step"],
    "timesteps+solver+cache+skip+bits": ["cache.axis=logsnr"],
}
ALL = "timesteps+solver+cache+skip+bits"
SPACES = {name: SMALL.get(name, []) for name in [*list_options("space"), *SMALL]}
MODELS: dict[str, Callable[[], Any]] = {
    "pixart": lambda: tiny_model(steps=4),
    "unet": lambda: tiny_family("sd", steps=4),
    "with its Gaussian": lambda: with_gaussian(tiny_model(steps=4)),
    "beside a smaller one": lambda: tiny_model(steps=4, small=save_tiny(Path(mkdtemp()) / "small", blocks=1)),
}
ENGINES = tuple(list_options("engine"))
# Those that go by genes and scores alone: they work on every space.
GENERAL = (
    "anneal", "autodiffusion", "bayes", "ecad", "ecad_working", "nsga2", "nsga3", "predictor", "random", "unsga3",
)  # fmt: skip
# What the other engines say of the spaces that ship. Whatever is not here has to work.
NO_TABLE = "has no additive table: its genes do nothing alone, or there are too many levels; use engine=nsga2"
REFUSED = {
    ("milp", "timesteps"): f"the timesteps space {NO_TABLE}",
    ("milp", "solver"): f"the solver space {NO_TABLE}",
    ("milp", "cache"): f"the cache space {NO_TABLE}",
    ("milp", "timesteps+solver"): f"the timesteps space {NO_TABLE}",
    ("milp", "cache+bits"): f"the cache space {NO_TABLE}",
    ("milp", ALL): f"the timesteps space {NO_TABLE}",
    ("milp", "depth"): f"the depth space {NO_TABLE}",
    ("milp", "gates"): f"the gates space {NO_TABLE}",
    ("milp", "stitch+cache"): f"the cache space {NO_TABLE}",
    ("dp", "gates"): "the gates space has no table for dynamic programming",
    ("dp", "solver"): "the solver space has no table for dynamic programming",
    ("olss", "cache"): r"cache does neither; use \+space=\[timesteps,solver\], or engine=nsga2",
    ("olss", "skip"): "skip does neither",
    ("olss", "bits"): "bits does neither",
    ("olss", "guidance"): "guidance does neither",
    ("olss", "depth"): "depth does neither",
    ("olss", "gates"): "gates does neither",
    ("olss", "stitch"): "stitch does neither",
    ("olss", "stitch+cache"): r"stitch\+cache does neither",
    ("olss", "cache+bits"): r"cache\+bits does neither",
    ("olss", "skip+guidance"): r"skip\+guidance does neither",
    ("beam", "timesteps"): "space timesteps moves the steps or changes the solver; use engine=olss",
    ("beam", "solver"): "space solver moves the steps or changes the solver; use engine=olss",
    ("beam", "timesteps+solver"): "moves the steps or changes the solver; use engine=olss",
    ("beam", ALL): "moves the steps or changes the solver; use engine=olss",
    ("beam", "bits"): "space bits has no genes of steps; use engine=milp",
    ("beam", "cache+bits"): "has no genes of steps; use engine=milp",
    ("beam", "stitch"): "space stitch has no genes of steps; use engine=milp",
    ("beam", "stitch+cache"): "has no genes of steps; use engine=milp",
    ("beam", "gates"): "space gates has gates, which depend on the prompts; use engine=nsga2",
}
REFUSED |= {
    ("exhaustive", name): "more than limit 20000; use engine=nsga2, or raise engine.limit"
    for name in ("timesteps", "solver", "cache", "bits", "timesteps+solver", "cache+bits", "skip+guidance", ALL)
}
REFUSED |= (
    {
        (engine, name): f"{engine} reuses components, and .* reuses none"
        for engine in ("cachequant", "intervals", "smoothcache")
        for name in (
            "timesteps",
            "solver",
            "skip",
            "bits",
            "guidance",
            "timesteps+solver",
            "skip+guidance",
            "gates",
            "stitch",
        )
    }
    | {
        (engine, name): f"{engine} reuses whole component kinds.*use space.cache.granularity=component"
        for engine in ("cachequant", "intervals", "smoothcache")
        for name in ("cache+bits", "stitch+cache")
    }
    | {(engine, "depth"): f"{engine} reuses whole component kinds" for engine in ("cachequant", "smoothcache")}
)
DEAR = {("beam", "skip"), ("beam", "skip+guidance"), ("beam", "depth"), *((engine, ALL) for engine in ENGINES)}
PAIRS = [
    pytest.param(e, s, id=f"{e}-{s}", marks=[pytest.mark.slow] if (e, s) in DEAR else [])
    for e in ENGINES
    for s in SPACES
]

# An engine or a space that is not among these may refuse the others without being named above.
REVIEWED_ENGINES = {*GENERAL, "presets", *(engine for engine, _ in REFUSED)}
REVIEWED_SPACES = {name for _, name in REFUSED}


def with_gaussian(model: Any) -> Any:
    """The model and, under a letter, the Gaussian of two of its pictures."""
    model.add_gaussian("G", Gaussian.of(model.sample(PROMPTS, [0, 1]), rank=1))
    return model


@cache
def space_of(name: str) -> Space:
    """The space that people get by typing +space=[...] and these options."""
    names = name.split("+")
    given = [f"space.{option}" if len(names) > 1 else f"space.{name}.{option}" for option in SPACES[name]]
    config = compose_config(normalise_overrides([f"+space=[{','.join(names)}]", *given]))["space"]
    spaces = [instantiate(config[key]) for key in names]
    return spaces[0] if len(spaces) == 1 else JointSpace(spaces)


@cache
def probe_on(model: str) -> Evaluator:
    """Two prompts on a tiny pipeline."""
    made, memo = MODELS[model](), Memo(Path(mkdtemp()) / "memo.sqlite")
    return Evaluator(made, PROMPTS, [0, 1], {"drift": Drift(), "macs": Macs()}, made.costs(), memo)


@cache
def proposals(name: str) -> Proposals:
    space, reasons = space_of(name), []
    for model in MODELS:
        found = probe_on(model)
        try:
            space.genes(found.model.target)
        except ValueError as error:
            reasons.append(str(error))
        else:
            return Proposals(
                space, found.model.target, found.model, found, found.costs, list(found.objectives.values())
            )
    raise AssertionError(f"space {name} applies to none of {', '.join(MODELS)}: {reasons}")


@pytest.mark.parametrize(("engine", "name"), PAIRS)
def test_engine_on_space(engine: str, name: str) -> None:
    space, given = space_of(name), proposals(name)
    found, target = given.probe, given.target
    genes = space.genes(target)
    seeds = np.array(list(given.presets().values())[:4], dtype=np.int64).reshape(-1, len(genes))
    worst = np.array([1.0, 1.0])
    start = EngineInputs(genes, 2, np.random.default_rng(0), seeds, worst, given.methods(), given.table)
    config = compose_config(normalise_overrides([f"engine={engine}"]))["engine"] | {"_partial_": True}
    if (engine, name) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[engine, name]):
            instantiate(config)(start).begin()
        return
    try:
        made = instantiate(config)(start)
        made.begin()
    except ValueError as error:
        assert engine not in GENERAL and not (engine in REVIEWED_ENGINES and name in REVIEWED_SPACES), error
        assert "; use " in str(error), f"{error}: what is to be typed?"
        return
    asked: set[bytes] = set()
    for _ in range(3):
        rows = made.ask(4)
        assert not asked & {row.tobytes() for row in rows}
        asked |= {row.tobytes() for row in rows}
        scores = [found.scorer.minimised(found.values(_schedule(space, row, found))) for row in rows]
        made.tell(rows, np.array(scores).reshape(-1, 2))
    assert asked


def _schedule(space: Space, row: np.ndarray, probe: Evaluator) -> Any:
    return to_schedule(probe.model, space.decode(row, probe.model.target))
