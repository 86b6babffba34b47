"""Measures how stable the matching is, and how far teacher and student agree in it, from rows of the query table.

Moments are evaluations (same layer) or decoder layers (same evaluation). Across evaluations a query is identified by its slot or, in
families that select queries per image, by its ``source`` (encoder cell). If the size of the input differs, cells differ too, and a query is
identified by its box, to an IoU of 0.7. Across layers of one evaluation it is identified by its slot.

Only matched rows are read, because the others follow from them: an unmatched query has target -1, and an image with n targets has
min(n, queries) matched rows. Images without targets have none and are left out. Crowd and ignored regions are never matched, so they never
count.
"""

from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench.analysis.stability.same_box import BOX, SAME_BOX_IOU, paired_boxes
from workbench.overlap import centred_iou
from workbench.store.queries import TEACHER_STEP

CHURN_NEEDED = ("step", "model", "image_id", "layer", "query", "source", "match")  # columns of the table
NEEDED = (*CHURN_NEEDED, "quality", "mate", "mate_layer")
Moment = Literal["step", "layer"]
Identity = Literal["source", "box"]
_COLUMNS = ["step", "layer", "previous", "churn", "n", "instability", "instability_normalised", "images", "matches"]


def churn_over_steps(
    queries: pd.DataFrame, layers: Literal["last", "all"] = "last", model: str = "student", identity: Identity = "source"
) -> pd.DataFrame:
    """Returns churn and instability from each evaluation to the next.

    Churn is the share of targets whose query changed, of those matched at both evaluations, totalled over images. Instability (IS,
    DN-DETR) is the mean over images of the number of queries whose target index (or -1) changed. Normalised, the total number of changes
    is divided by 2 sum of min(targets, queries).

    Args:
        queries: rows of the query table.
        layers: the last layer, or every one.
        model: model whose rows are read.
        identity: what identifies a query; "box" needs the columns ``cx``, ``cy``, ``w`` and ``h`` as well.

    Returns:
        One row per step and layer: ``step``, ``layer``, ``previous`` (the step compared with), ``churn`` 0..1, ``n`` (targets matched
        at both), ``instability`` (queries per image), ``instability_normalised`` 0..1, ``images``, ``matches`` (sum of min(targets,
        queries)). At the first step n, images and matches are 0 and the others null.
    """
    rows = matched_rows(queries, model, by_source=True)
    if layers == "last":
        rows = rows[rows["layer"] == rows["layer"].max()]
    return _changes(rows[rows["step"] != TEACHER_STEP], "step", identity)


def churn_over_layers(queries: pd.DataFrame, step: int | None = None, model: str = "student") -> pd.DataFrame:
    """Returns churn and instability from each decoder layer to the next, as defined in ``churn_over_steps``.

    Args:
        queries: rows of the query table.
        step: one evaluation (``TEACHER_STEP`` for the teacher); every one by default.
        model: model whose rows are read.

    Returns:
        The columns of ``churn_over_steps``; ``previous`` is a layer, and layer 0 has nulls.
    """
    rows = matched_rows(queries, model)
    return _changes(rows if step is None else rows[rows["step"] == step], "layer", "source")


def pooled(changes: pd.DataFrame) -> dict[str, Any]:
    """Returns all moments of a frame of ``churn_over_steps`` or ``churn_over_layers`` as one, with totals over targets and images.

    Returns:
        ``churn``, ``n``, ``instability``, ``instability_normalised``, ``images``, ``matches``; None if nothing was compared.
    """
    n, images, matches = (int(changes[name].sum()) for name in ("n", "images", "matches"))
    targets = float((changes["churn"] * changes["n"]).sum())
    queries = float((changes["instability"] * changes["images"]).sum())
    return {
        "churn": targets / n if n else None,
        "n": n,
        "instability": queries / images if images else None,
        "instability_normalised": queries / (2 * matches) if matches else None,
        "images": images,
        "matches": matches,
    }


def agreement(queries: pd.DataFrame) -> pd.DataFrame:
    """Returns the share of targets, of those matched in both models, whose two queries are paired with each other.

    Args:
        queries: rows of the query table, including the teacher's.

    Returns:
        One row per step and student layer: ``step``, ``layer``, ``agreement`` 0..1, ``n`` targets. The teacher's layer is the one that
        the student's layer is paired with.
    """
    student = matched_rows(queries, "student").dropna(subset=["mate"])
    teacher = matched_rows(queries, "teacher")[["image_id", "layer", "match", "query"]]
    both = student.merge(teacher.rename(columns={"layer": "mate_layer", "query": "teacher_query"}), on=["image_id", "mate_layer", "match"])
    both["agrees"] = both["mate"] == both["teacher_query"]
    agrees = both.groupby(["step", "layer"])["agrees"]
    return pd.DataFrame({"agreement": agrees.mean(), "n": agrees.size()}).reset_index()


