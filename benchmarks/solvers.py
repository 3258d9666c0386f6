"""python -m benchmarks.solvers: diffusers' schedulers at their best spacing against searched timesteps and solvers.

Few denoiser calls (NFE) are compared in two places: the bundled model, by the drift of its final latents to the
pipeline's own 20 steps on held-out prompts and noise; and a Gaussian mixture whose denoiser is exact, by the RMSE to
the probability flow solved finely, on held-out noise. All that is chosen (a scheduler's spacing, a search's
candidate) is chosen on calibration data. Every part is kept in runs/solvers/*.json and not run again while it is
there. Writes docs/benchmarks/solvers.md and docs/images/benchmark_solvers.png.
"""

import argparse
import hashlib
import inspect
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from hydra.utils import instantiate
from rich.console import Console
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from search.config.compose import compose_config
from search.config.settings import Config
from search.engines.base import EngineInputs
from search.engines.nsga2 import Nsga2Engine
from search.evaluate.evaluator import Evaluator
from search.evaluate.fit.solver import RIDGE, FittedSolver, Trajectory
from search.evaluate.memo import Memo
from search.exact.paths import reach_paths
from search.loop.search import Search
from search.loop.state import SearchState
from search.models.base import to_schedule
from search.objectives.drift import Drift
from search.profile.target import Target
from search.schedule.apply.clock import Clock
from search.schedule.apply.linear_solver import LinearSolver
from search.schedule.apply.scheduler import plan_scheduler
from search.schedule.model.nodes import Tree
from search.schedule.noise import Noise
from search.schedule.schedulers import GRIDDED, public_config, scheduler_grid
from search.solvers.trace import trace_scheduler
from search.spaces.timesteps import TimestepsSpace, spacings
from tests.helpers.mixture import Mixture

NFES, SEEDS, BATCH, TARGET = (5, 8, 10), 5, 24, 0.5
KEPT = 4000  # denoiser outputs, 0.1 MB each
HELD_OUT = 10_000  # first seed of the held-out noise
Denoise = Callable[[Tensor, Tensor], Tensor]

# The two problems' own configurations, and diffusers' schedulers: name, class, what else it is given.
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 2.0}
NOISE = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
SHARED = [
    ("DPM-Solver++ 1", "DPMSolverMultistep", {"solver_order": 1}),
    ("DPM-Solver++ 2M", "DPMSolverMultistep", {"solver_order": 2}),
    ("DPM-Solver++ 2M heun", "DPMSolverMultistep", {"solver_order": 2, "solver_type": "heun"}),
    ("DPM-Solver++ 3M", "DPMSolverMultistep", {"solver_order": 3}),
    ("DPM-Solver 2M", "DPMSolverMultistep", {"solver_order": 2} | NOISE),
    ("DPM-Solver 3M", "DPMSolverMultistep", {"solver_order": 3} | NOISE),
    ("DPM-Solver++ 2S", "DPMSolverSinglestep", {"solver_order": 2, "lower_order_final": True}),
    ("DPM-Solver++ 3S", "DPMSolverSinglestep", {"solver_order": 3, "lower_order_final": True}),
    ("UniPC 1", "UniPCMultistep", {"solver_order": 1}),
    ("UniPC 2", "UniPCMultistep", {"solver_order": 2}),
    ("UniPC 3", "UniPCMultistep", {"solver_order": 3}),
    ("DEIS 2", "DEISMultistep", {"solver_order": 2}),
    ("DEIS 3", "DEISMultistep", {"solver_order": 3}),
]
OF_FLOW = [
    ("FlowMatchEuler", "FlowMatchEulerDiscrete", {"shift": 2.0}),
    ("FlowMatchHeun", "FlowMatchHeunDiscrete", {"shift": 2.0}),
]
OF_EPSILON = [
    ("DPM-Solver++ 3M heun", "DPMSolverMultistep", {"solver_order": 3, "solver_type": "heun"}),
    ("DPM-Solver 2S", "DPMSolverSinglestep", {"solver_order": 2, "lower_order_final": True} | NOISE),
    ("DPM-Solver 3S", "DPMSolverSinglestep", {"solver_order": 3, "lower_order_final": True} | NOISE),
    ("UniPC 2 noise", "UniPCMultistep", {"solver_order": 2, "predict_x0": False, "final_sigmas_type": "sigma_min"}),
    ("UniPC 3 noise", "UniPCMultistep", {"solver_order": 3, "predict_x0": False, "final_sigmas_type": "sigma_min"}),
    ("DDIM", "DDIM", {"clip_sample": False}),
    ("PNDM", "PNDM", {"skip_prk_steps": True}),
    ("Euler", "EulerDiscrete", {}),
    ("Heun", "HeunDiscrete", {}),
    ("LMS", "LMSDiscrete", {}),
]
OWN = {  # spacings that classes bring themselves, where they take these arguments
    "own": {},
    "own linspace": {"timestep_spacing": "linspace"},
    "own leading": {"timestep_spacing": "leading"},
    "own trailing": {"timestep_spacing": "trailing"},
    "own Karras": {"use_karras_sigmas": True},
    "own shift 0.5": {"flow_shift": 0.5, "shift": 0.5},
}
OF_KIND = {"flow": ("own", "own shift 0.5"), "vp": [name for name in OWN if "shift" not in name]}

