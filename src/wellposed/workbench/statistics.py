"""What few paired seeds can say: intervals, a joint sign-flip test, equivalence, seeds still needed.

Everything here works on *paired differences*: for one technique, one number per seed, the technique's metric minus
the baseline's on the same split, initialisation and batches, with the sign such that positive is better.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]

ALPHA = 0.05  # one-sided, over all rows together
ENUMERATED = 14  # up to this many seeds all 2^n sign flips are listed
RANDOM_FLIPS = 20_000  # beyond: these, drawn once by a fixed generator, and the identity
_TIE = 1e-9  # statistics are cosines in [-1, 1]; equal ones may differ by rounding


def paired_interval(diffs: ArrayLike, level: float = 0.95, corrected: float = 0.0) -> Interval:
    """Student's t interval of the mean of paired differences.

    Args:
        diffs: (seeds,) finite differences, at least 2.
        level: coverage in (0, 1).
        corrected: n_test / n_train when the seeds resample one finite data set, whose training parts overlap. The
            variance factor 1/n becomes 1/n + n_test/n_train (Nadeau and Bengio, 2003, "Inference for the
            generalization error", section 3.2). 0 is the ordinary paired t interval.

    Raises:
        ValueError: fewer than 2 differences, one of them not finite, or level or corrected out of range.
    """
    if not 0 < level < 1 or not 0 <= corrected < math.inf:
        raise ValueError(f"level must lie in (0, 1) and corrected be >= 0; got {level} and {corrected}")
    n, mean, sd = moments(diffs)
    half = _quantile((1 + level) / 2, n - 1) * sd * math.sqrt(1 / n + corrected)
    return mean - half, mean + half


def moments(diffs: ArrayLike) -> tuple[int, float, float]:
    """Number, mean and standard deviation (n - 1) of at least 2 finite paired differences, shape (seeds,).

    Plain floats: seeds are few, and the sum is exact, so a constant row has sd 0 and not rounding noise.
    """
    d = np.asarray(diffs, dtype=np.float64)
    values: list[float] = d.tolist()
    if d.ndim != 1 or len(values) < 2 or not all(map(math.isfinite, values)):
        raise ValueError(f"paired seeds: needs at least 2 finite differences in one list; got {values}")
    if min(values) == max(values):
        return len(values), values[0], 0.0
    mean = math.fsum(values) / len(values)
    return len(values), mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def signflip_maxt(diffs: ArrayLike, tail: Literal["better", "worse"] = "better") -> Array:
    """Joint sign-flip max-t test: one adjusted one-sided p-value per row.

    Under the hypothesis that a row is useless its differences are symmetric about 0, so the signs of the seeds may be
    flipped - the same flip for all rows, because a seed shares its data among them. The p-value of a row is the share
    of flips under which the *largest* t statistic of any row reaches the one observed, which bounds the probability of
    announcing any useless row (Westfall and Young, 1993, single-step max-t). With n <= 14 seeds all 2^n flips are
    enumerated and p >= 2^-n whatever the number of rows; beyond, 20,000 fixed random flips and the identity are used.

    The statistic is c = sum(d) / sqrt(n sum(d^2)), the cosine between the differences and a constant: flips keep
    sum(d^2), so t = sqrt(n - 1) c / sqrt(1 - c^2) orders flips and rows exactly as c does, and c has no pole - a
    constant positive row has c = 1, the extreme. A row that is 0 on every seed is never significant.

    Args:
        diffs: (rows, seeds). A row with a value that is not finite (a failed run) gets p = 1 and takes no part.
        tail: "better" tests mean > 0, "worse" tests mean < 0.

    Returns:
        (rows,) p-values in (0, 1].

    Raises:
        ValueError: `diffs` is not two-dimensional or has no seeds.
    """
    d = np.asarray(diffs, dtype=np.float64)
    if d.ndim != 2 or d.shape[1] == 0:
        raise ValueError(f"the test needs an array (rows, seeds) with at least one seed; got shape {d.shape}")
    p = np.ones(len(d))
    tested = np.isfinite(d).all(axis=1) & (d != 0).any(axis=1)
    if not tested.any():
        return p
    d = d[tested] if tail == "better" else -d[tested]
    d = d / np.abs(d).max(axis=1, keepdims=True)  # so that squaring neither overflows nor underflows
    unit = d / np.sqrt(d.shape[1] * np.square(d).sum(axis=1, keepdims=True))
    largest = np.sort((_signs(d.shape[1]) @ unit.T).max(axis=1))
    reached = len(largest) - np.searchsorted(largest, unit.sum(axis=1) - _TIE)
    p[tested] = reached / len(largest)
    return p


def equivalent(diffs: ArrayLike, worth: float, corrected: float = 0.0) -> bool:
    """Two one-sided tests (Schuirmann, 1987): the 90 % interval lies strictly within (-worth, worth)."""
    low, high = paired_interval(diffs, 1 - 2 * ALPHA, corrected)
    return -worth < low and high < worth


def needed_seeds(diffs: ArrayLike, alpha: float = ALPHA, cap: int = 1000) -> int | None:
    """Seeds at which the one-sided (1 - alpha) bound is expected to exclude 0, at the observed mean and sd.

    Args:
        diffs: (seeds,) finite differences, at least 2.
        alpha: one-sided; divide by the number of rows tested jointly.
        cap: the largest answer; a row that needs more than this is for practical purposes not worth having.

    Returns:
        The total number of seeds, in [2, cap]; None when the observed mean is not positive.
    """
    _, mean, sd = moments(diffs)
    if mean <= 0:
        return None
    enough = _bound_factors(alpha, cap) * sd < mean
    return 2 + int(enough.argmax()) if enough.any() else cap


def all_signs(seeds: int) -> Array:
    """Every sign flip of `seeds` differences: (2^seeds, seeds) of +-1, the identity first."""
    bits = np.arange(2**seeds)[:, None] >> np.arange(seeds)
    return np.where(bits & 1, -1.0, 1.0)


@lru_cache(maxsize=4)
def _signs(seeds: int) -> Array:
    if seeds <= ENUMERATED:
        return all_signs(seeds)
    drawn = np.random.default_rng(0).integers(0, 2, (RANDOM_FLIPS, seeds)) * 2.0 - 1
    return np.vstack([np.ones(seeds), drawn])


@lru_cache(maxsize=256)
def _quantile(probability: float, freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf(probability, freedom))


@lru_cache(maxsize=64)
def _bound_factors(alpha: float, cap: int) -> Array:
    """t quantile over sqrt(n) for n = 2 .. cap: the half width of the bound in units of the sd."""
    from scipy.stats import t

    n = np.arange(2, cap + 1)
    factors: Array = t.ppf(1 - alpha, n - 1) / np.sqrt(n)
    return factors
