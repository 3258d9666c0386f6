"""Timestep sequences: how many steps a run has, and where they stand."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, ClassVar, Literal

import numpy as np

from search.exact.paths import reach_paths, shortest_step_paths
from search.exact.rows import unique_rows
from search.profile.tables import FindPaths, Tables
from search.profile.target import Target
from search.schedule.exchange import ays
from search.schedule.noise import Noise
from search.spaces.base import Space, require_steps
from search.spaces.gene import Gene

FORMS = ("training", "sigma")
FEWEST = 2
SHARES = (0.5, 0.25)  # of the teacher's steps: what presets are offered with


@dataclass(frozen=True)
class TimestepsSpace(Space):
    """Every step of the teacher is a slot that stays, moves or is dropped; the remaining ones run in order of noise.

    Two genes a slot: `dropped@i` (0 stays, 1 dropped) and `moved@i` (0 the teacher's own timestep, k the k-th
    nearest candidate). Candidates are the scheduler's training timesteps (`form="training"`, as AutoDiffusion,
    arXiv:2309.10438), or `points` places even in log-SNR (`form="sigma"`). Slots that meet in one place are one step,
    so every row is a falling sequence and nothing has to be repaired.

    sigma at a timestep is interpolated as diffusers does; the sigma after the last step stays the scheduler's own.

    Where `rates` names any there is one more gene, `rate`: k places the slots that are not dropped on a curve of the
    k-th rate (`exponential_timesteps`), to the nearest candidate, whatever `moved` says.

    Args:
        form: What the candidates are, see above.
        points: How many candidates there are in the form `sigma`, 10 to 10000.
        rates: Rates of noise curves, each above 0 and at most 100; none by default.

    Raises:
        ValueError: The form is unknown, or `points` or a rate is out of range.

    Example:
        >>> from search.profile.target import Target
        >>> from search.schedule.model.nodes import Tree
        >>> from search.spaces.timesteps import TimestepsSpace
        >>> sampler = {"class": "DDIMScheduler", "config": {}, "timesteps": [999.0, 700.0, 400.0, 100.0]}
        >>> target = Target("pixart", Tree("PixArtTransformer2DModel", {"transformer_blocks": 1}), 4, sampler=sampler)
        >>> space = TimestepsSpace()
        >>> [gene.name for gene in space.genes(target)][:4]
        ['dropped@0', 'moved@0', 'dropped@1', 'moved@1']
        >>> space.decode([0, 0, 1, 0, 0, 0, 0, 0], target)["sampler"]["timesteps"]
        [999.0, 400.0, 100.0]
        >>> space.encode_timesteps([999, 390, 100], target).tolist()[:6]
        [0, 0, 1, 0, 0, 21]
    """

    form: Literal["training", "sigma"] = "training"
    points: int = 400
    rates: tuple[float, ...] = ()
    key: ClassVar[str] = "timesteps"
    stage: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(
                f"form {self.form!r} is unknown; choose from {', '.join(FORMS)}: space.timesteps.form=sigma"
            )
        if not 10 <= self.points <= 10_000:
            raise ValueError(f"points {self.points} is out of range; use 10 to 10000: space.timesteps.points=400")
        object.__setattr__(self, "rates", tuple(float(rate) for rate in self.rates))  # a YAML gives a list
        if wrong := [rate for rate in self.rates if not 0 < rate <= 100]:
            raise ValueError(f"rates {wrong} are out of range; use 0 to 100 without 0: space.timesteps.rates=[5,8]")

    def genes(self, target: Target) -> list[Gene]:
        """`dropped@i` and `moved@i` of each of the teacher's steps.

        Raises:
            ValueError: The teacher has 2 steps or fewer, or the form is `sigma` and the scheduler has no sigmas.
        """
        sampler = target.planned_sampler
        if target.left_out:
            raise ValueError(
                f"the call of {target.name} begins at step {target.left_out}, from a picture; how many steps it makes "
                "is up to the call, so they cannot be dropped; search space=cache or space=solver"
            )
        require_steps("a timestep sequence", FEWEST + 1, target)
        if self.form == "sigma" and sampler.get("sigmas") is None:
            raise ValueError(
                f"form 'sigma' needs a scheduler with sigmas, and {sampler['class']} has none; "
                "use space.timesteps.form=training"
            )
        levels = len(self._candidates(target)) + 1
        genes = [
            gene
            for i in range(target.reference)
            for gene in (Gene(f"dropped@{i}", 2, step=i, ordered=False), Gene(f"moved@{i}", levels, step=i))
        ]
        return [*genes, Gene("rate", len(self.rates) + 1, group="rate")] if self.rates else genes

    def decode(self, x: Sequence[int] | np.ndarray, target: Target) -> Mapping[str, Any]:
        """`steps` and the sampler part with its timesteps and sigmas; `{}` on the teacher's own grid.

        At least two steps run: where more are dropped, the teacher's first ones stay.
        """
        teacher = np.array(target.sampler["timesteps"])
        candidates, nearest = self._candidates(target), self._nearest(target)
        row = np.asarray(x, dtype=np.int64)
        if self.rates and (level := int(row[-1])):
            count = max(FEWEST, int((row[: 2 * target.reference : 2] == 0).sum()))
            row = self.encode_timesteps(exponential_timesteps(target.noise, count, self.rates[level - 1]), target)
        genes = row[: 2 * target.reference].reshape(target.reference, 2)
        places: dict[float, float | None] = {}  # timestep -> its sigma where it is one of the teacher's
        for i, (dropped, moved) in enumerate(genes.tolist()):
            if not dropped and not moved:
                places[float(teacher[i])] = target.sampler["sigmas"][i] if target.sampler.get("sigmas") else None
            elif not dropped:
                places.setdefault(float(candidates[nearest[i][moved - 1]]), None)
        for i in range(target.reference):  # a run has at least two steps
            if len(places) >= FEWEST:
                break
            places[float(teacher[i])] = target.sampler["sigmas"][i] if target.sampler.get("sigmas") else None
        timesteps = sorted(places, reverse=True)
        if timesteps == teacher.tolist():
            return {}
        sampler = {k: v for k, v in target.sampler.items() if k not in ("timesteps", "sigmas")}
        sampler["timesteps"] = timesteps
        if target.sampler.get("sigmas") is not None:
            sigmas = [places[t] if places[t] is not None else float(target.noise.sigma(t)) for t in timesteps]
            sampler["sigmas"] = [*sigmas, target.sampler["sigmas"][-1]]
        return {"steps": len(timesteps), "sampler": sampler}

    def encode_timesteps(self, timesteps: Sequence[float] | np.ndarray, target: Target) -> np.ndarray:
        """The row [G] with the candidates nearest to falling timesteps, of which there are at most the teacher's T."""
        teacher, nearest = np.array(target.sampler["timesteps"]), self._nearest(target)
        candidates = self._candidates(target)
        genes = np.tile([1, 0], (target.reference, 1))
        for slot, t in zip(_slots(teacher, np.asarray(timesteps, dtype=float)), timesteps, strict=True):
            if t == teacher[slot]:
                genes[slot] = 0
                continue
            candidate = int(np.abs(candidates - t).argmin())
            genes[slot] = [0, 1 + int(np.flatnonzero(nearest[slot] == candidate)[0])]
        return np.append(genes.ravel(), [0] * bool(self.rates)).astype(np.int64)

    def presets(self, target: Target) -> dict[str, np.ndarray]:
        """Named spacings at several numbers of steps, to the nearest candidate, and curves of every rate."""
        rows = {}
        for count in dict.fromkeys(max(FEWEST, round(share * target.reference)) for share in SHARES):
            for name, timesteps in chain(spacings(target.noise, count), align_your_steps(target, count)):
                x = self.encode_timesteps(timesteps, target)
                if self.decode(x, target):
                    rows[f"{name}, {count} steps"] = x
            for rate in self.rates:
                x = self.encode_timesteps(exponential_timesteps(target.noise, count, rate), target)
                rows[f"exponential {rate:g}, {count} steps"] = x
        return rows

    def propose(self, tables: Tables) -> list[np.ndarray]:
        """OLSS's paths (arXiv:2305.14677) of every length through a dense run, then the exact front."""
        return self.path_rows(tables, reach_paths) + self.exact_front(tables)

    def exact_front(self, tables: Tables) -> list[np.ndarray]:
        """The path of every length with the least sum of errors of single jumps (GITS, arXiv:2405.11326)."""
        return self.path_rows(tables, shortest_step_paths)

    def path_rows(self, tables: Tables, find_paths: FindPaths) -> list[np.ndarray]:
        """Rows for the paths of 2 to T-1 steps through a dense run.

        Args:
            tables: Has the dense run, which is measured now if it was not read before.
            find_paths: A function of search/exact/paths.py.

        Returns:
            Rows [G], each once.
        """
        paths = tables.dense_run.paths(find_paths, range(2, tables.target.steps))
        return unique_rows([self.encode_timesteps(timesteps, tables.target) for timesteps in paths])

    def _candidates(self, target: Target) -> np.ndarray:
        return _candidates(_key(target), self.form, self.points)

    def _nearest(self, target: Target) -> np.ndarray:
        return _nearest(_key(target), self.form, self.points, tuple(target.sampler["timesteps"]))