# Searches on the model: name in the table, its space, overrides. The last is what `python -m search` does.
SEARCHES = {
    "timesteps": ("timesteps", ["refit=false"]),
    "timesteps + solver": ("[timesteps,solver]", ["refit=false"]),
    "OLSS": ("[timesteps,solver]", ["refit=false", "engine=olss"]),
    "default (refitted)": ("[timesteps,solver]", []),
}
FITTED = ("OLSS", "timesteps", "timesteps, fitted")  # on the mixture
OURS = {"model": "default (refitted)", "mixture": "timesteps, fitted"}
AS_IT_COMES = {"model": "the pipeline's own", "mixture": "2M as it comes"}  # without any choice


# diffusers' own schedulers


def stock(scheduler: Any, steps: int, denoise: Denoise, noise: Tensor) -> Tensor:
    """Where a scheduler leads to, as pipelines run it."""
    scheduler.set_timesteps(steps)
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(denoise(scaled, t), t, x, return_dict=False)[0]
    return x


def variants(class_name: str, config: Mapping[str, Any], noise: Noise, nfe: int) -> Iterator[tuple[str, Any, int]]:
    """A class on every spacing that it can run, and with how many steps it calls the denoiser `nfe` times at most."""
    cls = getattr(diffusers, f"{class_name}Scheduler")
    known = inspect.signature(cls.__init__).parameters
    base = cls.from_config({k: v for k, v in config.items() if k in known})
    for name in OF_KIND[noise.kind]:
        extra = {k: v for k, v in OWN[name].items() if k in known}
        if extra or name == "own":
            scheduler = cls.from_config({k: v for k, v in {**config, **extra}.items() if k in known})
            for steps in range(nfe, 0, -1):  # Heun's calls twice a step, PNDM's once more than there are steps
                scheduler.set_timesteps(steps)
                if len(scheduler.timesteps) <= nfe:
                    break
            yield name, scheduler, steps
    if cls.__name__ not in GRIDDED:
        return
    for name, places in spacings(noise, nfe):
        places = np.round(places) if class_name == "DDIM" else places
        end = (scheduler_grid(base, nfe)[1] or [0.0])[-1]
        if noise.kind == "flow" and end > 0:
            end = float(noise.sigma(1)) / 10  # such a class's own grid ends where its last step begins; 0 it cannot
        sigmas = None if class_name == "DDIM" else [*(float(noise.sigma(t)) for t in places), end]
        planned = plan_scheduler(base, Clock(), steps=None, timesteps=places.tolist(), sigmas=sigmas)
        yield name, planned, nfe


