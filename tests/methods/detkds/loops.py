"""The formulas of DetKDS once more, in loops over the entries that count, written from their descriptions."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass
class Entries:
    """Values, and which of them count; those that do not are 0."""

    values: Array
    counts: Flags

    @classmethod
    def of(cls, values: Array, counts: Flags | None = None) -> "Entries":
        flags = np.ones(values.shape, bool) if counts is None else np.broadcast_to(counts, values.shape).copy()
        return cls(np.where(flags, values, 0.0), flags)


def along(entries: Entries, axes: tuple[int, ...], change: Callable[[Array], Array]) -> Entries:
    """Applies a change to the entries that count of every line along some axes."""
    ends = tuple(range(-len(axes), 0))
    values = np.moveaxis(entries.values, axes, ends).copy()
    counts = np.moveaxis(entries.counts, axes, ends)
    for place in np.ndindex(*values.shape[: values.ndim - len(axes)]):
        line, kept = values[place], counts[place]
        if kept.any():
            line[kept] = change(line[kept])
    return Entries(np.moveaxis(values, ends, axes), entries.counts)


def each_line(entries: Entries, axis: int, measure: Callable[[Array], float]) -> list[float]:
    """Returns a number for every line along an axis that has an entry that counts."""
    values, counts = np.moveaxis(entries.values, axis, -1), np.moveaxis(entries.counts, axis, -1)
    return [measure(values[place][counts[place]]) for place in np.ndindex(*values.shape[:-1]) if counts[place].any()]


def shares(line: Array) -> Array:
    powers = [math.exp(value - line.max()) for value in line]
    return np.array([power / sum(powers) for power in powers])


def unit(line: Array) -> Array:
    return line / max(math.sqrt(sum(value * value for value in line)), 1e-12)


def first(name: str, entries: Entries, drawn: Array) -> Entries:
    """``drawn [N, 1, H, W]`` are the uniform numbers of the mask."""
    values, counts = entries.values, entries.counts
    if name == "natt":
        return along(entries, (0,), lambda line: len(line) * shares(line / 0.5))
    if name == "catt" and values.ndim < 4:
        return along(entries, (1,), lambda line: len(line) * shares(line / 0.5))
    if name == "no" or values.ndim < 4:
        return entries
    result = values.copy()
    for n in range(len(values)):
        inside = counts[n, 0]
        if name == "mask":
            result[n] *= drawn[n] <= 0.35
        elif name == "satt":
            sizes = np.abs(values[n]).mean(0)[inside]
            weights = np.zeros(inside.shape)
            weights[inside] = [math.sqrt(len(sizes) * share) for share in shares(sizes / 0.5)]
            result[n] *= weights
        else:
            sizes = np.array([np.abs(values[n, c][inside]).sum() / inside.sum() for c in range(values.shape[1])])
            result[n] *= np.sqrt(len(sizes) * shares(sizes / 0.5))[:, None, None]
    return Entries(result, counts)


def second(name: str, entries: Entries, border: bool) -> Entries:
    """With ``border``, the zeros that fill up the last window count."""
    values, counts = entries.values, entries.counts
    if name == "scale":
        return Entries(np.where(counts, (values + 1) / 2, 0.0), counts)
    if values.ndim < 4 or name in ("no", "scale_r1"):
        return entries
    side = int(name[-1])
    images, channels, height, width = values.shape
    rows, columns = -(-height // side), -(-width // side)
    filled = np.zeros((images, channels, rows * side, columns * side))
    filled[:, :, :height, :width] = values
    known = np.full(filled.shape, border)
    known[:, :, :height, :width] = counts
    cut = np.zeros((images, channels * rows * columns, side, side))
    cut_known = np.zeros(cut.shape, bool)
    most, some = np.zeros((images, channels, rows, columns)), np.zeros((images, channels, rows, columns), bool)
    for n, c, i, j in np.ndindex(images, channels, rows, columns):
        tile = filled[n, c, i * side : (i + 1) * side, j * side : (j + 1) * side]
        seen = known[n, c, i * side : (i + 1) * side, j * side : (j + 1) * side]
        cut[n, (c * rows + i) * columns + j], cut_known[n, (c * rows + i) * columns + j] = tile, seen
        if seen.any():
            most[n, c, i, j], some[n, c, i, j] = tile[seen].max(), True
    return Entries(cut, cut_known) if name.startswith("local") else Entries(most, some)


def flat(entries: Entries, axes: int) -> Entries:
    """Keeps the first axes and puts the others in a row."""
    shape = (*entries.values.shape[:axes], -1)
    return Entries(entries.values.reshape(shape), entries.counts.reshape(shape))


def third(name: str, entries: Entries) -> Entries:
    rank = entries.values.ndim
    if name == "no":
        return entries
    if name in ("batch", "channel"):
        return flat(entries, 1 if name == "batch" else min(rank, 2)) if rank > 2 else entries
    if name == "pow2":
        return Entries(entries.values**2, entries.counts)
    if name == "min_max_normalize":
        return along(entries, tuple(range(rank)), lambda line: (line - line.min()) / (line.max() - line.min() + 1e-9))
    if name == "batchnorm":
        axes = (0, *range(2, rank))
        return along(entries, axes, lambda line: (line - line.mean()) / math.sqrt(line.var() + 1e-5))
    kind, _, axis = name.partition("_")
    if axis == "HW":
        if rank == 2:
            return entries
        if kind == "norm":
            return along(entries, tuple(range(2, rank)), unit)
        entries, where = flat(entries, 2), (2,)
    else:
        where = (0,) if axis == "N" else (1,)
    changes = {"norm": unit, "softmax": shares, "logsoftmax": lambda line: np.log(shares(line))}
    return along(entries, where, changes[kind])


def named_axis(name: str, rank: int) -> tuple[int, bool]:
    """Returns the axis of the distribution that a third transformation stands for, and whether maps are flattened for it."""
    if name.endswith("_N"):
        return 0, False
    if (name.endswith("_HW") or name == "channel") and rank > 2:
        return 2, rank == 4
    return 1, False


def divergence(name: str, student: Entries, teacher: Entries) -> list[float]:
    """Returns the sum of p_T log(p_T / p_S) along each line of the axis that the third transformation names."""
    plain = "no" if "softmax" in name else name
    own, other = third(plain, student), third(plain, teacher)
    axis, flattened = named_axis(name, own.values.ndim)
    if flattened:
        own, other = flat(own, 2), flat(other, 2)
    other_lines = iter(each_lines(other, axis))
    found: list[float] = []
    for a, b in zip(each_lines(own, axis), other_lines, strict=True):
        # logarithms of the shares are taken before the shares, which may round to 0
        log_own, log_other = (line - line.max() - np.log(np.exp(line - line.max()).sum()) for line in (a, b))
        found.append(float((np.exp(log_other) * (log_other - log_own)).sum()))
    return found


def each_lines(entries: Entries, axis: int) -> list[Array]:
    values, counts = np.moveaxis(entries.values, axis, -1), np.moveaxis(entries.counts, axis, -1)
    return [values[place][counts[place]] for place in np.ndindex(*values.shape[:-1]) if counts[place].any()]


def cosine(a: Array, b: Array) -> float:
    return float(sum(x * y for x, y in zip(unit(a), unit(b), strict=True)))


def pearson(a: Array, b: Array) -> float:
    return cosine(a - a.mean(), b - b.mean()) if min(np.ptp(a), np.ptp(b)) > 1e-9 else 0.0


def similarity(student: Entries, teacher: Entries) -> float:
    """Returns the mean SSIM over the cells that count, with Gaussian windows of 11 x 11 that hold cells that count alone."""
    inside = teacher.counts
    spread = (teacher.values[inside].max() - teacher.values[inside].min()) ** 2
    low, high = 0.01**2 * spread, 0.03**2 * spread
    found: list[float] = []
    for n, c, i, j in zip(*inside.nonzero(), strict=True):
        weights, pairs = [], []
        for y, x in zip(*inside[n, c].nonzero(), strict=True):
            if max(abs(y - i), abs(x - j)) <= 5:
                weights.append(math.exp(-((y - i) ** 2 + (x - j) ** 2) / (2 * 1.5**2)))
                pairs.append((student.values[n, c, y, x], teacher.values[n, c, y, x]))
        share = np.array(weights) / sum(weights)
        a, b = np.array(pairs).T
        mean_a, mean_b = (share * a).sum(), (share * b).sum()
        var_a, var_b = (share * (a - mean_a) ** 2).sum(), (share * (b - mean_b) ** 2).sum()
        both = (share * (a - mean_a) * (b - mean_b)).sum()
        likeness = (2 * mean_a * mean_b + low) * (2 * both + high)
        found.append(likeness / ((mean_a**2 + mean_b**2 + low) * (var_a + var_b + high)))
    return float(np.mean(found))


def overlaps(a: Array, b: Array) -> tuple[float, float]:
    """Returns IoU and generalised IoU of two boxes given by their corners."""
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    across, down = (max(0.0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1))
    union = area_a + area_b - across * down
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return across * down / union, across * down / union - (hull - union) / hull


def corrected_distance(name: str, student: Entries, teacher: Entries) -> float:
    inside, gap = teacher.counts, np.abs(student.values - teacher.values)
    if name in ("l1", "l2", "smooth_l1"):
        cost = {"l1": gap, "l2": gap**2, "smooth_l1": np.where(gap < 1, gap**2 / 2, gap - 0.5)}[name]
        return float(cost[inside].mean())
    if name == "ssim":
        return 1 - similarity(student, teacher)
    lines = zip(*(each_lines(side, 0 if name == "cor" else 1) for side in (student, teacher)), strict=True)
    if name == "cor":
        return float(np.mean([max(0.0, 1 - pearson(a, b)) ** 2.02 for a, b in lines]))
    return float(np.mean([1 - (cosine if name == "cos" else pearson)(a, b) for a, b in lines]))


def released_distance(name: str, student: Array, teacher: Array) -> float:
    """As the released code computes it; every entry counts."""
    gap = np.abs(student - teacher)
    if name == "l1":
        return float(gap.mean())
    if name == "l2":
        return float((gap**2).mean())
    if name == "smooth_l1":
        return float(np.where(gap < 1, gap**2 / 2, gap - 0.5).mean())
    if name == "kl":
        if (teacher < 0).any():
            return math.nan
        return float(np.mean([t * (math.log(t) - s) if t > 0 else 0.0 for s, t in zip(student.flat, teacher.flat, strict=True)]))
    if name == "cor":
        total = 0.0
        for a, b in zip(
            np.moveaxis(student, 0, -1).reshape(-1, len(student)), np.moveaxis(teacher, 0, -1).reshape(-1, len(student)), strict=True
        ):
            with np.errstate(divide="ignore", invalid="ignore"):
                score = ((a - a.mean()) / a.std(ddof=1) * (b - b.mean()) / b.std(ddof=1)).sum() / len(a)
            total += abs(score - 1) ** 2.02
        return math.log2(total)
    found: list[float] = []
    for a, b in zip(*(each_lines(Entries.of(side), 1) for side in (student, teacher)), strict=True):
        if name == "cos":
            found.append(float(a @ b) / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-8))
        else:
            a, b = a - a.mean(), b - b.mean()
            found.append(1 - float(a @ b) / (float(np.linalg.norm(a) * np.linalg.norm(b)) + 1e-8))
    return float(np.mean(found))