def mean_quality(queries: pd.DataFrame, model: str = "teacher") -> pd.DataFrame:
    """Returns the mean quality of the queries matched with a target (the quality of all others is 0 by definition).

    Returns:
        One row per step and layer: ``step``, ``layer``, ``quality`` 0..1, ``n`` queries.
    """
    rows = queries[(queries["model"] == model) & (queries["match"] >= 0)]
    quality = rows.groupby(["step", "layer"])["quality"]
    return pd.DataFrame({"quality": quality.mean(), "n": quality.size()}).reset_index()


def matched_rows(queries: pd.DataFrame, model: str, by_source: bool = False) -> pd.DataFrame:
    """Returns the matched rows of a model with ``identity``, the number that identifies a query."""
    rows = queries[(queries["model"] == model) & (queries["match"] >= 0)]
    slot = rows["query"].astype("int64")
    # slots count down from -1, so that they never equal an encoder cell
    identity = rows["source"].astype("int64").where(rows["source"] >= 0, -1 - slot) if by_source else slot
    return rows.assign(identity=identity, match=rows["match"].astype("int64"))


class Moments:
    """Matched rows, numbered so that the same image one moment earlier is found by subtraction.

    Attributes:
        moments: moments of the rows, ascending.
        number: ``[R]`` index into ``moments``.
        others: values of what is held fixed, ascending.
        cell: ``[R]`` combination of moment and other value, ``number * len(others) + other``.
        group: ``[R]`` combination of cell and image; that of the same image one moment earlier is smaller by ``stride``.
    """

    def __init__(self, rows: pd.DataFrame, over: Moment):
        other = "layer" if over == "step" else "step"
        # by hashes, which takes a tenth of the time of sorting
        (self.number, self.moments), (fixed, self.others), (image, images) = (
            pd.factorize(rows[name].to_numpy(), sort=True) for name in (over, other, "image_id")
        )
        self.cell = self.number * len(self.others) + fixed
        self.cells = len(self.moments) * len(self.others)
        self.group = self.cell * len(images) + image
        self.stride = len(self.others) * len(images)

    def earlier(self, value: np.ndarray) -> np.ndarray:
        """Returns ``[R]``, the row of the same image and ``value`` one moment earlier, -1 if there is none."""
        value = value - value.min(initial=0)
        width = int(value.max(initial=0)) + 1
        key = self.group * width + value
        order = np.argsort(key)
        key = key[order]
        wanted = key - self.stride * width
        # both are ascending, so that each search starts where the last one ended
        place = np.searchsorted(key, wanted).clip(max=max(len(key) - 1, 0))
        found = np.empty(len(key), dtype=np.int64)
        found[order] = np.where(key[place] == wanted, order[place], -1)
        return found

    def totals(self, chosen: np.ndarray) -> np.ndarray:
        """Returns the number of rows of each cell where ``chosen`` is true."""
        return np.bincount(self.cell[chosen], minlength=self.cells)


def differs(rows: pd.DataFrame, before: np.ndarray, identity: Identity) -> np.ndarray:
    """Returns ``[R]`` bool: whether the row ``before[r]`` exists and belongs to another query."""
    if identity == "box":
        boxes = rows[BOX].to_numpy()
        return (before >= 0) & (centred_iou(boxes, boxes[before]) < SAME_BOX_IOU)
    query = rows["identity"].to_numpy()
    return (before >= 0) & (query != query[before])


def _changes(rows: pd.DataFrame, over: Moment, identity: Identity) -> pd.DataFrame:
    """Returns the frame of the public functions."""
    at = Moments(rows, over)
    match = rows["match"].to_numpy()
    same_target = at.earlier(match)
    changed = differs(rows, same_target, identity)
    if identity == "box":
        same_query = paired_boxes(at.group, at.stride, rows[BOX].to_numpy())
    else:
        same_query = at.earlier(rows["identity"].to_numpy())

    groups, first, count = np.unique(at.group, return_index=True, return_counts=True)
    place = np.searchsorted(groups, groups - at.stride).clip(max=max(len(groups) - 1, 0))
    # an image counts if it was evaluated, and had targets, at both moments
    compared = groups[place] == groups - at.stride
    cells = at.cell[first[compared]]
    images = np.bincount(cells, minlength=at.cells)
    now, before = (np.bincount(cells, values, at.cells).astype(np.int64) for values in (count[compared], count[place[compared]]))
    # of the queries matched at one of the two moments at least, those that kept their target
    both = same_query >= 0
    queries = now + before - at.totals(both) - at.totals(both & (match == match[same_query]))

    cell = np.unique(at.cell)
    number, fixed = np.divmod(cell, max(len(at.others), 1))
    n = at.totals(same_target >= 0)[cell]
    with np.errstate(invalid="ignore"):
        result = pd.DataFrame({
            over: at.moments[number], "layer" if over == "step" else "step": at.others[fixed],
            "previous": pd.Series(at.moments[np.maximum(number - 1, 0)], dtype="Int64").mask(number == 0),
            "churn": at.totals(changed)[cell] / n, "n": n,
            "instability": queries[cell] / images[cell], "instability_normalised": queries[cell] / (2 * now[cell]),
            "images": images[cell], "matches": now[cell],
        })  # fmt: skip
    return result[_COLUMNS].sort_values(["step", "layer"], ignore_index=True)