def at_best(
    class_name: str, config: Mapping[str, Any], noise: Noise, nfe: int, score: Callable[..., float]
) -> tuple[dict[str, Any], tuple[Any, int] | None]:
    """Every spacing's calibration score, and the scheduler with the best."""
    found: dict[str, Any] = {"calibration": {}, "calls": 0, "failed": {}}
    runs = {}
    for name, scheduler, steps in variants(class_name, config, noise, nfe):
        try:
            value = score(scheduler, steps)
        except (ArithmeticError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            found["failed"][name] = f"{type(error).__name__}: {error}"
            continue
        if np.isfinite(value):
            found["calibration"][name], runs[name] = value, (scheduler, steps)
            found["calls"] += len(scheduler.timesteps)
        else:
            found["failed"][name] = "not finite"
    found["spacing"] = min(runs, key=lambda name: found["calibration"][name], default=None)
    return found, runs.get(found["spacing"])


# The bundled model


class OnModel:
    """Searches and schedulers on the bundled model, prepared once for each space."""

    kind = "flow"

    def __init__(self, evaluations: int) -> None:
        self.evaluations = evaluations
        self.folder = Path(tempfile.mkdtemp(prefix="solvers"))
        self.proposed: dict[str, np.ndarray] = {}
        self.searches = {space: self._prepare(space) for space in dict(SEARCHES.values())}
        search = next(iter(self.searches.values()))
        self.model, costs = search.model, search.state.costs
        self.calibration = search.evaluator
        seeds = list(range(HELD_OUT, HELD_OUT + len(search.held_out)))
        self.held_out = Evaluator(self.model, search.held_out, seeds, {"drift": Drift()}, costs, Memo(Path(":memory:")))
        for one in self.searches.values():
            _remember(one.model)

    def _prepare(self, space: str) -> Search:
        overrides = [
            f"+space={space}",
            "tracking.enabled=false",
            "certify=off",
            f"budget.evaluations={self.evaluations}",
        ]
        search = Search(Config.check(compose_config(overrides)), Console(quiet=True))
        folder = self.folder / space
        folder.mkdir()
        search.prepare(folder)
        if "solver" in space:
            self.proposed[space] = search.state.inputs.proposals["olss"]()
        return search

    def scheduler(self, name: str, class_name: str, arguments: Mapping[str, Any], nfe: int) -> dict[str, Any]:
        """Held-out drift at the spacing with the least calibration drift."""

        def drift(evaluator: Evaluator, scheduler: Any, steps: int) -> float:
            pipe, call = self.model.pipe, {"num_inference_steps": steps}
            own, pipe.scheduler = pipe.scheduler, scheduler
            try:
                parts = [self.model.sample(prompts, seeds, **call) for prompts, seeds in evaluator.inputs]
            finally:
                pipe.scheduler = own
            return float(Drift()(torch.cat(parts), evaluator.teacher).mean())

        score = partial(drift, self.calibration)
        found, best = at_best(class_name, FLOW | arguments, self.model.target.noise, nfe, score)
        found["calls"] *= len(self.calibration.prompts)
        return found | {"values": {str(nfe): drift(self.held_out, *best) if best else None}}

    def search(self, name: str, seed: int) -> dict[str, Any]:
        """One search; for every number of steps the held-out drift of what calibration says is best."""
        space, overrides = SEARCHES[name]
        search = self.searches[space]
        raw = [
            f"+space={space}",
            "tracking.enabled=false",
            "certify=off",
            f"budget.evaluations={self.evaluations}",
            *overrides,
        ]
        search.config = Config.check(compose_config([*raw, f"seed={seed}"]))
        search.memo = Memo(search.folder / "memo.sqlite")  # a connection of this process
        search.evaluator.memo = search.memo
        before = search.state
        rows = self.proposed.get(space, np.zeros((0, 0), dtype=np.int64))
        start = replace(before.inputs, rng=np.random.default_rng(seed), proposals={"olss": lambda: rows})
        engine = instantiate(search.config.engine | {"_partial_": True})(start)
        spent = before.block_executions, before.unshared
        search.state = SearchState(engine, start, before.costs, before.presets, *spent)
        search.checkpoint = self.folder / f"{name.replace(' ', '')}-{seed}.bin"
        began = time.perf_counter()
        search.loop()
        archive, state = list(search.state.archive.values()), search.state
        search.state = before
        found: dict[str, Any] = {"values": {}, "calibration": {}, "steps": {}}
        for nfe in NFES:
            within = [a for a in archive if round(a["values"]["macs"][0] * search.model.target.steps) <= nfe]
            best = min(within, key=lambda a: a["scores"][0])
            schedule = search.candidates.plain_schedule(best["x"])
            found["values"][str(nfe)] = float(np.mean(self.held_out.values(schedule)["drift"]))
            found["calibration"][str(nfe)], found["steps"][str(nfe)] = best["scores"][0], schedule.steps
        counts = {"evaluations": state.asked, "block_executions": state.block_executions}
        return found | counts | {"seconds": time.perf_counter() - began}

    def own(self) -> dict[str, Any]:
        """The pipeline's own scheduler with fewer steps."""
        values = {}
        for nfe in NFES:
            schedule = to_schedule(self.model, {"steps": nfe, "sampler": self.model.shorter(nfe)})
            values[str(nfe)] = float(np.mean(self.held_out.values(schedule)["drift"]))
        return {"values": values}


def _remember(model: Any) -> None:
    """Calls with equal inputs, as in runs that begin alike, are made once: no space here changes the denoiser."""
    plain = model.denoiser.forward
    known: dict[bytes, Any] = {}

    def forward(hidden_states: Tensor, **given: Any) -> Any:
        given_too = [given[name] for name in ("timestep", "encoder_hidden_states", "encoder_attention_mask")]
        inputs = (v.numpy().tobytes() for v in (hidden_states, *given_too))
        key = hashlib.sha256(b"|".join(inputs)).digest()
        found = known.pop(key) if key in known else plain(hidden_states, **given)
        known[key] = found  # the latest stands last
        if len(known) > KEPT:
            known.pop(next(iter(known)))
        return found

    model.denoiser.forward = forward


# The Gaussian mixture


class OnMixture:
    """epsilon-prediction on the VP schedule of DDPM, exact; states in float64."""

    kind = "vp"
    dimensions, components, training, held = 8, 4, 256, 1024

    def __init__(self, evaluations: int) -> None:
        self.evaluations, self.steps = evaluations, 20
        self.mixture = Mixture.random(self.dimensions, self.components, seed=0)
        self.own_scheduler = scheduler = diffusers.DPMSolverMultistepScheduler()
        timesteps, sigmas = scheduler_grid(scheduler, self.steps)
        sampler = {"class": type(scheduler).__name__, "config": public_config(scheduler), "timesteps": timesteps}
        self.target = Target(
            "mixture",
            Tree("PixArtTransformer2DModel", {"transformer_blocks": 1}),
            self.steps,
            {},
            sampler | {"sigmas": sigmas},
        )
        self.noise, self.space = self.target.noise, TimestepsSpace()
        self.starts = {seed: self._draw(seed, self.training if not seed else self.held) for seed in self._seeds()}
        self.ends = {seed: self._end(start) for seed, start in self.starts.items()}
        self.teacher = self._trajectory(self.starts[0])
        self.paths = self._paths()

    @staticmethod
    def _seeds() -> list[int]:
        return [0, *range(HELD_OUT, HELD_OUT + SEEDS)]

    def _draw(self, seed: int, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, self.dimensions, generator=generator, dtype=torch.float64)

    def _denoise(self, x: Tensor, t: Any) -> Tensor:
        alpha, sigma = self.noise.scales(self.noise.sigma(float(t)))
        return self.mixture.epsilon(x.double(), float(alpha), float(sigma)).to(x.dtype)

    def _scales(self, sigma: float) -> tuple[float, float]:
        alpha, scale = self.noise.scales(sigma)
        return float(alpha), float(scale)

    def _end(self, start: Tensor) -> Tensor:
        """The flow from the last training timestep to sigma 0."""
        near = self._scales(1e-4)
        x = self.mixture.flow(start, self._scales(float(self.noise.sigmas[-1])), near)
        return self.mixture.x0(x, *near)

    def _trajectory(self, start: Tensor) -> Trajectory:
        """The flow from the training noise, fine enough to be interpolated."""
        places = [*range(999, 0, -8), 0]
        sigmas = [float(self.noise.sigmas[t]) for t in places]
        states = [start]
        for a, b in zip(sigmas, sigmas[1:], strict=False):
            states.append(self.mixture.flow(states[-1], self._scales(a), self._scales(b)))
        outputs = [self.mixture.epsilon(x, *self._scales(s)) for x, s in zip(states, sigmas, strict=True)]
        return Trajectory(self.noise, [*sigmas, 0.0], torch.stack([*states, self.ends[0]]), torch.stack(outputs))

    def _paths(self) -> dict[int, np.ndarray]:
        """OLSS's rows through that trajectory, by number of steps at most."""
        states, outputs = (v.flatten(1).numpy() for v in (self.teacher.states, self.teacher.outputs))
        timesteps = self.noise.timestep(np.array(self.teacher.sigmas[:-1]))
        counts = range(2, self.steps)
        paths = reach_paths(states, outputs, counts)
        return {
            count: self.space.encode_timesteps([float(timesteps[i]) for i in path], self.target)
            for count, path in zip(counts, paths, strict=True)
        }

    def scheduler(self, name: str, class_name: str, arguments: Mapping[str, Any], nfe: int) -> dict[str, Any]:
        """Held-out RMSE at the spacing with the least RMSE on the training noise."""

        def rmse(seed: int, scheduler: Any, steps: int) -> float:
            return self._rmse(stock(scheduler, steps, self._denoise, self.starts[seed]), seed)

        config = {"beta_schedule": "linear"} | arguments
        found, best = at_best(class_name, config, self.noise, nfe, partial(rmse, 0))
        found["calls"] *= self.training
        values = [rmse(seed, *best) if best else None for seed in self._seeds()[1:]]
        return found | {"values": {str(nfe): values}}

    def _rmse(self, found: Tensor, seed: int) -> float:
        return float((found.double() - self.ends[seed]).square().mean().sqrt())

    def _run(self, solver: LinearSolver, timesteps: Sequence[float], seed: int) -> Tensor:
        x = self.starts[seed]
        for i, t in enumerate(timesteps):
            x = solver.step(i, self._denoise(x, t), x)
        return x

    def table(self, row: np.ndarray, fitted: bool) -> tuple[list[float], LinearSolver, float]:
        """Timesteps, solver and RMSE on the training noise of a row."""
        sampler = self.target.sampler | self.space.decode(row, self.target).get("sampler", {})
        timesteps, sigmas = sampler["timesteps"], sampler["sigmas"]
        part = trace_scheduler(self.own_scheduler, timesteps=timesteps, sigmas=sigmas).part()
        plain = LinearSolver(part["state"], part["outputs"])
        if not fitted:
            return timesteps, plain, self._rmse(self._run(plain, timesteps, 0), 0)
        goals = [self.teacher.state(sigma) for sigma in sigmas[1:]]
        solver = FittedSolver(part["state"], part["outputs"], goals, RIDGE)
        score = self._rmse(self._run(solver, timesteps, 0), 0)
        return timesteps, LinearSolver(solver.state, solver.outputs), score

    def search(self, name: str, seed: int) -> dict[str, Any]:
        """One search, or OLSS's rows alone; held-out noise number `seed` of what training noise says is best."""
        began, calls, found = time.perf_counter(), 0, []
        fitted = name != "timesteps"
        if name == "OLSS":
            found = [(row, *self.table(row, True)) for row in self.paths.values()]
            calls = sum(len(one[1]) for one in found)
        else:
            seeds = np.unique([*self.space.presets(self.target).values(), *self.paths.values()], axis=0)
            start = EngineInputs(
                self.space.genes(self.target), 2, np.random.default_rng(seed), seeds, np.array([10.0, 1.0])
            )
            engine = Nsga2Engine(start)
            while len(found) < self.evaluations:
                rows = engine.ask(min(BATCH, self.evaluations - len(found)))
                new = [(row, *self.table(row, fitted)) for row in rows]
                engine.tell(rows, np.array([[score, len(t) / self.steps] for _, t, _, score in new]))
                found += new
                calls += sum(len(one[1]) for one in new)
        values = {}
        for nfe in NFES:
            _, timesteps, solver, _ = min((f for f in found if len(f[1]) <= nfe), key=lambda f: f[3])
            held = HELD_OUT + seed
            values[str(nfe)] = self._rmse(self._run(solver, timesteps, held), held)
        return {
            "values": values,
            "evaluations": len(found),
            "calls": calls * self.training,
            "seconds": time.perf_counter() - began,
        }

    def own(self) -> dict[str, Any]:
        """DPM-Solver++ 2M as it comes."""
        values: dict[str, list[float]] = {}
        for nfe in NFES:
            for seed in self._seeds()[1:]:
                ended = stock(self.own_scheduler, nfe, self._denoise, self.starts[seed])
                values.setdefault(str(nfe), []).append(self._rmse(ended, seed))
        return {"values": values}


# Tables and the figure


class Results:
    """What the JSON files of one place say: values [seeds] by method and NFE."""

    def __init__(self, folder: Path, place: str) -> None:
        self.place = place
        self.stock: dict[str, dict[int, list[float]]] = {}
        self.ours: dict[str, dict[int, list[float]]] = {}
        self.own: dict[int, list[float]] = {}
        self.spacing: dict[tuple[str, int], str] = {}
        self.searched: dict[str, list[dict[str, Any]]] = {}
        self.calls = 0
        for job in jobs():
            file = _file(folder, *job)
            if job[0] != place or not file.exists():
                continue
            found = json.loads(file.read_text())
            methods = self.stock if job[1] == "scheduler" else self.ours
            rows = self.own if job[1] == "own" else methods.setdefault(job[2], {})
            for nfe, value in found["values"].items():
                values = value if isinstance(value, list) else [value]
                if None not in values:
                    rows.setdefault(int(nfe), []).extend(values)
            if job[1] == "scheduler":
                self.spacing[job[2], int(job[3])] = found["spacing"]
                self.calls += found["calls"]
            elif job[1] == "search":
                self.searched.setdefault(job[2], []).append(found)
        self.stock = {k: v for k, v in self.stock.items() if v}

    def ordered(self) -> list[str]:
        """diffusers' schedulers, the best first, by the geometric mean over NFE."""
        return sorted(self.stock, key=lambda name: np.mean([np.log(np.median(v)) for v in self.stock[name].values()]))

    def best(self, nfe: int) -> str:
        return min(self.stock, key=lambda name: np.median(self.stock[name].get(nfe, np.inf)))

    def ratios(self, nfe: int) -> np.ndarray:
        """Ours by the best of diffusers' (chosen on the held-out values themselves), seed by seed."""
        return np.array(self.ours[OURS[self.place]][nfe]) / np.array(self.stock[self.best(nfe)][nfe])

    def lines(self) -> list[str]:
        head = ["method", *(f"{nfe} NFE" for nfe in NFES)]
        rows = [[AS_IT_COMES[self.place], *(_spread(self.own[nfe]) for nfe in NFES)]]
        for name in self.ordered():
            cells = [f"{_spread(self.stock[name][nfe])} {self.spacing[name, nfe]}" for nfe in NFES]
            rows.append([f"diffusers {name}", *cells])
        for name, values in self.ours.items():
            label = f"**{name}**" if name == OURS[self.place] else name
            seeds = len(self.searched[name])
            if seeds < SEEDS and (self.place, name) != ("model", "OLSS"):
                label += f", {seeds} of {SEEDS} seeds"
            rows.append([f"ours: {label}", *(_spread(values[nfe]) for nfe in NFES)])
        rows.append(["best of diffusers", *(self.best(nfe) for nfe in NFES)])
        rows.append(["**ours / best of diffusers**", *(f"**{_spread(list(self.ratios(nfe)))}**" for nfe in NFES)])
        rows.append(["range over seeds", *(f"{min(r):.2f}–{max(r):.2f}" for r in map(self.ratios, NFES))])
        told = ["yes" if max(self.ratios(nfe)) <= TARGET else "no" for nfe in NFES]
        rows.append([f"at most {TARGET:g} with every seed", *told])
        return ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]

    def cost(self) -> str:
        """What the searches cost."""
        if self.place == "model":
            told = [
                f"{name} {np.median([f['block_executions'] for f in found]):,.0f}"
                for name, found in self.searched.items()
            ]
            each = f"block executions of one search, calibration counted: {', '.join(told)}"
        else:
            told = [f"{name} {np.median([f['calls'] for f in found]):,.0f}" for name, found in self.searched.items()]
            each = f"denoiser calls of one search, one for each sample and step: {', '.join(told)}"
        return f"{each}. Choosing diffusers' spacings took {self.calls:,} denoiser calls."


