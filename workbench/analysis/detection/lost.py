"""Counts the targets that a student lost of those its teacher found, and those that it found without the teacher.

A target is found if COCO's matching at IoU 0.5 gives it a detection of its class whose score is at least the least score. Detections below
that score are left out before the matching, which changes nothing for the others, because the best scores choose first.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench.analysis.detection.ap import Detections
from workbench.analysis.detection.ap_tests import Quantity, compare_totals
from workbench.analysis.detection.matches import BOX, match_detections
from workbench.analysis.detection.ratios import image_ratios
from workbench.analysis.detection.slices import CROWDING, SIZES, slice_targets
from workbench.analysis.detection.tide import find_errors
from workbench.errors import DataError
from workbench.overlap import pairwise_iou

LEAST_SCORE = 0.3  # as in the confusion of classes
Cell = Literal["both", "lost", "gained", "neither"]
CELLS: dict[Cell, tuple[bool, bool]] = {"both": (True, True), "lost": (True, False), "gained": (False, True), "neither": (False, False)}
"""The cells of the table: whether the teacher found the target, and whether the student did."""
Outcome = Literal["found", "low score", "classification", "localisation", "missed"]
OUTCOMES: tuple[Outcome, ...] = ("found", "low score", "classification", "localisation", "missed")
LOST = Quantity("share of the teacher's targets that were lost", False)
BY = ("all", "class", "size", "crowding")
_TARGET = ["image_id", "target"]


def part_of(ground_truth: Mapping[str, Any], images: np.ndarray) -> dict[str, Any]:
    """Returns the part of a COCO dict that is about some images.

    Args:
        ground_truth: COCO dict.
        images: ids of the images.
    """
    known = set(images.tolist())
    return {
        **ground_truth,
        "images": [image for image in ground_truth["images"] if image["id"] in known],
        "annotations": [one for one in ground_truth["annotations"] if one["image_id"] in known],
    }


def compared_targets(
    ground_truth: Mapping[str, Any],
    teacher: Detections,
    student: Detections,
    least_score: float = LEAST_SCORE,
    max_detections: int = 100,
) -> pd.DataFrame:
    """Returns for every target whether the teacher and the student found it, and what became of it in the student.

    Args:
        ground_truth: COCO dict of the images on which both were recorded.
        teacher: detections as for ``coco_ap``, of the same images.
        student: the same.
        least_score: least score of a detection that counts.
        max_detections: number of detections kept per image and class.

    Returns:
        One row per target without crowd and ignore regions, by image and target: ``image_id``, ``target``, ``category_id``,
        ``x1 y1 x2 y2``, ``class`` (name), ``size`` (COCO's), ``crowding`` (by the number of targets in the image), ``teacher`` and
        ``student`` (bool: found), ``cell`` (of ``CELLS``), and the student's ``outcome``: ``found``; ``low score`` if only a detection
        below the least score finds it; else what ``tide.find_errors`` says of it among the detections that count: ``classification``
        or ``localisation`` if one of these errors is about it, otherwise ``missed``.
    """
    every = match_detections(ground_truth, student, max_detections)
    own = find_errors(ground_truth, _at_least(student, least_score), max_detections).targets
    taught = match_detections(ground_truth, _at_least(teacher, least_score), max_detections).targets
    # the three frames hold the same targets in the order of the ground truth
    found, known = (own["found_by"] >= 0).to_numpy(), (taught["found_by"] >= 0).to_numpy()
    low = (every.targets["found_by"] >= 0).to_numpy() & ~found
    frame = slice_targets(every)[[*_TARGET, "category_id", *BOX, "size", "crowding"]].assign(
        teacher=known,
        student=found,
        cell=np.select([known & found, known, found], ["both", "lost", "gained"], "neither"),
        outcome=np.select([found, low], ["found", "low score"], own["error"].to_numpy(str)),
    )
    frame.insert(3, "class", frame["category_id"].map(every.classes))
    return frame.sort_values(_TARGET, ignore_index=True)


def cell_table(targets: pd.DataFrame, images: Sequence[int] | np.ndarray, samples: int = 300, seed: int = 0) -> pd.DataFrame:
    """Returns the two by two table of all targets and of those of each class, size and crowding.

    Args:
        targets: frame of ``compared_targets``.
        images: ids of all images of the comparison, which are resampled.
        samples: number of resamples.
        seed: seed of the draws.

    Returns:
        Four rows per slice: ``by``, ``slice``, ``cell``, ``n`` targets of the slice in the cell, their ``share`` of the slice's
        ``targets`` (0..1) with ``low`` and ``high``, and the number of ``images`` with such a target.
    """
    rows: list[pd.DataFrame] = []
    for by, names, group in _slices(targets):
        totals = np.bincount(group, minlength=len(names))
        for cell in CELLS:
            inside = (targets["cell"] == cell).to_numpy()
            there = targets["image_id"][inside].groupby(group[inside])
            share = _ratios(targets, group, len(names), inside, np.ones(len(targets)), images, samples, seed)
            rows.append(
                pd.DataFrame(
                    {
                        "by": by,
                        "slice": names,
                        "cell": cell,
                        "n": there.size().reindex(range(len(names)), fill_value=0).to_numpy(),
                        "targets": totals,
                        "images": there.nunique().reindex(range(len(names)), fill_value=0).to_numpy(),
                        **share,
                    }
                )
            )
    return _ordered(pd.concat(rows, ignore_index=True))


def lost_shares(targets: pd.DataFrame, images: Sequence[int] | np.ndarray, samples: int = 300, seed: int = 0) -> pd.DataFrame:
    """Returns which share of the targets that the teacher found was lost, of all and by class, size and crowding.

    Args:
        targets: frame of ``compared_targets``.
        images: ids of all images of the comparison.
        samples: number of resamples.
        seed: seed of the draws.

    Returns:
        One row per slice: ``by``, ``slice``, ``found`` (targets that the teacher found), ``lost`` of them, ``share`` (0..1, NaN if the
        teacher found none) with ``low`` and ``high``.
    """
    lost, found = (targets["cell"] == "lost").to_numpy(), targets["teacher"].to_numpy()
    return _ordered(
        pd.concat(
            [
                pd.DataFrame(
                    {
                        "by": by,
                        "slice": names,
                        "found": np.bincount(group, found, len(names)).astype(int),
                        "lost": np.bincount(group, lost, len(names)).astype(int),
                        **_ratios(targets, group, len(names), lost, found, images, samples, seed),
                    }
                )
                for by, names, group in _slices(targets)
            ],
            ignore_index=True,
        )
    )


def outcome_table(targets: pd.DataFrame, images: Sequence[int] | np.ndarray, samples: int = 300, seed: int = 0) -> pd.DataFrame:
    """Returns what became in the student of the targets that the teacher found.

    Returns:
        One row per outcome of ``OUTCOMES``: ``outcome``, ``n`` targets, their ``share`` of those that the teacher found (0..1) with
        ``low`` and ``high``, ``images`` with one.
    """
    found, group = targets["teacher"].to_numpy(), np.zeros(len(targets), int)
    rows: list[dict[str, Any]] = []
    for outcome in OUTCOMES:
        inside = found & (targets["outcome"] == outcome).to_numpy()
        share = _ratios(targets, group, 1, inside, found, images, samples, seed)
        rows.append(
            {
                "outcome": outcome,
                "n": int(inside.sum()),
                **{name: value[0] for name, value in share.items()},
                "images": targets.loc[inside, "image_id"].nunique(),
            }
        )
    return pd.DataFrame(rows)


def compare_lost(
    baseline: pd.DataFrame, other: pd.DataFrame, images: Sequence[int] | np.ndarray, samples: int = 300, seed: int = 0
) -> pd.DataFrame:
    """Returns how two students of one teacher differ in what they lost, of all targets and by class, size and crowding.

    Args:
        baseline: frame of ``compared_targets`` of one student.
        other: that of the other student, against the same detections of the teacher.
        images: ids of all images of the comparison.
        samples: number of resamples.
        seed: seed of the draws.

    Returns:
        One row per slice: ``by``, ``slice``, ``found`` (targets that the teacher found), ``both_lost``, ``only_baseline`` and
        ``only_other`` (lost by one student alone), ``baseline`` and ``other`` (shares lost, 0..1), ``difference`` with ``low`` and
        ``high``, ``verdict`` and ``sentence`` on the other student as in ``ap_tests``.

    Raises:
        DataError: the frames are of other targets, or the teacher found others.
    """
    same = len(baseline) == len(other) and (baseline[[*_TARGET, "teacher"]].to_numpy() == other[[*_TARGET, "teacher"]].to_numpy()).all()
    if not same:
        raise DataError("What two students lost can be compared only on the same images and with the same detections of the teacher.")
    found = baseline["teacher"].to_numpy()
    first, second = ((side["cell"] == "lost").to_numpy() for side in (baseline, other))
    rows: list[dict[str, Any]] = []
    for by, names, group in _slices(baseline):
        for number, name in enumerate(names):
            own = group == number
            asked = own & found
            totals = [pd.DataFrame({"image_id": baseline["image_id"], "total": lost & own, "n": asked}) for lost in (first, second)]
            quantity = LOST if by == "all" else Quantity(f"{LOST.name}, {by} {name}", False)
            verdict = compare_totals(quantity, {0: totals[0]}, {0: totals[1]}, np.asarray(images).tolist(), samples, seed).to_json()
            rows.append(
                {
                    "by": by,
                    "slice": name,
                    "found": int(asked.sum()),
                    "both_lost": int((first & second & own).sum()),
                    "only_baseline": int((first & ~second & own).sum()),
                    "only_other": int((second & ~first & own).sum()),
                    **{key: verdict[key] for key in ("baseline", "other", "difference", "low", "high", "verdict", "sentence")},
                }
            )
    return pd.DataFrame(rows).astype({name: float for name in ("baseline", "other", "difference", "low", "high")})


def inside_slice(targets: pd.DataFrame, by: str, name: str) -> pd.DataFrame:
    """Returns the targets of one slice of ``cell_table``."""
    return targets if by == "all" else targets[targets[by] == name]


def images_of(targets: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    """Returns the images with targets in a cell, those with most first: ``image_id``, ``n``."""
    counts = targets[targets["cell"] == cell].groupby("image_id").size().rename("n").reset_index()
    return counts.sort_values(["n", "image_id"], ascending=[False, True], ignore_index=True)


def nearest_boxes(targets: pd.DataFrame, detections: pd.DataFrame) -> pd.DataFrame:
    """Returns for each target the detection of its image that overlaps it most, whatever its class and score.

    Args:
        targets: rows of ``compared_targets``, of one image.
        detections: detections of that image, as for ``coco_ap``.

    Returns:
        One row per target that a detection overlaps: ``image_id``, ``target``, ``category_id`` and ``score`` of the detection, ``iou``,
        ``x1 y1 x2 y2``. Of equal overlaps the better score.
    """
    detections = detections.sort_values("score", ascending=False, kind="stable")
    boxes = detections[BOX].to_numpy(float)
    overlap = pairwise_iou(targets[BOX].to_numpy(float), boxes) if len(boxes) else np.zeros((len(targets), 1))
    best, there = overlap.argmax(1), overlap.max(1) > 0
    near = detections.iloc[best[there]][["category_id", "score", *BOX]].reset_index(drop=True)
    own = targets.loc[there, _TARGET].reset_index(drop=True)
    return pd.concat([own, near], axis=1).assign(iou=overlap.max(1)[there])


def _at_least(detections: Detections, score: float) -> pd.DataFrame:
    frame = detections if isinstance(detections, pd.DataFrame) else detections.to_pandas()
    return frame[frame["score"] >= score].reset_index(drop=True)


def _slices(targets: pd.DataFrame) -> Iterator[tuple[str, list[str], np.ndarray]]:
    """Yields for every way to divide the targets its name, the names of the slices that have targets, and ``[N]`` slice of each."""
    classes = targets.drop_duplicates("category_id").sort_values("category_id")["class"].drop_duplicates().tolist()
    known: dict[str, list[str]] = {"all": ["all"], "class": classes, "size": list(SIZES), "crowding": list(CROWDING)}
    for by, names in known.items():
        values = pd.Series("all", targets.index) if by == "all" else targets[by]
        there = [name for name in names if by == "all" or (values == name).any()]
        yield by, there, pd.Index(there).get_indexer(pd.Index(values))


def _ratios(
    targets: pd.DataFrame,
    group: np.ndarray,
    groups: int,
    above: np.ndarray,
    below: np.ndarray,
    images: Sequence[int] | np.ndarray,
    samples: int,
    seed: int,
) -> dict[str, np.ndarray]:
    found = image_ratios(targets["image_id"].to_numpy(), group, groups, above, below, samples, seed, np.asarray(images))
    return {"share": found.value, "low": found.low, "high": found.high}


def _ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of each slice one below the other, in the order of ``_slices``."""
    place = frame[["by", "slice"]].drop_duplicates()
    key = pd.MultiIndex.from_frame(place)
    order = np.argsort(key.get_indexer(pd.MultiIndex.from_frame(frame[["by", "slice"]])), kind="stable")
    return frame.iloc[order].reset_index(drop=True)
