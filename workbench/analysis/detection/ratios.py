"""Computes shares and means of many groups at once, with intervals by resampling images.

Targets of one image are not independent, so whole images are drawn. A group is what a number is shown for: a class, a slot or a step.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from workbench.analysis.detection.bootstrap import LEVEL, draws


@dataclass(frozen=True)
class Ratios:
    """Ratios of sums, one per group; NaN where the denominator is 0.

    Attributes:
        value: ``[G]`` ratio on all images.
        low: ``[G]`` lower end of the percentile interval over the resamples that define the ratio.
        high: ``[G]`` upper end.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def image_ratios(
    image: np.ndarray,
    group: np.ndarray,
    groups: int,
    numerator: np.ndarray,
    denominator: np.ndarray | None = None,
    samples: int = 300,
    seed: int = 0,
    images: np.ndarray | None = None,
) -> Ratios:
    """Returns the sum of ``numerator`` over the sum of ``denominator`` of every group.

    Args:
        image: ``[R]`` id of the image of each row.
        group: ``[R]`` group of each row, 0..groups - 1.
        groups: number of groups.
        numerator: ``[R]`` values to sum or average.
        denominator: ``[R]`` weights; by default each row counts once.
        samples: number of resamples.
        seed: seed of the draws.
        images: ids of all images that are resampled; by default those with a row.
    """
    images = np.unique(image) if images is None else np.unique(images)
    position = np.searchsorted(images, image)
    counts = np.concatenate([np.ones((1, len(images))), draws(len(images), samples, seed)])
    weights = np.ones(len(image)) if denominator is None else np.asarray(denominator, dtype=np.float64)
    above, below = (
        (sparse.csr_array((values, (group, position)), shape=(groups, len(images))) @ counts.T)
        for values in (np.asarray(numerator, dtype=np.float64), weights)
    )
    values = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
    return Ratios(values[:, 0], *percentiles(values[:, 1:]))


def percentiles(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ends of the 95 % interval along the last axis of ``values`` without NaN; NaN if nothing is left."""
    ordered = np.sort(values, axis=-1)  # NaN come last
    last = np.isfinite(ordered).sum(axis=-1) - 1
    if not values.shape[-1]:
        nothing = np.full(values.shape[:-1], np.nan)
        return nothing, nothing

    def at(share: float) -> np.ndarray:
        place = share * np.maximum(last, 0)
        below = np.floor(place).astype(int)
        above = np.minimum(below + 1, np.maximum(last, 0))
        lower, upper = (np.take_along_axis(ordered, index[..., None], axis=-1)[..., 0] for index in (below, above))
        return lower + (place - below) * (upper - lower)

    return at((1 - LEVEL) / 2), at((1 + LEVEL) / 2)
