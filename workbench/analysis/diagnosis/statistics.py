"""Computes the intervals that the checks judge by; a cause is reported only if the whole 95 % interval agrees."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, t

from workbench.analysis.detection.bootstrap import LEVEL, draws, interval, with_all

LEAST_VALUES = 6  # of fewer values, not even the smallest and the largest cover the median with 95 %
_SAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval and the number of items it is computed from."""

    value: float
    low: float
    high: float
    n: int


def exact(value: float, n: int) -> Estimate:
    """Returns a number that is no estimate, so that it has no interval (both ends are NaN)."""
    return Estimate(value, math.nan, math.nan, n)


def median_interval(values: Sequence[float]) -> Estimate | None:
    """Returns the median with an interval of two order statistics that covers it with at least 95 %, whatever the distribution.

    Returns:
        None for fewer than ``LEAST_VALUES`` values.
    """
    ordered = sorted(values)
    n = len(ordered)
    # the interval from the (k+1)-th smallest to the (k+1)-th largest misses the median with probability 2 P(Binomial(n, 1/2) <= k)
    rank = int(binom.ppf((1 - LEVEL) / 2, n, 0.5)) if n else 0
    if n and 2 * binom.cdf(rank, n, 0.5) > 1 - LEVEL:
        rank -= 1
    return Estimate(float(np.median(ordered)), ordered[rank], ordered[n - 1 - rank], n) if n and rank >= 0 else None


def mean_interval(values: np.ndarray) -> Estimate:
    """Returns the mean with Student's interval; ``values [N]``, at least two."""
    n, mean = len(values), float(values.mean())
    reach = float(t.ppf((1 + LEVEL) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - reach, mean + reach, n)


def share_interval(hits: int, n: int) -> Estimate:
    """Returns a share with Wilson's interval, which is [0, 1] for n = 0."""
    if not n:
        return Estimate(math.nan, 0.0, 1.0, 0)
    z = 1.959964
    share, spread = hits / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half), n)


def ratio_difference(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray] | None = None, seed: int = 0) -> Estimate:
    """Returns a ratio of totals over images, or the difference of two ratios, with the percentile interval over resampled images.

    Args:
        one: numerator and denominator of each image, ``[I]`` each.
        other: numerator and denominator of the ratio that is subtracted, for the same images in the same order.
        seed: seed of the resamples.

    Returns:
        The estimate, NaN if a denominator is 0; ``n`` is the number of images.
    """
    images = len(one[0])
    if not images:
        return Estimate(math.nan, math.nan, math.nan, 0)
    counts = with_all(draws(images, _SAMPLES, seed))
    found = interval(_ratio(counts, one) - (0.0 if other is None else _ratio(counts, other)), images)
    return Estimate(found.value, found.low, found.high, images)


def _ratio(counts: np.ndarray, parts: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    above, below = (counts @ np.asarray(part, dtype=np.float64) for part in parts)
    return np.divide(above, below, out=np.full(len(counts), np.nan), where=below > 0)