def spacings(noise: Noise, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Published spacings by name: falling timesteps, fractional, within the training range.

    Args:
        noise: The noise schedule of the pipeline.
        count: The number of steps.

    Yields:
        The name and the timesteps [count] of each spacing.

    Example:
        >>> from search.schedule.noise import Noise
        >>> noise = Noise.of({"class": "DDIMScheduler", "config": {}})
        >>> dict(spacings(noise, 4))["trailing"].tolist()
        [999.0, 749.0, 499.0, 249.0]

    Timestep spacings as in Table 2 of arXiv:2305.08891; Karras is eq. 5 of arXiv:2206.00364 with rho 7; beta is
    arXiv:2407.12173, drawn in sigma as diffusers does; `log-SNR` is even in lambda (DPM-Solver, arXiv:2206.00927)
    (even steps of log sigma where the variance is preserved, diffusers' `use_exponential_sigmas`); quadratic is DDIM's
    (arXiv:2010.02502).
    """
    total, least = len(noise.sigmas), 1 if noise.kind == "flow" else 0
    places = np.arange(count)
    yield "uniform", np.linspace(total - 1, least, count + 1)[:-1]
    yield "trailing", np.maximum(np.round(total - places * total / count) - 1, least)
    yield "leading", np.maximum(np.round(places * (total // count))[::-1] + 1, least)
    yield "quadratic", np.maximum((np.linspace(0, np.sqrt(0.8 * total), count) ** 2)[::-1], least + places[::-1])
    low, high = (np.exp(-noise.logsnr(noise.sigma(t))) for t in (least, total - 1))
    ramp = np.linspace(0, 1, count)
    karras = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    yield "Karras", _timesteps(noise, karras)
    yield "log-SNR", _timesteps(noise, np.exp(np.log(high) + ramp * (np.log(low) - np.log(high))))
    from scipy.stats import beta

    first, last = noise.sigma(total - 1), noise.sigma(least)
    yield "beta", noise.timestep(last + beta.ppf(1 - ramp, 0.6, 0.6) * (first - last))


def exponential_timesteps(noise: Noise, count: int, rate: float) -> np.ndarray:
    """Timesteps of a noise curve with a rate: HIR-Diff's exponential schedule (arXiv:2402.15865).

    alpha² of step n of N is 1 - exp(-rate * n / N), stretched to 1e-3 .. 1: the higher, the more steps of little noise.

    Args:
        noise: The noise schedule of the pipeline.
        count: The number of steps N.
        rate: Above 0.

    Returns:
        Falling timesteps [N], fractional, within the training range.
    """
    levels = np.expm1(-rate * np.arange(count) / count) / np.expm1(-rate)
    alphas = 1e-3 + (1 - 1e-3) * levels
    timesteps = _timesteps(noise, np.sqrt((1 - alphas) / alphas))
    clipped: np.ndarray = np.clip(timesteps, 1 if noise.kind == "flow" else 0, len(noise.sigmas) - 1)
    return clipped


def align_your_steps(target: Target, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """The published tables of AYS (arXiv:2404.14507) at `count` steps, for UNets of the noise that they are made for.

    Ten steps are as published, others are interpolated in log sigma.
    """
    noise = target.noise
    made_for = target.tree.model_class == "UNet2DConditionModel" and noise.kind != "flow"
    if made_for and abs(noise.sigmas[-1] / ays.FIRST - 1) < 0.01:
        for name, table in ays.TIMESTEPS.items():
            yield name, np.array(ays.timesteps(table, count, noise))


def _timesteps(noise: Noise, ratios: np.ndarray) -> np.ndarray:
    """Timesteps where sigma / alpha is as given."""
    return noise.timestep(ratios / (1 + ratios) if noise.kind == "flow" else ratios)


def _slots(teacher: np.ndarray, timesteps: np.ndarray) -> list[int]:
    """A different slot for each timestep, in order, close to where the teacher has its steps."""
    slots: list[int] = []
    for j, t in enumerate(timesteps):
        first, last = (slots[-1] + 1 if slots else 0), len(teacher) - (len(timesteps) - j)
        slots.append(first + int(np.abs(teacher[first : last + 1] - t).argmin()))
    return slots


def _key(target: Target) -> tuple[str, tuple[float, ...]]:
    noise = target.noise
    return noise.kind, tuple(noise.sigmas)


@lru_cache(maxsize=8)
def _candidates(key: tuple[str, tuple[float, ...]], form: str, points: int) -> np.ndarray:
    """Timesteps [N] that a slot can move to, falling."""
    kind, sigmas = key
    least = 1 if kind == "flow" else 0
    if form == "training":
        return np.arange(len(sigmas) - 1, least - 1, -1, dtype=float)
    noise = Noise(np.array(sigmas), kind)  # type: ignore[arg-type]
    low, high = (noise.logsnr(noise.sigma(t)) for t in (len(sigmas) - 1, least))
    return _timesteps(noise, np.exp(-np.linspace(low, high, points)))


@lru_cache(maxsize=8)
def _nearest(key: tuple[str, tuple[float, ...]], form: str, points: int, slots: tuple[float, ...]) -> np.ndarray:
    """Indices [T, N] of the candidates by distance from the teacher's timestep of every slot [T]."""
    nearest: np.ndarray = np.abs(_candidates(key, form, points)[None] - np.array(slots)[:, None]).argsort(
        axis=1, kind="stable"
    )
    return nearest
