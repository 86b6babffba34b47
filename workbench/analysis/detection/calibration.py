"""Measures whether scores tell how often a detection is right: reliability and the expected calibration error at IoU 0.5.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equations 2 to 5, with a hit in place of a correct class. All detections
that AP counts are judged, so the many with low scores weigh most; therefore every bin comes with its n.
"""

import numpy as np
import pandas as pd

from workbench.analysis.detection.bootstrap import Interval, draws, interval, with_all
from workbench.analysis.detection.matches import Matches

BINS = 10


def reliability(matches: Matches, samples: int = 300, seed: int = 0) -> pd.DataFrame:
    """Returns how often detections in each range of scores are right.

    Args:
        matches: result of ``match_detections``.
        samples: number of resamples of the images.
        seed: seed of the resamples.

    Returns:
        One row per bin: ``from``, ``to`` (the last includes its end), ``n`` detections, ``score`` (their mean), ``precision`` (the share
        that found a target), ``low``, ``high`` (its interval); NaN in an empty bin.
    """
    counts = with_all(draws(len(matches.images), samples, seed))
    n, score, hits = _binned(matches, counts)
    found = [interval(_share(hits[:, place], n[:, place]), len(matches.images)) for place in range(BINS)]
    return pd.DataFrame({
        "from": np.arange(BINS) / BINS,
        "to": np.arange(1, BINS + 1) / BINS,
        "n": n[0].astype(int),
        "score": _share(score[0], n[0]),
        "precision": [one.value for one in found],
        "low": [one.low for one in found],
        "high": [one.high for one in found],
    })  # fmt: skip


def calibration_error(matches: Matches, samples: int = 300, seed: int = 0) -> Interval:
    """Returns the expected calibration error, 0..1, with its interval over resampled images."""
    counts = with_all(draws(len(matches.images), samples, seed))
    return interval(calibration_errors(matches, counts), len(matches.images))


def calibration_errors(matches: Matches, counts: np.ndarray) -> np.ndarray:
    """Returns ``[S]``, the error when image i (by ascending id) counts ``counts[s, i]`` times: the mean over detections of the distance
    between mean score and precision of their bin; NaN without detections.
    """
    n, score, hits = _binned(matches, counts)
    return _share(abs(hits - score).sum(axis=1), n.sum(axis=1))


def _binned(matches: Matches, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the number of detections, the sum of their scores and the number of hits, each ``[S, bins]``."""
    rows = matches.detections[matches.detections["counted"]]
    scores = rows["score"].to_numpy(float)
    places = np.minimum((scores * BINS).astype(int), BINS - 1)
    images = np.searchsorted(matches.images, rows["image_id"])
    size = len(matches.images) * BINS

    def total(weights: np.ndarray) -> np.ndarray:
        per_image = np.bincount(images * BINS + places, weights, size).reshape(len(matches.images), BINS)
        return np.asarray(counts, dtype=float) @ per_image

    return total(np.ones(len(rows))), total(scores), total(rows["hit"].to_numpy(float))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)
