"""Measures how similar the student's own features are to the teacher's, apart from what an adapter makes of them."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Alignment:
    """Linear CKA of two sets of features of the same cells, 0..1, with its 95 % interval.

    Attributes:
        value: 1 if one set is the other rotated and scaled, 0 if no direction of one varies with one of the other.
        low: lower end.
        high: upper end.
        images: number of images that the cells are from.
        cells: number of compared cells.
        without: the value with each image left out in turn, from which the difference of two alignments on the same images gets an
            interval of its own; empty for one image.
    """

    value: float
    low: float
    high: float
    images: int
    cells: int
    without: tuple[float, ...]


def linear_cka(student: np.ndarray, teacher: np.ndarray, image: np.ndarray) -> Alignment:
    """Returns the centred kernel alignment with linear kernels (Kornblith et al., ICML 2019, equation 4 with HSIC of equation 3).

    It is ``|Y'X|^2 / (|X'X| |Y'Y|)`` of centred features with Frobenius norms. It does not change when features are rotated or scaled and
    needs no fit, so an adapter between the two, however good, does not change it. The interval is a jackknife over images.

    Args:
        student: ``[M, D_S]`` features of M cells.
        teacher: ``[M, D_T]`` features of the same cells.
        image: ``[M]`` image of each cell.
    """
    names, place = np.unique(image, return_inverse=True)
    both = np.concatenate([student, teacher], axis=1).astype(np.float64)
    width = student.shape[1]
    # sums over the cells of each image; the sums without an image are differences of them
    count = np.bincount(place, minlength=len(names)).astype(np.float64)
    total = np.stack([both[place == k].sum(0) for k in range(len(names))])
    square = np.stack([both[place == k].T @ both[place == k] for k in range(len(names))])
    value = _cka(count.sum(), total.sum(0), square.sum(0), width)
    if len(names) < 2:
        return Alignment(value, float("nan"), float("nan"), len(names), len(both), ())
    without = np.array([
        _cka(count.sum() - count[k], total.sum(0) - total[k], square.sum(0) - square[k], width) for k in range(len(names))
    ])  # fmt: skip
    reach = jackknife_reach(without)
    return Alignment(value, value - reach, value + reach, len(names), len(both), tuple(without.tolist()))


def jackknife_reach(without: np.ndarray) -> float:
    """Returns half of the 95 % interval of a number, from its values ``[I]`` with one of I images left out."""
    return 1.96 * float(np.sqrt((len(without) - 1) / len(without) * np.square(without - without.mean()).sum()))


def _cka(count: float, total: np.ndarray, square: np.ndarray, width: int) -> float:
    covariance = square - np.outer(total, total) / count
    own, other, cross = covariance[:width, :width], covariance[width:, width:], covariance[:width, width:]
    norms = np.linalg.norm(own) * np.linalg.norm(other)
    return float(np.square(cross).sum() / norms) if norms > 0 else 0.0
