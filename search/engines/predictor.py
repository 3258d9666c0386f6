"""NSGA-II whose children are screened by a surrogate that learns from the scores seen so far.

After the predictor of the unified sampling framework's S³ search (arXiv:2312.07243, not in its release) and
OMS-DPM (arXiv:2306.08860): what counts is the order of rows, so it learns ranks; and it may only choose while
its predictions of rows it has not seen rank them well.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from search.engines.base import Engine, EngineInputs
from search.engines.nsga2 import Nsga2Engine
from search.engines.state import Count, EngineState, Rows, Scores
from search.pareto.domination import hypervolume, non_dominated

CHECKED = 12  # rows per held-out check: fewer are too few for a rank correlation
CHECKS = 3  # of which the median is trusted
TRUSTED = 0.3  # Spearman correlation, of the objective predicted worst
EXPLORED = 0.2  # share of rows that nothing predicted
WIDE = 8  # levels from which an ordered gene is a number and no choice
MOST_KNOWN = 1000  # newest rows the surrogate learns from: its time grows with their cube
MOST_SPARE = 1000  # children kept for later


class PredictorState(EngineState):
    """State of a `PredictorEngine`; the surrogate is fitted again, to `x` and `y`."""

    together = (("x", "y"), ("new_x", "new_y"))
    inner: dict[str, Any]
    asked: Count
    spare: Rows
    x: Rows
    y: Scores
    new_x: Rows
    new_y: Scores
    spearman: Scores


class PredictorEngine(Engine):
    """An `Nsga2Engine` makes `screen` times as many children as are asked for; the most promising are evaluated.

    The surrogate is a Gaussian process on ranks (`Surrogate`). It is fitted again after every 12 scores or more,
    and before that asked to rank these: the Spearman correlations are its held-out check. Below a median of 0.3
    over three checks, in any objective, children pass as they come. So do the first `warmup` rows, seeds first; seeds
    that are left by then compete with the children. Children left out wait and compete again with the next ones, up
    to 1000 of them. 20 % of the rows are drawn from the new children at random. Two or more objectives.

    Args:
        start: The genes, the generator, the first rows, and the prior where calibration has one.
        population: The number of parents of the `Nsga2Engine`.
        screen: How many children are made for each row that is asked for; 1 leaves nothing to choose.
        warmup: The number of rows before the surrogate may choose.

    Raises:
        ValueError: `screen` is below 1, or the population too small.
    """

    def __init__(self, start: EngineInputs, population: int = 24, screen: int = 10, warmup: int = 48) -> None:
        if screen < 1:
            raise ValueError(f"screen {screen} is too small; use engine.screen=10, at least 1")
        self.inner = Nsga2Engine(start, population=population)
        self.start, self.screen = start, screen
        self.plain = max(warmup, population)
        self.asked = 0
        self.spare = np.zeros((0, len(start.genes)), dtype=np.int64)
        self.x, self.y = self.spare, np.zeros((0, start.objectives))  # what the surrogate knows
        self.new: list[tuple[np.ndarray, np.ndarray]] = []  # what it has not seen yet
        self.surrogate: Surrogate | None = None
        self.spearman: list[list[float]] = []  # per check, per objective; NaN where all scores were equal

    @property
    def report(self) -> Mapping[str, float]:
        """Rank correlation of predictions and scores at the last check, of the objective that was predicted worst."""
        last = [r for r in self.spearman[-1] if not np.isnan(r)] if self.spearman else []
        return {"rank_correlation": round(min(last), 4)} if last else {}

    @property
    def trusted(self) -> bool:
        """Whether the surrogate ranked well enough in its last checks; objectives that never vary do not count."""
        if self.surrogate is None or len(self.spearman) < CHECKS:
            return False
        last = np.array(self.spearman[-CHECKS:])
        varies = ~np.isnan(last).all(axis=0)
        return bool(varies.any() and (np.nanmedian(last[:, varies], axis=0) > TRUSTED).all())

    def ask(self, n: int) -> np.ndarray:
        """The most promising of new children and those left out before, and some at random."""
        if self.asked < self.plain or self.surrogate is None or not self.trusted:
            x = self.inner.ask(n)
        else:
            x = self.inner.ask(n * self.screen)
            chance = self.start.rng.permutation(len(x))[: self.start.rng.binomial(n, EXPLORED)]
            rest = np.concatenate([np.delete(x, chance, axis=0), self.spare])
            order = self._promising(rest, n - len(chance))
            best, self.spare = rest[order], np.delete(rest, order, axis=0)[:MOST_SPARE]
            x = np.concatenate([x[chance], best])
        if len(x) < n:  # the space is nearly exhausted
            more, self.spare = np.split(self.spare, [n - len(x)])
            x = np.concatenate([x, more])
        self.asked += len(x)
        return x

    def tell(self, x: np.ndarray, y: np.ndarray) -> None:
        """Parents compete as in NSGA-II; once there are enough new rows they check and teach the surrogate."""
        self.inner.tell(x, y)
        x, y = np.array(x, dtype=np.int64), np.array(y, dtype=float)
        # As in NSGA-II the whole row: a diverged schedule is worth nothing, however cheap it is.
        self.new += zip(x, np.where(np.isfinite(y).all(axis=1, keepdims=True), y, np.inf), strict=True)
        while len(self.new) >= CHECKED:  # at first in small parts, so that it is soon known whether it ranks well
            self._learn(CHECKED if len(self.spearman) < CHECKS else len(self.new))

    def state(self) -> dict[str, Any]:
        """The state of the inner engine, the rows that were left out, and what the surrogate is fitted to."""
        genes, objectives = len(self.start.genes), self.start.objectives
        return {
            "inner": self.inner.state(),
            "asked": self.asked,
            "spare": self.spare,
            "x": self.x,
            "y": self.y,
            "new_x": np.array([x for x, _ in self.new], dtype=np.int64).reshape(len(self.new), genes),
            "new_y": np.array([y for _, y in self.new], dtype=float).reshape(len(self.new), objectives),
            "spearman": np.array(self.spearman, dtype=float).reshape(len(self.spearman), objectives),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned, and fit the surrogate."""
        saved = PredictorState.read(state, self.start)
        self.inner.restore(saved.inner)
        self.asked, self.spare, self.x, self.y = saved.asked, saved.spare, saved.x, saved.y
        self.new = list(zip(saved.new_x, saved.new_y, strict=True))
        self.spearman = saved.spearman.tolist()
        self.surrogate = Surrogate(self.start, self.x, self.y) if len(self.x) else None

    def _learn(self, count: int) -> None:
        """Check the surrogate on so many new rows, then teach it these."""
        x, y = (np.array(part) for part in zip(*self.new[:count], strict=True))
        if self.surrogate is not None:
            predicted = self.surrogate.predict(x)
            self.spearman.append([_spearman(p, s) for p, s in zip(predicted.T, y.T, strict=True)])
        self.x, self.y = np.concatenate([self.x, x])[-MOST_KNOWN:], np.concatenate([self.y, y])[-MOST_KNOWN:]
        self.new = self.new[count:]
        self.surrogate = Surrogate(self.start, self.x, self.y)

    def _promising(self, x: np.ndarray, n: int) -> np.ndarray:
        """Indices of n rows: by predicted front, within a front by what they add to the volume of the archive."""
        assert self.surrogate is not None
        known = self.surrogate.predict(self.x)  # predictions are flatter than scores: compare like with like
        y = self.surrogate.predict(x)
        reference = np.concatenate([known, y]).max(axis=0, initial=0.0) + 0.1
        front = known[non_dominated(known)]
        left = np.arange(len(x))
        chosen: list[int] = []
        while len(left) and len(chosen) < n:
            layer = left[non_dominated(y[left])]
            left = np.setdiff1d(left, layer)
            chosen += _by_volume(y, layer, front, reference, n - len(chosen))
        return np.array(chosen, dtype=np.int64)


