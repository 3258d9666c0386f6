"""Every engine on every space it applies to, from the proposals of a real model; or one line that says why not."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

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
from search.spaces.bits import BitsSpace
from search.spaces.cache import CacheSpace
from search.spaces.depth import DepthSpace
from search.spaces.gates import GatesSpace
from search.spaces.guidance import GuidanceSpace
from search.spaces.joint import JointSpace
from search.spaces.skip import SkipSpace
from search.spaces.solver import SolverSpace
from search.spaces.stitch import StitchSpace
from search.spaces.timesteps import TimestepsSpace
from search.testing.models import save_tiny, tiny_family, tiny_model

PROMPTS = ["red apple", "blue boat"]
SPACES = {
    "timesteps": TimestepsSpace("sigma", points=30),
    "solver": SolverSpace(),
    "cache": CacheSpace(max_order=0),
    "skip": SkipSpace(),
    "bits": BitsSpace(formats=("w8a8d", "w4a8d")),
    "guidance": GuidanceSpace(scales=(0.5,), branches=("O", "R")),
    "timesteps+solver": JointSpace([TimestepsSpace(), SolverSpace()]),
    "cache+bits": JointSpace([CacheSpace("step"), BitsSpace(formats=("w8a8d",))]),
    "skip+guidance": JointSpace([SkipSpace(), GuidanceSpace(scales=(), branches=("O",))]),
    "depth": DepthSpace(),
    "gates": GatesSpace(granularity="constant"),
    "stitch": StitchSpace(),
    "stitch+cache": JointSpace([StitchSpace(), CacheSpace("step")]),
    "all": JointSpace([TimestepsSpace(), SolverSpace(), CacheSpace(axis="logsnr"), SkipSpace(), BitsSpace()]),
}
ENGINES = tuple(list_options("engine"))
# What does not apply, and what the user is told. Everything else has to work.
NO_TABLE = "has no additive table: its genes do nothing alone, or there are too many levels; use engine=nsga2"
REFUSED = {
    ("milp", "timesteps"): f"the timesteps space {NO_TABLE}",
    ("milp", "solver"): f"the solver space {NO_TABLE}",
    ("milp", "cache"): f"the cache space {NO_TABLE}",
    ("milp", "timesteps+solver"): f"the timesteps space {NO_TABLE}",
    ("milp", "cache+bits"): f"the cache space {NO_TABLE}",
    ("milp", "all"): f"the timesteps space {NO_TABLE}",
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
    ("beam", "all"): "moves the steps or changes the solver; use engine=olss",
    ("beam", "bits"): "space bits has no genes of steps; use engine=milp",
    ("beam", "cache+bits"): "has no genes of steps; use engine=milp",
    ("beam", "stitch"): "space stitch has no genes of steps; use engine=milp",
    ("beam", "stitch+cache"): "has no genes of steps; use engine=milp",
    ("beam", "gates"): "space gates has gates, which decide by what is denoised; use engine=nsga2",
}
REFUSED |= {
    ("exhaustive", name): "more than limit 20000; use engine=nsga2, or raise engine.limit"
    for name in SPACES
    if name not in ("guidance", "skip", "depth", "gates", "stitch", "stitch+cache")
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
DEAR = {("beam", "skip"), ("beam", "skip+guidance"), *((engine, "all") for engine in ENGINES)}
PAIRS = [
    pytest.param(e, s, id=f"{e}-{s}", marks=[pytest.mark.slow] if (e, s) in DEAR else [])
    for e in ENGINES
    for s in SPACES
]


@cache
def probe(kind: str) -> Evaluator:
    """Two prompts on a tiny pipeline that the space applies to."""
    if kind == "depth":
        model = tiny_family("sd", steps=4)
    else:
        small = {"small": save_tiny(Path(mkdtemp()) / "small", blocks=1)} if kind == "stitch" else {}
        model = tiny_model(steps=4, **small)
    memo = Memo(Path(mkdtemp()) / "memo.sqlite")
    return Evaluator(model, PROMPTS, [0, 1], {"drift": Drift(), "macs": Macs()}, model.costs(), memo)


@cache
def proposals(name: str) -> Proposals:
    found = probe(name.partition("+")[0] if name.startswith(("depth", "stitch")) else "")
    target = found.model.target
    return Proposals(SPACES[name], target, found.model, found, found.costs, list(found.objectives.values()))


@pytest.mark.parametrize(("engine", "name"), PAIRS)
def test_engine_on_space(engine, name):
    space, given = SPACES[name], proposals(name)
    found, target = given.probe, given.target
    genes = space.genes(target)
    seeds = np.array(list(given.presets().values())[:4], dtype=np.int64).reshape(-1, len(genes))
    worst = np.array([1.0, 1.0])
    start = EngineInputs(genes, 2, np.random.default_rng(0), seeds, worst, given.methods(), given.table)
    config = compose_config(normalise_overrides([f"engine={engine}"]))["engine"] | {"_partial_": True}
    if (engine, name) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[engine, name]):
            instantiate(config)(start)
        return
    asked: set[bytes] = set()
    made = instantiate(config)(start)
    for _ in range(3):
        rows = made.ask(4)
        assert not asked & {row.tobytes() for row in rows}
        asked |= {row.tobytes() for row in rows}
        scores = [found.scorer.minimised(found.values(_schedule(space, row, found))) for row in rows]
        made.tell(rows, np.array(scores).reshape(-1, 2))
    assert asked


def test_every_space_is_here():
    assert set(list_options("space")) <= set(SPACES)


def _schedule(space, row, probe):
    return to_schedule(probe.model, space.decode(row, probe.model.target))