def report(folder: Path, table: Path, figure: Path, evaluations: int) -> None:
    """Print and write the tables, and draw the figure."""
    model, mixture = Results(folder, "model"), Results(folder, "mixture")
    text = [
        "# Searched timesteps and solvers against diffusers' schedulers",
        "",
        "`python -m benchmarks.solvers` writes this page and the figure. Every value is held out: schedulers' spacings "
        "and searches' candidates were chosen on other prompts and noise. Cells are the median of "
        f"{SEEDS} seeds (quartiles), one number where nothing is drawn. Behind diffusers' values stands the spacing "
        "that was best in calibration, of all in `search.spaces.timesteps.spacings` and the class's own (its own alone "
        "where it takes no given timesteps; on the model also flow shift 0.5 instead of the pipeline's 2). The best of "
        f"diffusers is the one with the least held-out value. The target is a ratio of at most {TARGET:g} at each NFE. "
        "At N NFE ours is the candidate with at most N steps that calibration says is best.",
        "",
        f"![Drift and RMSE over NFE](../images/{figure.name})",
        "",
        "## Bundled model",
        "",
        "Drift of the final latents to the pipeline's own 20 steps, mean of 16 held-out prompts with noise seeds "
        f"{HELD_OUT}…, paired; calibration on 8 other prompts. Seeds are those of the engine. One search of "
        f"{evaluations} evaluations gives all columns; {model.cost()}",
        "",
        *model.lines(),
        "",
        "## Gaussian mixture",
        "",
        f"RMSE of the final samples to the fine solution of the probability flow; {OnMixture.components} components "
        f"in {OnMixture.dimensions} dimensions, exact epsilon prediction on DDPM's linear betas, {OnMixture.held} "
        f"held-out noises a seed and {OnMixture.training} for calibration and fits. A seed draws engine and held-out "
        f"noise. One search of {evaluations} evaluations gives all columns; {mixture.cost()}",
        "",
        *mixture.lines(),
    ]
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text("\n".join(text) + "\n")
    print("\n".join(text))
    _figure([model, mixture], figure)


