"""Computes what each query slot is worth in AP: AP with all detections minus AP without those of the slot, for all labels.

Detections are removed before the cut to the best hundred, which is repeated without them. Drops do not add up to AP, because detections can
replace each other. A drop may be negative if a slot's false positives cost more than its hits bring.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from workbench.analysis.detection import bootstrap
from workbench.analysis.detection.ap import Detections
from workbench.analysis.detection.bootstrap import LEVEL, Interval
from workbench.analysis.detection.cells import THRESHOLDS, ClassMatches
from workbench.analysis.queries.removal import ClassEntries, class_entries

_RECALLS = np.linspace(0, 1, 101)  # COCO's recall thresholds


def ap_drops(
    ground_truth: Mapping[str, Any], detections: Detections, blocks: int = 20, seed: int = 0, max_detections: int = 100
) -> pd.DataFrame:
    """Returns the AP drop of every slot that has a detection, exact, with a jackknife interval.

    The interval is the drop +- t times the standard error from leaving out one block of images at a time (Efron and Stein, "The jackknife
    estimate of variance", 1981). Blocks are random and equal in size.

    Args:
        ground_truth: COCO dict.
        detections: as for ``coco_ap``, with the column ``query``; before the cut to ``max_detections``.
        blocks: number of blocks, at most the number of images; with fewer than two there is no interval.
        seed: seed of the blocks.
        max_detections: number of detections kept per image and class.

    Returns:
        One row per slot, by slot: ``query``, ``ap`` (with all detections, 0..1), ``ap_drop``, ``low``, ``high`` (95 %), ``n``
        (detections of the slot), ``images``, ``blocks``. NaN if no target counts.

    Raises:
        DataError: a query has two detections of one class in one image, or an id is not in the ground truth.
        NonFiniteError: a score or box is NaN or infinite.
    """
    images = len(ground_truth["images"])
    classes = class_entries(ground_truth, detections, max_detections)
    queries, counts = np.unique(np.asarray(detections["query"]), return_counts=True)
    block, blocks = image_blocks(images, blocks, seed)
    with_all, without = _with_and_without(classes, queries, block, blocks)
    ap, drop = _mean_over_classes(with_all), _mean_over_classes(with_all[..., None] - without)
    low, high = _jackknife(drop)
    return pd.DataFrame({
        "query": queries, "ap": ap[0], "ap_drop": drop[0], "low": low, "high": high, "n": counts, "images": images, "blocks": blocks,
    })  # fmt: skip


def slot_interval(
    ground_truth: Mapping[str, Any], detections: Detections, query: int, samples: int = 200, seed: int = 0, max_detections: int = 100
) -> Interval:
    """Returns the AP drop of one slot with a percentile interval over Poisson resamples, in which each image counts Poisson(1) times.

    Both APs of a resample are of the same images, and each is COCO's AP of the resampled data set.

    Args:
        ground_truth: COCO dict.
        detections: as for ``ap_drops``.
        query: the slot; without detections it is worth 0.
        samples: number of resamples.
        seed: seed of the draws.
        max_detections: number of detections kept per image and class.
    """
    images = len(ground_truth["images"])
    counts = bootstrap.with_all(np.random.default_rng(seed).poisson(1, (samples, images)))
    return bootstrap.interval(slot_drops(ground_truth, detections, query, counts, max_detections), images)


def slot_drops(
    ground_truth: Mapping[str, Any], detections: Detections, query: int, counts: np.ndarray, max_detections: int = 100
) -> np.ndarray:
    """Returns ``[S]``, the AP drop of one slot when image i (by ascending id) counts ``counts[s, i]`` times; see ``slot_interval``."""
    classes = class_entries(ground_truth, detections, max_detections)
    whole = bootstrap.mean_ap((_list_of(own) for own in classes), counts)
    less = bootstrap.mean_ap((_list_of(own, query) for own in classes), counts)
    return whole - less


def _list_of(own: ClassEntries, without: int | None = None) -> ClassMatches:
    """Returns the detections that AP is computed from: those within the cut, without those of one slot."""
    there, hit, ignored = own.kept.copy(), own.hit.copy(), own.ignored.copy()
    gone = np.flatnonzero(own.kept & (own.query == without))
    there[gone] = False
    there[own.entrant[gone][own.entrant[gone] >= 0]] = True
    threshold, which = np.nonzero(own.heir[:, gone] >= 0)
    heir = own.heir[threshold, gone[which]]
    hit[threshold, heir], ignored[threshold, heir] = True, False
    return ClassMatches(own.image, hit & there, ~ignored & there, own.targets)


def image_blocks(images: int, blocks: int, seed: int) -> tuple[np.ndarray, int]:
    """Returns ``[I]``, the block of each image, and the number of blocks; blocks are random and differ in size by at most one."""
    blocks = min(blocks, images)
    order = np.random.default_rng(seed).permutation(images)
    block = np.zeros(images, dtype=int)
    block[order] = np.arange(images) % max(blocks, 1)
    return block, blocks if blocks > 1 else 0


def _with_and_without(
    classes: Sequence[ClassEntries], queries: np.ndarray, block: np.ndarray, blocks: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns AP by part, class and slot: ``[1 + blocks, C]`` with all detections, ``[1 + blocks, C, Q]`` without those of a slot.

    Part 0 is of all images, and each other part leaves out a block. NaN if a class has no targets.
    """
    keep = np.ones((1 + blocks, len(block)))
    for number in range(blocks):
        keep[number + 1, block == number] = 0
    with_all = np.full((1 + blocks, len(classes)), np.nan)
    without = np.full((1 + blocks, len(classes), len(queries)), np.nan)
    for number, own in enumerate(classes):
        slot = np.searchsorted(queries, own.query)
        for threshold in range(len(THRESHOLDS)):
            for part, (whole, less) in enumerate(_average_precision(own, slot, len(queries), threshold, keep)):
                with_all[part, number] = whole if threshold == 0 else with_all[part, number] + whole
                without[part, number] = less if threshold == 0 else without[part, number] + less
    return with_all / len(THRESHOLDS), without / len(THRESHOLDS)


def _average_precision(
    own: ClassEntries, slot: np.ndarray, slots: int, threshold: int, keep: np.ndarray
) -> Iterator[tuple[float, np.ndarray]]:
    """Returns AP of one class at one IoU threshold for every part: with all detections, and ``[Q]`` without those of each slot.

    Recall grows, and the envelope of precision is attained, only at hits. So precision is computed only where any slot has a hit, for all
    slots at once, from the list with all detections and what each slot changes in it.
    """
    hit, ignored, heir = own.hit[threshold], own.ignored[threshold], own.heir[threshold]
    kept = np.flatnonzero(own.kept)
    heirs, entrants = kept[heir[kept] >= 0], kept[own.entrant[kept] >= 0]
    to_heir, to_entrant = heir[heirs], own.entrant[entrants]
    column = np.flatnonzero(np.bincount(np.concatenate([kept[hit[kept]], to_heir, to_entrant[hit[to_entrant]]]), minlength=len(hit)))
    width = len(column)
    place = np.searchsorted(column, np.arange(len(hit)))  # the first column at or after an entry
    counted = ~ignored

    def changes(*parts: tuple[np.ndarray, np.ndarray, np.ndarray, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns where, of which image, and by how much: (who is removed, changed entry, whether it counts, by how much)."""
        where = [slot[gone[which]] * width + place[entry[which]] for gone, entry, which, _ in parts]
        inside = [place[entry[which]] < width for _, entry, which, _ in parts]
        return (
            np.concatenate([values[i] for values, i in zip(where, inside, strict=True)]),
            np.concatenate([own.image[gone[which]][i] for (gone, _, which, _), i in zip(parts, inside, strict=True)]),
            np.concatenate([np.full(i.sum(), by) for (*_, by), i in zip(parts, inside, strict=True)]),
        )

    always = np.ones(len(heirs), dtype=bool)
    hits = changes((kept, kept, hit[kept], -1.0), (heirs, to_heir, always, 1.0), (entrants, to_entrant, hit[to_entrant], 1.0))
    count = changes(
        (kept, kept, counted[kept], -1.0), (heirs, to_heir, ignored[to_heir], 1.0), (entrants, to_entrant, counted[to_entrant], 1.0)
    )
    touched = np.unique(slot[kept])
    for weights in keep:
        targets = int(weights @ own.targets)
        if not targets:
            yield np.nan, np.full(slots, np.nan)
            continue
        reached = np.searchsorted(_RECALLS, np.arange(targets + 1) / targets, side="right")
        weight = weights[own.image]
        base_hits = np.bincount(place[kept[hit[kept]]], weight[kept[hit[kept]]], minlength=width)[:width]
        base_count = np.cumsum(np.bincount(place[kept], (weight * counted)[kept], minlength=width)[:width])
        changed_hits, changed_count = (
            np.bincount(where, by * weights[image], minlength=slots * width).reshape(slots, width)[touched]
            for where, image, by in (hits, count)
        )
        rows_hits = np.concatenate([base_hits[None], base_hits + changed_hits]).cumsum(axis=1)
        rows_count = np.concatenate([base_count[None], base_count + changed_count.cumsum(axis=1)])
        ap = _interpolated(rows_hits, rows_count, reached)
        without = np.full(slots, ap[0])
        without[touched] = ap[1:]
        yield float(ap[0]), without


def _interpolated(hits: np.ndarray, count: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """Returns ``[R]``, the mean over COCO's 101 recall thresholds of the greatest precision at that recall or a higher one.

    Args:
        hits: ``[R, U]`` hits up to each entry.
        count: ``[R, U]`` detections that count up to each entry.
        reached: ``[targets + 1]`` number of recall thresholds that a number of hits reaches.
    """
    if not hits.shape[1]:
        return np.zeros(len(hits))
    precision = np.divide(hits, count, out=np.zeros_like(hits), where=count > 0)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recalls = np.diff(reached[hits.astype(np.intp)], axis=1, prepend=0)
    return np.einsum("ru,ru->r", envelope, recalls) / len(_RECALLS)


def _mean_over_classes(values: np.ndarray) -> np.ndarray:
    """Returns the mean over axis 1 of the defined classes; NaN if none is defined."""
    defined = np.isfinite(values)
    count = defined.sum(axis=1)
    return np.divide(np.where(defined, values, 0).sum(axis=1), count, out=np.full(count.shape, np.nan), where=count > 0)


def _jackknife(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the interval ends of ``values[0]``; ``values[1:]`` leave out a block each and are NaN if undefined without it."""
    parts, defined = values[1:], np.isfinite(values[1:])
    count = defined.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(defined, parts, 0).sum(axis=0) / count
        spread = np.where(defined, parts - mean, 0) ** 2
        error = np.sqrt((count - 1) / count * spread.sum(axis=0))
        reach = np.where(count > 1, stats.t.ppf((1 + LEVEL) / 2, np.maximum(count - 1, 1)) * error, np.nan)
    return values[0] - reach, values[0] + reach
