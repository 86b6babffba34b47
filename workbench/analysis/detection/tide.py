"""Finds the types of detection errors and what each costs in AP: Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection
Errors", ECCV 2020, sections 2.2 (types) and 2.3 (costs).

Every detection that found no target has one type. Every target that was not found, and that no detection nearly found, is missed.
The cost of a type is AP50 when an oracle corrects it, minus AP50. Costs do not add up to the AP50 that is missing from 1.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench.analysis.detection.ap import Detections
from workbench.analysis.detection.bootstrap import draws, interval, with_all
from workbench.analysis.detection.cells import ClassMatches
from workbench.analysis.detection.matches import BOX, IOU, Matches, match_detections
from workbench.analysis.detection.weighted import by_image, class_aps
from workbench.overlap import pairwise_iou

BACKGROUND_IOU = 0.1
Error = Literal["classification", "localisation", "both", "duplicate", "background", "missed", "false_positive", "false_negative"]
MAIN: tuple[Error, ...] = ("classification", "localisation", "both", "duplicate", "background", "missed")
SPECIAL: tuple[Error, ...] = ("false_positive", "false_negative")
LABELS: dict[Error, str] = {
    "classification": "classification errors", "localisation": "localisation errors", "both": "errors of class and place",
    "duplicate": "duplicates", "background": "background", "missed": "missed targets", "false_positive": "all false positives",
    "false_negative": "all targets not found",
}  # fmt: skip
_REMOVED = ("both", "duplicate", "background")
_CORRECTED = ("classification", "localisation")
_IN_ORDER = np.array(["localisation", "classification", "duplicate", "background", "both"], dtype=object)


@dataclass(frozen=True)
class Errors:
    """Detections and targets of a run with their outcomes.

    Attributes:
        detections: columns of ``Matches`` and ``error``: ``correct``, ``ignored`` (on a crowd or ignore region), ``classification``,
            ``localisation``, ``both``, ``duplicate`` or ``background``; ``target`` is the target found, or the one that the error is
            about, -1 for background; ``corrects`` is True for the one detection that finds its target once its own error is corrected.
        targets: columns of ``Matches`` and ``error``: ``found``, ``missed``, or the type of the best-scored error that is about it,
            ``classification`` or ``localisation``; ``candidate`` is that detection's row, otherwise -1.
        images: ids of all images, ascending.
        classes: name by category id.
    """

    detections: pd.DataFrame
    targets: pd.DataFrame
    images: np.ndarray
    classes: dict[int, str]


def find_errors(ground_truth: Mapping[str, Any], detections: Detections, max_detections: int = 100) -> Errors:
    """Gives every detection and every target its type.

    A detection that found nothing has the first of these types that holds. ``localisation`` overlaps a target of its class by IoU 0.1 to
    0.5. ``classification`` overlaps one of another class by 0.5 or more. ``duplicate`` overlaps one of its class, which a better detection
    found, by 0.5 or more. ``background`` overlaps no target by more than 0.1. ``both`` is the rest.

    Args:
        ground_truth: COCO dict, as for ``match_detections``.
        detections: as for ``coco_ap``, optionally with ``query``.
        max_detections: number kept per image and class, as in COCO (the paper's code keeps that number per image).
    """
    matches = match_detections(ground_truth, detections, max_detections)
    found, own = matches.detections, matches.targets
    kind = np.select([found["hit"], ~found["counted"]], ["correct", "ignored"], "background").astype(object)
    about = np.full(len(found), -1)  # rows of `own`
    candidate = np.full(len(own), -1)
    missing = own["found_by"].to_numpy() < 0
    detected = _Columns(found[BOX].to_numpy(float), found["category_id"].to_numpy(), found["hit"].to_numpy())
    wanted = _Columns(own[BOX].to_numpy(float), own["category_id"].to_numpy(), ~missing)
    for rows, places in _wrong_by_image(matches):
        kind[rows], chosen = _types(detected, wanted, rows, places)
        about[rows] = np.where(chosen < 0, -1, places[chosen])
        corrected = rows[np.isin(kind[rows], _CORRECTED)]
        # the best score comes first
        for row, place in zip(corrected, about[corrected], strict=True):
            if missing[place] and candidate[place] < 0:
                candidate[place] = row

    target = found["target"].to_numpy().copy()
    target[about >= 0] = own["target"].to_numpy()[about[about >= 0]]
    corrects = np.zeros(len(found), bool)
    corrects[candidate[candidate >= 0]] = True
    state = np.where(missing, "missed", "found").astype(object)
    state[candidate >= 0] = kind[candidate[candidate >= 0]]
    return Errors(
        found.assign(target=target, error=kind, corrects=corrects),
        own.assign(error=state, candidate=candidate),
        matches.images,
        matches.classes,
    )


def error_costs(errors: Errors, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Returns AP50 and what each error costs, when image i (by ascending id) counts ``counts[s, i]`` times.

    The oracle turns a classification or localisation error into a hit if it is the best-scored one about a target that was not found;
    otherwise it removes the error. It removes errors of the types both, duplicate and background, and missed targets no longer count.
    ``false_positive`` removes every detection that is not a hit. ``false_negative`` ignores every target that was not found.

    Args:
        errors: result of ``find_errors``.
        counts: ``[S, I]`` non-negative whole numbers.

    Returns:
        ``ap50`` and the types of ``MAIN`` and ``SPECIAL``, each ``[S]``, NaN if no target is left.
    """
    counts = np.asarray(counts, dtype=float)
    order = _ranked(errors)
    across = by_image(counts)
    defined = sum((counts @ own.targets > 0 for own in _curves(errors, None, order)), np.zeros(len(counts)))

    def ap(fixed: Error | None) -> np.ndarray:
        total = sum((class_aps(own, across)[0] for own in _curves(errors, fixed, order)), np.zeros(len(counts)))
        return np.divide(total, defined, out=np.full(len(counts), np.nan), where=defined > 0)

    base = ap(None)
    return {"ap50": base, **{error: ap(error) - base for error in (*MAIN, *SPECIAL)}}


def error_counts(errors: Errors) -> dict[str, int]:
    """Returns the number of detections (for ``missed``: targets) of each type of ``MAIN``, of wrong detections and of targets not found."""
    kind, state = errors.detections["error"], errors.targets["error"]
    counts = {error: int((state == error).sum() if error == "missed" else (kind == error).sum()) for error in MAIN}
    wrong = int((~kind.isin(["correct", "ignored"])).sum())
    return {**counts, "false_positive": wrong, "false_negative": int((state != "found").sum())}


def error_table(errors: Errors, samples: int = 300, seed: int = 0) -> pd.DataFrame:
    """Returns what each error costs, with a percentile interval over resampled images.

    Returns:
        One row per type: ``error``, ``special`` (bool), ``count``, ``images`` (with at least one), ``cost`` (of AP50, 0..1), ``low``,
        ``high``.
    """
    values = error_costs(errors, with_all(draws(len(errors.images), samples, seed)))
    counts = error_counts(errors)
    rows: list[dict[str, Any]] = []
    for error in (*MAIN, *SPECIAL):
        cost = interval(values[error], len(errors.images))
        rows.append(
            {
                "error": error,
                "special": error in SPECIAL,
                "count": counts[error],
                "images": len(images_behind(errors, error)),
                "cost": cost.value,
                "low": cost.low,
                "high": cost.high,
            }
        )
    return pd.DataFrame(rows)


def error_summary(ground_truth: Mapping[str, Any], detections: Detections) -> dict[str, dict[str, float | None]]:
    """Returns ``count`` and ``cost`` (of AP50, 0..1, None if undefined) by type, as evaluations.jsonl holds them."""
    errors = find_errors(ground_truth, detections)
    costs, counts = error_costs(errors, np.ones((1, len(errors.images)))), error_counts(errors)
    return {
        error: {"count": counts[error], "cost": None if np.isnan(costs[error][0]) else float(costs[error][0])}
        for error in (*MAIN, *SPECIAL)
    }


def rows_behind(errors: Errors, error: Error, image_id: int | None = None) -> pd.DataFrame:
    """Returns the detections of a type, best score first, or the targets of ``missed`` and ``false_negative``; of all images or one."""
    targets = error in ("missed", "false_negative")
    rows = errors.targets if targets else errors.detections
    rows = rows if image_id is None else rows[rows["image_id"] == image_id]
    state = rows["error"]
    if targets:
        return rows[state == error if error == "missed" else state != "found"]
    chosen = ~state.isin(["correct", "ignored"]) if error == "false_positive" else state == error
    return rows[chosen].sort_values("score", ascending=False, kind="stable")


def images_behind(errors: Errors, error: Error) -> pd.DataFrame:
    """Returns the images with errors of a type, those with most first: ``image_id``, ``n``."""
    counts = rows_behind(errors, error).groupby("image_id").size().rename("n").reset_index()
    return counts.sort_values(["n", "image_id"], ascending=[False, True], ignore_index=True)


def queries_behind(errors: Errors, error: Error) -> pd.DataFrame:
    """Returns the query slots whose detections have an error of a type (a target not found has no slot), those with most first.

    Returns:
        ``query``, ``n`` detections, ``images``.
    """
    if error in ("missed", "false_negative"):
        return pd.DataFrame(columns=["query", "n", "images"])
    by_query = rows_behind(errors, error).groupby("query")["image_id"]
    counts = pd.DataFrame({"n": by_query.size(), "images": by_query.nunique()}).reset_index()
    return counts.sort_values(["n", "query"], ascending=[False, True], ignore_index=True)


@dataclass(frozen=True)
class _Columns:
    """Columns of a frame as arrays: ``[N, 4]`` boxes, ``[N]`` categories, and whether each detection or target has its match."""

    boxes: np.ndarray
    category: np.ndarray
    matched: np.ndarray


def _wrong_by_image(matches: Matches) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields, for each image with targets, rows of its wrong detections, the best score first, and rows of its targets."""
    found, own = matches.detections, matches.targets
    wrong = np.flatnonzero(found["counted"] & ~found["hit"])
    image = np.searchsorted(matches.images, found["image_id"].to_numpy()[wrong])
    order = np.lexsort((-found["score"].to_numpy(float)[wrong], image))
    wrong, image = wrong[order], image[order]
    owner = np.searchsorted(matches.images, own["image_id"])
    places = np.argsort(owner, kind="stable")
    every = np.arange(len(matches.images) + 1)
    rows_from, places_from = np.searchsorted(image, every), np.searchsorted(owner[places], every)
    for n in range(len(matches.images)):
        rows, targets = wrong[rows_from[n] : rows_from[n + 1]], places[places_from[n] : places_from[n + 1]]
        if len(rows) and len(targets):
            yield rows, targets


def _types(found: _Columns, own: _Columns, rows: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the type of each detection of one image, and the index of the target in the image that it is about, -1 = none."""
    iou = pairwise_iou(found.boxes[rows], own.boxes[places])
    same = found.category[rows][:, None] == own.category[places]
    right, other = np.where(same, iou, 0), np.where(same, 0, iou)
    taken = np.where(own.matched[places], right, 0)
    nearest = right.max(1)
    first = np.select(
        [(nearest >= BACKGROUND_IOU) & (nearest <= IOU), other.max(1) >= IOU, taken.max(1) >= IOU, iou.max(1) <= BACKGROUND_IOU],
        [0, 1, 2, 3], 4)  # fmt: skip
    about = (right.argmax(1), other.argmax(1), taken.argmax(1), np.full(len(rows), -1), iou.argmax(1))
    return _IN_ORDER[first], np.choose(first, about)


def _curves(errors: Errors, fixed: Error | None, order: np.ndarray) -> Iterator[ClassMatches]:
    """Yields detections and targets of every class, best score first, after an oracle corrected one type; ``order`` is of ``_ranked``."""
    rows, targets = errors.detections, errors.targets
    kind, category, hit, kept = (rows[name].to_numpy().copy() for name in ("error", "category_id", "hit", "counted"))
    asked = np.ones(len(targets), bool)
    if fixed in _REMOVED:
        kept &= kind != fixed
    elif fixed == "false_positive":
        kept &= hit
    elif fixed in _CORRECTED:
        corrected = (kind == fixed) & rows["corrects"].to_numpy()
        kept &= (kind != fixed) | corrected
        hit |= corrected
        place = np.flatnonzero(targets["error"] == fixed)
        category[targets["candidate"].to_numpy()[place]] = targets["category_id"].to_numpy()[place]
    elif fixed == "missed":
        asked = (targets["error"] != "missed").to_numpy()
    elif fixed == "false_negative":
        asked = (targets["error"] == "found").to_numpy()

    labels = np.unique(targets["category_id"])
    order = order[kept[order]]
    order = order[np.argsort(category[order], kind="stable")]
    starts, ends = (np.searchsorted(category[order], labels, side=side) for side in ("left", "right"))
    image = np.searchsorted(errors.images, rows["image_id"])
    wanted = np.zeros((len(labels), len(errors.images)))
    place = np.searchsorted(labels, targets["category_id"]), np.searchsorted(errors.images, targets["image_id"])
    np.add.at(wanted, place, asked)
    for start, end, per_image in zip(starts, ends, wanted, strict=True):
        own = order[start:end]
        yield ClassMatches(image[own], hit[own][None], np.ones((1, len(own)), bool), per_image)


def _ranked(errors: Errors) -> np.ndarray:
    """Returns rows of all detections in COCO's order: by score, equal scores by image."""
    image = np.searchsorted(errors.images, errors.detections["image_id"])
    return np.lexsort((image, -errors.detections["score"].to_numpy(float)))
