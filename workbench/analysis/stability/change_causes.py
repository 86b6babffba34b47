"""Says why targets change their query from one evaluation to the next.

Every change has the first of these causes that holds:

1. ``uncovered``, nobody really covers it: at one of the two evaluations no query of the layer overlaps the target by IoU 0.5 (``COVERED``).
2. ``swapped``, swapped with a neighbour: the query that the target takes held another target of the image at the evaluation before, or the
   query that it gives up holds another target now.
3. ``undecided``, class undecided: at one of the two evaluations the query that holds the target says another class than the target's.
4. ``competing``, two good queries compete: what is left. Queries cover the target at both evaluations, no neighbour is involved, and both
   queries say its class.

A target that changed its query has the cause of most of its changes; of equally frequent ones the first in this order. So a target that
alternates between two queries of IoU 0.1 is a missed object, and not an undecided matching.

The margin says how close the decision was: what the cheapest assignment of the image's targets costs more if the target may not have the
query that it holds. The query table keeps the score of the best class alone, so the cost here is 2 (1 - p) + 5 L1 + 2 (1 - GIoU), with p
the score of a query that says the target's class and 0 for the others. No rule depends on the margin.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from workbench.analysis.stability.churn import Identity
from workbench.analysis.stability.grouped import share_of_targets
from workbench.analysis.stability.same_box import BOX, SAME_BOX_IOU
from workbench.overlap import centred_iou, corners_of, pairwise_giou, pairwise_iou

Cause = Literal["uncovered", "swapped", "undecided", "competing"]
CAUSES: dict[Cause, str] = {
    "uncovered": "nobody really covers it",
    "swapped": "swapped with a neighbour",
    "undecided": "class undecided",
    "competing": "two good queries compete",
}
COVERED = 0.5  # least IoU of a query that covers a target, as in AP50
NEEDED = ("step", "image_id", "query", "source", "label", "score", *BOX, "match")  # columns of the table
_TARGET = ["image_id", "target"]
_SIDES = ("before", "now")
EVIDENCE = [
    *(f"{name}_{side}" for name in ("iou", "covered", "label", "margin") for side in _SIDES), "neighbour_iou", "swapped", "cause",
]  # fmt: skip


def explain_changes(
    before: pd.DataFrame, now: pd.DataFrame, changes: pd.DataFrame, targets: pd.DataFrame, identity: Identity = "source"
) -> pd.DataFrame:
    """Returns the cause of every change between two evaluations, with the numbers that it follows from.

    Args:
        before: rows of the query table at the first evaluation, of the student and one layer, with all queries and the columns ``NEEDED``.
        now: the same at the second evaluation.
        changes: rows of ``grouped.target_changes`` of the second evaluation.
        targets: every target that can be matched: ``image_id``, ``target``, ``label``, ``cx cy w h`` in 0..1 of the image.
        identity: what identifies a query across evaluations.

    Returns:
        The rows of ``changes`` in which the target had a query before, with the columns of ``EVIDENCE``, which are null where
        ``changed`` is False: IoU of the query that holds the target (``iou_before``, ``iou_now``), the largest IoU of any query
        (``covered_before``, ``covered_now``), the class that the holding query says (``label_before``, ``label_now``), the margin
        (``margin_before``, ``margin_now``, NaN if no other query could hold the target), the largest IoU with another target of the
        image (``neighbour_iou``), whether a neighbour had or has one of the two queries (``swapped``), and the ``cause``.
    """
    compared = changes.dropna(subset=["changed"]).astype({"changed": bool}).reset_index(drop=True)
    moved = compared[compared["changed"]]
    sides = [_Columns(rows, ["query", "source", "label", "score", "match"]) for rows in (before, now)]
    wanted = _Columns(targets, ["target", "label"])
    found: dict[int, dict[str, Any]] = {}
    image, views = None, []
    for index, own, target, query, previous in (
        moved[["image_id", "target", "query", "previous_query"]].sort_values("image_id").itertuples()
    ):
        if own != image:
            image, views = own, [_Image(side.of(own), wanted.of(own)) for side in sides]
        found[index] = _evidence(views[0], views[1], int(target), (int(previous), int(query)), identity)
    evidence = pd.DataFrame.from_dict(found, orient="index", columns=EVIDENCE).astype({"swapped": "boolean"})
    return compared.join(evidence)


class _Columns:
    """Columns of a frame as arrays, from which the rows of one image are cut; a frame for each image would take ten times as long."""

    def __init__(self, frame: pd.DataFrame, names: Sequence[str]):
        order = np.argsort(frame["image_id"].to_numpy(), kind="stable")
        self._image = frame["image_id"].to_numpy()[order]
        self._columns = {name: frame[name].to_numpy()[order] for name in names} | {"boxes": frame[BOX].to_numpy(np.float64)[order]}

    def of(self, image: int) -> dict[str, np.ndarray]:
        start, end = np.searchsorted(self._image, [image, image + 1])
        return {name: column[start:end] for name, column in self._columns.items()}


class _Image:
    """The queries and targets of one image at one evaluation.

    Args:
        rows: all queries of the layer.
        targets: all targets.
    """

    def __init__(self, rows: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]):
        self.query, self.label, self.match, self.boxes = (rows[name] for name in ("query", "label", "match", "boxes"))
        # slots count down from -1, as in ``churn.matched_rows``
        self.identity = np.where(rows["source"] >= 0, rows["source"], -1 - self.query)
        self.targets, self.classes, self.own = targets["target"], targets["label"], targets["boxes"]
        corners, wanted = corners_of(self.boxes), corners_of(self.own)
        self.iou = pairwise_iou(wanted, corners)
        self.between = pairwise_iou(wanted, wanted)
        np.fill_diagonal(self.between, 0)
        score = np.where(self.label == self.classes[:, None], rows["score"].astype(np.float64), 0)
        distance = np.abs(self.own[:, None] - self.boxes).sum(-1)
        self.cost = 2 * (1 - score) + 5 * distance + 2 * (1 - pairwise_giou(wanted, corners))

    def row(self, query: int) -> int:
        return int(np.flatnonzero(self.query == query)[0])

    def margin(self, place: int, held: int) -> float:
        """Returns what the targets of the image cost more if one of them may not have the query that it holds.

        Args:
            place: row of the target.
            held: row of its query.
        """
        matched = np.isin(self.targets, self.match)
        rows = np.flatnonzero(matched)
        # of T targets no best assignment needs more than the T + 1 cheapest queries of each
        most = min(len(rows) + 1, self.cost.shape[1])
        columns = np.union1d(np.argpartition(self.cost[rows], most - 1, axis=1)[:, :most], held)
        cost = self.cost[np.ix_(rows, columns)]
        target, query = int(np.flatnonzero(rows == place)[0]), int(np.flatnonzero(columns == held)[0])
        others, free = np.delete(cost, target, axis=0), cost.copy()
        free[target, query] = np.inf
        if cost.shape[1] <= cost.shape[0]:
            return np.nan
        kept = cost[target, query] + _least(np.delete(others, query, axis=1))
        return _least(free) - kept

    def holder(self, box: np.ndarray, identity: int, by: Identity) -> np.ndarray:
        """Returns the targets whose query at this evaluation is the one with this box or identity."""
        same = centred_iou(self.boxes, box) >= SAME_BOX_IOU if by == "box" else self.identity == identity
        return self.match[same & (self.match >= 0)]


def _evidence(before: _Image, now: _Image, target: int, queries: tuple[int, int], identity: Identity) -> dict[str, Any]:
    """Returns the evidence and the cause of one change; ``queries`` are the slots that held the target before and now."""
    place = int(np.flatnonzero(now.targets == target)[0])
    rows = before.row(queries[0]), now.row(queries[1])
    found: dict[str, Any] = {}
    for side, view, row in zip(_SIDES, (before, now), rows, strict=True):
        found |= {f"iou_{side}": view.iou[place, row], f"covered_{side}": view.iou[place].max(), f"label_{side}": int(view.label[row]),
                  f"margin_{side}": view.margin(place, row)}  # fmt: skip
    taken = before.holder(now.boxes[rows[1]], now.identity[rows[1]], identity)
    given = now.holder(before.boxes[rows[0]], before.identity[rows[0]], identity)
    swapped = bool((taken != target).any() or (given != target).any())
    right = before.label[rows[0]] == now.label[rows[1]] == now.classes[place]
    uncovered = min(found["covered_before"], found["covered_now"]) < COVERED
    cause: Cause = "uncovered" if uncovered else "swapped" if swapped else "competing" if right else "undecided"
    return {**found, "neighbour_iou": now.between[place].max(), "swapped": swapped, "cause": cause}


def _least(cost: np.ndarray) -> float:
    row, column = linear_sum_assignment(cost)
    return float(cost[row, column].sum())


def churn_by_cause(
    explained: pd.DataFrame, over: list[str], by: str | None = None, targets: pd.DataFrame | None = None, samples: int = 300, seed: int = 0
) -> pd.DataFrame:
    """Returns churn split by cause: the shares of the four causes add up to the churn.

    Args:
        explained: frame of ``explain_changes``, of one pair of evaluations or several.
        over: columns whose values are kept apart: ``["step"]``, or ``[]`` for all evaluations together.
        by: ``label`` or ``size`` of ``targets``, kept apart as well.
        targets: frame of ``targets.target_frame``.
        samples: number of resamples of the images.
        seed: seed of the draws.

    Returns:
        One row per group and cause: ``over``, ``by``, ``cause``, ``churn`` (0..1: changes with this cause, of the targets matched at both
        evaluations) with ``low`` and ``high``, ``changes``, ``n`` targets, ``images``.
    """
    rows = explained.assign(all=0)
    parts: list[pd.DataFrame] = []
    for cause in CAUSES:
        flagged = rows.assign(hit=rows["cause"] == cause)
        part = share_of_targets(flagged, "hit", "churn", over or ["all"], by, targets, samples, seed)
        parts.append(part.assign(cause=cause, changes=(part["churn"] * part["n"]).round().astype(int)))
    keys = [*over, *([by] if by else [])]
    found = pd.concat(parts, ignore_index=True)
    order = found[keys].apply(lambda column: column.cat.codes if column.dtype == "category" else column) if keys else found[["all"]]
    found = found.iloc[np.lexsort([order[name] for name in order][::-1])] if len(found) else found
    return found[[*keys, "cause", "churn", "low", "high", "changes", "n", "images"]].reset_index(drop=True)


def unsettled_targets(explained: pd.DataFrame) -> pd.DataFrame:
    """Returns every target that changed its query, with the cause of most of its changes and the numbers behind it.

    Args:
        explained: frame of ``explain_changes`` over all pairs of evaluations.

    Returns:
        One row per target, most changes first, then by image and target: ``image_id``, ``target``, ``cause``, ``n`` (pairs of evaluations
        at which it was matched), ``changes``, one column per cause with the number of its changes, ``iou`` (median over its changes of
        the worse of the two holding queries), ``margin`` (median of the smaller margin), ``neighbour_iou``, ``class_flips`` (changes
        between queries that say different classes) and ``swaps``.
    """
    moved = explained[explained["changed"].astype(bool)]
    changes = moved.assign(
        iou=moved[["iou_before", "iou_now"]].min(axis=1),
        margin=moved[["margin_before", "margin_now"]].min(axis=1),
        class_flips=moved["label_before"] != moved["label_now"],
        swaps=moved["swapped"].astype(bool),
        **{cause: moved["cause"] == cause for cause in CAUSES},
    ).groupby(_TARGET)
    functions: Mapping[str, str] = {
        **dict.fromkeys((*CAUSES, "class_flips", "swaps"), "sum"), "iou": "median", "margin": "median", "neighbour_iou": "max",
    }  # fmt: skip
    frame = changes.agg(functions).astype({name: float for name in ("iou", "margin", "neighbour_iou")})
    frame = frame.assign(changes=changes.size(), n=explained.groupby(_TARGET).size().reindex(frame.index))
    counts = frame[list(CAUSES)].to_numpy(int)
    # of equal counts the first cause
    frame["cause"] = np.array(list(CAUSES))[counts.argmax(axis=1)] if len(frame) else np.zeros(0, dtype=object)
    whole = dict.fromkeys(("n", "changes", "class_flips", "swaps", *CAUSES), "int64")
    frame = frame.reset_index().astype(whole)
    columns = [*_TARGET, "cause", "n", "changes", *CAUSES, "iou", "margin", "neighbour_iou", "class_flips", "swaps"]
    return frame[columns].sort_values(["changes", *_TARGET], ascending=[False, True, True], ignore_index=True)


def cause_table(targets: pd.DataFrame) -> pd.DataFrame:
    """Returns how many unsettled targets have each cause; ``targets`` is a frame of ``unsettled_targets``.

    Returns:
        One row per cause: ``cause``, ``targets``, ``changes`` (of these targets), ``iou`` and ``margin`` (medians over them).
    """
    grouped = targets.groupby("cause")
    frame = pd.DataFrame({"targets": grouped.size(), "changes": grouped["changes"].sum(), "iou": grouped["iou"].median(),
                          "margin": grouped["margin"].median()}).reindex(list(CAUSES))  # fmt: skip
    whole = {"targets": "int64", "changes": "int64"}
    return frame.fillna({"targets": 0, "changes": 0}).astype(whole).rename_axis("cause").reset_index()