def _spread(values: Sequence[float]) -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.3g}" if len(values) == 1 else f"{middle:.3g} ({low:.3g}–{high:.3g})"


COLORS = {
    "timesteps": "#0072B2",
    "timesteps + solver": "#009E73",
    "OLSS": "#CC79A7",
    "default (refitted)": "#D55E00",
    "timesteps, fitted": "#D55E00",
}
TITLES = {
    "model": ("Bundled model", "held-out drift to the 20-step run"),
    "mixture": ("Gaussian mixture", "held-out RMSE to the exact flow"),
}
NAMED = 5  # schedulers of diffusers in the figure: the best at any NFE, then the best over all


def _figure(places: Sequence[Results], file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    figure = Figure(figsize=(9.2, 4.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for ax, place in zip(figure.subplots(1, 2), places, strict=True):
        title, label = TITLES[place.place]
        ends = []
        named = list(dict.fromkeys([*(place.best(nfe) for nfe in NFES), *place.ordered()]))[:NAMED]
        lines = [(name, place.stock[name], "#8A9096", 1.3) for name in named]
        lines.append((AS_IT_COMES[place.place], place.own, "#202124", 1.3))
        lines += [(name, values, COLORS[name], 2.2) for name, values in place.ours.items()]
        for name, values, color, width in lines:
            low, middle, high = (np.array([np.quantile(values[n], q) for n in NFES]) for q in (0.25, 0.5, 0.75))
            ours = name in place.ours
            ax.plot(NFES, middle, color=color, lw=width, marker="o", ms=5 if ours else 3, zorder=3 if ours else 2)
            if ours:
                ax.fill_between(NFES, low, high, color=color, alpha=0.18, lw=0)
            own = name == OURS[place.place]
            ends.append((float(middle[-1]), name, color, "bold" if own else "normal"))
        ax.set_yscale("log")
        low, high = np.log10(ax.get_ylim())
        gap = 0.052 * (high - low)
        heights = _apart([np.log10(end[0]) for end in ends], gap)
        for height, (value, name, color, weight) in zip(heights, ends, strict=True):
            ax.plot([10.05, 10.4], [value, 10**height], color=color, lw=0.6, clip_on=False)
            ax.text(10.5, 10**height, name, color=color, weight=weight, fontsize=9, va="center")
        ax.set_ylim(10 ** min(low, *heights), 10 ** max(high, *heights))
        ax.set_xlim(4.8, 10.05)
        ax.set_xticks(NFES)
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
        ax.grid(axis="y", color="#E3E5E8", lw=0.7, zorder=0)
        ax.set_xlabel("denoiser calls (NFE)")
        ax.set_ylabel(label)
        ax.set_title(title, fontsize=11, loc="left")
        ax.spines[["top", "right"]].set_visible(False)
    note = "grey: the best of diffusers' schedulers at their best spacing; colours: ours, median and quartiles of seeds"
    figure.text(0.008, 0.012, note, fontsize=8.5, color="#5F6368")
    figure.get_layout_engine().set(rect=(0, 0.045, 1, 0.955))
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """The same heights, moved as little as keeps them `gap` apart."""
    order = np.argsort(heights, kind="stable")
    placed = np.array(heights, dtype=float)[order]
    for _ in range(500):
        for i in range(len(placed) - 1):
            if (short := gap - (placed[i + 1] - placed[i])) > 1e-9:
                placed[i] -= short / 2
                placed[i + 1] += short / 2
    found = np.empty(len(placed))
    found[order] = placed
    return found.tolist()


# All jobs

PLACES: dict[str, Any] = {}


def jobs() -> Iterator[tuple[str, ...]]:
    """(place, kind of job, name, number): what is done once and kept once."""
    for place, own, searches in (("mixture", OF_EPSILON, FITTED), ("model", OF_FLOW, tuple(SEARCHES))):
        yield place, "own", "own", "0"
        for name, _, _ in [*SHARED, *own]:
            for nfe in NFES:
                yield place, "scheduler", name, str(nfe)
        for seed in range(SEEDS):
            for name in searches:
                if not (place == "model" and name == "OLSS" and seed):  # nothing in it is drawn
                    yield place, "search", name, str(seed)


def work(job: tuple[tuple[str, ...], Path]) -> str:
    """Do one job and keep what it says."""
    (place, kind, name, number), file = job
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    at = PLACES[place]
    if kind == "own":
        found = at.own()
    elif kind == "search":
        found = at.search(name, int(number))
    else:
        given = {n: (c, a) for n, c, a in [*SHARED, *(OF_FLOW if place == "model" else OF_EPSILON)]}
        found = at.scheduler(name, *given[name], int(number))
    file.write_text(json.dumps(found, indent=1) + "\n")
    return f"{place} {name} {number}: {found['values']} {found.get('spacing', '')} {found.get('seconds', 0):.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/solvers"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/benchmark_solvers.png"))
    parser.add_argument("--table", type=Path, default=Path("docs/benchmarks/solvers.md"))
    parser.add_argument("--evaluations", type=int, default=200, help="of each search")
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_grad_enabled(False)
    diffusers.utils.logging.set_verbosity_error()
    todo = [(job, file) for job in jobs() if not (file := _file(given.folder, *job)).exists()]
    for place, made in (("mixture", OnMixture), ("model", OnModel)):
        if any(job[0] == place for job, _ in todo):
            began = time.perf_counter()
            PLACES[place] = made(given.evaluations)
            print(f"{place}: prepared in {time.perf_counter() - began:.0f} s", flush=True)
    if given.processes > 1:
        with multiprocessing.get_context("fork").Pool(given.processes) as pool:
            for line in pool.imap_unordered(work, todo, chunksize=1):
                print(line, flush=True)
    else:
        for job in todo:
            print(work(job), flush=True)
    report(given.folder, given.table, given.figure, given.evaluations)


def _file(folder: Path, place: str, kind: str, name: str, number: str) -> Path:
    return folder / f"{place}-{kind}-{name}-{number}.json".replace(" ", "_").replace("+", "p")


if __name__ == "__main__":
    main()
