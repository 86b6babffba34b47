"""Checks whether the teacher's classes and boxes fit the data."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from workbench.analysis.diagnosis.findings import Evidence, Finding, NotJudged
from workbench.analysis.diagnosis.material import LOCALISED, Material
from workbench.analysis.diagnosis.statistics import Estimate, ratio_difference, share_interval
from workbench.overlap import centred_iou

# Another reading of the boxes must find this many more of the targets, at the lower end of the interval. Readings that agree by chance
# (boxes in the middle of the image, squares) differ by less.
BOX_GAIN = 0.1


def class_map(material: Material, baseline: Material | None) -> list[Finding]:
    """Finds classes that the teacher calls by each other's names.

    For each target, the teacher's query that finds it best (score x IoU, with IoU 0.5 or more) votes with its class. The best one-to-one
    assignment of classes to voted classes is split into cycles. A cycle is reported if at least two of its classes get more than half of
    their votes under another name, with 95 % confidence. One class alone under another's name is a confusion, not a wrong map.
    """
    rows = material.teacher
    found = rows[rows["best_iou"] >= LOCALISED].assign(worth=rows["score"] * rows["best_iou"])
    best = found.sort_values("worth").drop_duplicates(["image_id", "best_target"], keep="last")
    votes = best.merge(material.targets, left_on=["image_id", "best_target"], right_on=["image_id", "target"], suffixes=("", "_target"))
    if votes.empty:
        raise NotJudged("the teacher finds none of the targets")
    names = material.info["classes"]
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts, (votes["label_target"].to_numpy(np.int64), votes["label"].to_numpy(np.int64)), 1)
    order = linear_sum_assignment(-(counts + 1e-6 * np.eye(len(names))))[1]
    _note_other_names(material, counts, names)
    findings = []
    for cycle in _cycles(order):
        moved = {label: share_interval(int(counts[label, order[label]]), int(counts[label].sum())) for label in cycle}
        if sum(share.low > 0.5 for share in moved.values()) >= 2:
            swap = "; ".join(f"{names[label]} is called {names[order[label]]}" for label in cycle)
            right = ", ".join(names[int(np.flatnonzero(order == column)[0])] for column in range(len(names)))
            findings.append(Finding(
                "class map", "error",
                f"The teacher's classes are permuted: {swap}.",
                tuple(
                    Evidence(f"share of {names[label]} that the teacher calls {names[order[label]]}", share.value, share.n,
                             "targets it finds", share.low, share.high)
                    for label, share in moved.items()
                ),
                f"Correct the class names in the teacher's workbench.json, or class_map in the recipe: what the student's classes "
                f"{', '.join(names)} get from the teacher is {right}.",
            ))  # fmt: skip
    return findings


def _note_other_names(material: Material, counts: np.ndarray, names: list[str]) -> None:
    """Notes, of the two classes that are called most by another's name, how often they are; a permutation needs two of them."""
    others = counts * (1 - np.eye(len(names), dtype=np.int64))
    shares = [(share_interval(int(row.max()), int(counts[label].sum())), label, int(row.argmax())) for label, row in enumerate(others)]
    for share, label, other in sorted((one for one in shares if one[0].n), key=lambda one: -one[0].low)[:2]:
        what = "that the teacher calls by another name" if not others[label].any() else f"that the teacher calls {names[other]}"
        material.compare(f"share of {names[label]} {what}", share, 0.5, "above")


def box_format(material: Material, baseline: Material | None) -> list[Finding]:
    """Finds boxes of the teacher that fit far more targets if their four numbers are read in another way.

    Each image contributes as many queries as it has targets, the best by score. A query finds a target at IoU 0.5.
    """
    rows, targets = material.teacher, material.targets
    count = targets.groupby("image_id").size()
    chosen = rows[rows["image_id"].isin(count.index)].sort_values(["image_id", "score"], ascending=[True, False])
    chosen = chosen[chosen.groupby("image_id").cumcount() < chosen["image_id"].map(count)]
    if chosen.empty:
        raise NotJudged("no image has targets")
    as_is = _found(chosen, targets, _numbers(chosen))
    findings, gains = [], list[tuple[str, Estimate]]()
    for name, boxes in _readings(chosen):
        other = _found(chosen, targets, boxes)
        gain = ratio_difference(other, as_is)
        gains.append((name, gain))
        if gain.low > BOX_GAIN:
            before, after = (ratio_difference(part) for part in (as_is, other))
            findings.append((gain.value, Finding(
                "box format", "error",
                f"The teacher's boxes are in another format: read as {name} they find {100 * after.value:.0f} % of the targets, but only "
                f"{100 * before.value:.0f} % as the workbench reads them.",
                tuple(
                    Evidence(f"share of confident boxes on a target, read as {how}", share.value, share.n, "images", share.low, share.high)
                    for how, share in (("centre x, centre y, width, height", before), (name, after))
                ),
                "The box head comes from other code. Convert the checkpoint (workbench convert --layout), or turn its boxes into centre x, "
                "centre y, width, height, as shares of the image (0..1).",
            )))  # fmt: skip
    name, gain = max(gains, key=lambda one: one[1].low)
    material.compare(f"share of confident boxes on a target, read as {name}, minus the same as they are read", gain, BOX_GAIN, "above")
    return [max(findings, key=lambda pair: pair[0])[1]] if findings else []


def _cycles(order: np.ndarray) -> Iterator[list[int]]:
    """Yields the cycles of a permutation that have two labels or more."""
    seen: set[int] = set()
    for start in range(len(order)):
        cycle, label = [], start
        while label not in seen:
            seen.add(label)
            cycle.append(label)
            label = int(order[label])
        if len(cycle) > 1:
            yield cycle


def _numbers(rows: pd.DataFrame) -> np.ndarray:
    """Returns ``[N, 4]``, the four numbers of each box as they are stored."""
    return rows[["cx", "cy", "w", "h"]].to_numpy(np.float64)


def _readings(rows: pd.DataFrame) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name of each other reading, with the boxes ``[N, 4]`` cxcywh that it gives."""
    a, b, c, d = _numbers(rows).T
    yield "x1, y1, x2, y2", np.stack([(a + c) / 2, (b + d) / 2, np.maximum(c - a, 0), np.maximum(d - b, 0)], axis=1)
    yield "top left corner, width, height", np.stack([a + c / 2, b + d / 2, c, d], axis=1)
    yield "centre y, centre x, height, width", np.stack([b, a, d, c], axis=1)


def _found(rows: pd.DataFrame, targets: pd.DataFrame, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns, per image, the number of boxes (cxcywh) with IoU 0.5 or more with a target, and the number of boxes."""
    queries = rows[["image_id"]].assign(row=np.arange(len(rows)))
    pairs = queries.merge(targets[["image_id", "x1", "y1", "x2", "y2"]], on="image_id")
    x1, y1, x2, y2 = pairs[["x1", "y1", "x2", "y2"]].to_numpy().T
    iou = centred_iou(boxes[pairs["row"].to_numpy()], np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=1))
    best = pd.Series(iou).groupby(pairs["row"].to_numpy()).max().to_numpy()
    hits = pd.Series(best >= LOCALISED).groupby(rows["image_id"].to_numpy())
    return hits.sum().to_numpy(np.float64), hits.size().to_numpy(np.float64)