class Surrogate:
    """Normal scores of the ranks of rows: a linear function of the prior plus a Gaussian process.

    Features [N, F] of the process: a column for each level of a gene but 0, or the scaled level of a wide ordered
    gene; per group the share of genes that are on; and the share in all. It has a linear part and a smooth one.

    Args:
        start: Genes and prior.
        x: Rows [N, G].
        y: Their scores [N, M]; NaN and infinity are ranked last.
    """

    def __init__(self, start: EngineInputs, x: np.ndarray, y: np.ndarray) -> None:
        names: dict[str, list[int]] = {}
        for index, gene in enumerate(start.genes):
            names.setdefault(gene.group or gene.name, []).append(index)
        self.groups = list(names.values())
        self.levels = start.levels
        self.wide = np.array([gene.ordered and gene.levels >= WIDE for gene in start.genes], dtype=bool)
        plain = self._features(x)
        self.mean, self.scale = plain.mean(axis=0), plain.std(axis=0)
        self.scale[self.scale == 0] = 1.0
        self.features = self._scaled(x)
        target = np.stack([_normal_scores(s) for s in y.T], axis=1)
        self.prior = start.prior
        prior = self._prior_of(x)
        self.sorted_prior = np.sort(prior, axis=0)
        expected = self._ranked(prior)
        self.slopes = np.linalg.lstsq(expected, target, rcond=None)[0]
        self.smooth, self.weights = _fitted(self.features, target - expected @ self.slopes)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Predicted normal scores [N, M]; lower is better."""
        features = self._scaled(x)
        columns = [_kernel(features, self.features, s) @ w for s, w in zip(self.smooth, self.weights, strict=True)]
        # Rounded, so that the last bit, which differs between machines, does not choose.
        predicted: np.ndarray = (self._ranked(self._prior_of(x)) @ self.slopes + np.stack(columns, axis=1)).round(9)
        return predicted

    def _prior_of(self, x: np.ndarray) -> np.ndarray:
        """The numbers of the prior for rows, [N, K]."""
        return self.prior(x) if self.prior else np.zeros((len(x), 0))

    def _ranked(self, prior: np.ndarray) -> np.ndarray:
        """1, and the prior as normal scores of its ranks among the fitted rows, [N, 1 + K]."""
        from scipy.stats import norm

        columns = [np.ones(len(prior))]
        for reference, column in zip(self.sorted_prior.T, prior.T, strict=True):
            below, upto = (np.searchsorted(reference, column, side) for side in ("left", "right"))
            rank, size = (below + upto) / 2, len(reference)
            columns.append(norm.ppf((rank.clip(0.5, size - 0.5)) / size))
        return np.stack(columns, axis=1)

    def _features(self, x: np.ndarray) -> np.ndarray:
        on = (x > 0).astype(float)
        columns = [on[:, group].mean(axis=1) for group in self.groups]
        columns.append(on.mean(axis=1) if on.size else np.zeros(len(x)))
        for gene, levels in enumerate(self.levels):
            if self.wide[gene]:
                columns.append(x[:, gene] / (levels - 1))
            else:
                columns += [(x[:, gene] == level).astype(float) for level in range(1, levels)]
        return np.stack(columns, axis=1)

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        scaled: np.ndarray = (self._features(x) - self.mean) / self.scale / np.sqrt(len(self.mean))
        return scaled


def _kernel(a: np.ndarray, b: np.ndarray, smooth: float) -> np.ndarray:
    """Covariance of rows of features: (1 - smooth) linear, the rest a squared exponential of length 1."""
    inner = a @ b.T
    distance = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * inner
    covariance: np.ndarray = (1 - smooth) * inner + smooth * np.exp(-np.maximum(distance, 0) / 2)
    return covariance


def _fitted(features: np.ndarray, target: np.ndarray) -> tuple[list[float], list[np.ndarray]]:
    """Per objective the share of the smooth part and weights [N], the best of a few by leaving one out."""
    found: list[tuple[float, float, np.ndarray]] = [(np.inf, 0.0, np.zeros(len(features)))] * target.shape[1]
    for smooth in (0.0, 0.3, 0.7):
        values, basis = np.linalg.eigh(_kernel(features, features, smooth))
        rotated = basis.T @ target
        for noise in (1e-3, 1e-2, 1e-1, 1.0):
            inverse = 1 / (np.maximum(values, 0) + noise)
            weights = basis @ (inverse[:, None] * rotated)
            # Leaving row i out changes its prediction by weight_i / (K + noise)^-1_ii (Rasmussen & Williams, 5.12).
            left_out = ((weights / (basis**2 @ inverse)[:, None]) ** 2).mean(axis=0)
            for objective, loss in enumerate(left_out):
                if loss < found[objective][0]:
                    found[objective] = (float(loss), smooth, weights[:, objective])
    return [smooth for _, smooth, _ in found], [weights for _, _, weights in found]


def _by_volume(y: np.ndarray, layer: np.ndarray, front: np.ndarray, reference: np.ndarray, n: int) -> list[int]:
    """Up to n of a layer, each the one that adds most volume to the front and those before it."""
    chosen: list[int] = []
    have = hypervolume(front, reference)
    # What a row adds only shrinks as others are chosen: an old number is a bound, and most need no new one.
    bounds = {int(i): np.inf for i in layer}
    while bounds and len(chosen) < n:
        fresh: set[int] = set()
        while (i := max(bounds, key=lambda i: bounds[i])) not in fresh:
            bounds[i] = hypervolume(np.vstack([front, y[i]]), reference) - have
            fresh.add(i)
        have += bounds.pop(i)
        front = np.vstack([front, y[i]])
        chosen.append(i)
    return chosen


def _normal_scores(values: np.ndarray) -> np.ndarray:
    """What ranks would be if values were normal, for values [N]: no outlier, no scale."""
    from scipy.stats import norm, rankdata

    scores: np.ndarray = norm.ppf((rankdata(values) - 0.5) / len(values))
    return scores


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; NaN where the scores b are all equal, 0 where only the predictions are."""
    from scipy.stats import rankdata

    if np.ptp(rankdata(b)) == 0:
        return float("nan")
    return 0.0 if np.ptp(a) == 0 else float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
