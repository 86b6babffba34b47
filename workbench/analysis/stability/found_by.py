"""Measures found-by churn: how often a target that is detected at two evaluations is detected by another candidate.

A candidate is one row of a detector's predictions: a query of a DETR, an anchor or a point of a dense detector, a proposal of a two-stage
one. A target is detected by the candidate whose detection COCO's matching gives it: right class, IoU of 0.5 or more, the best score
first. No matching of the training is read, so the number is defined for every detector, whether its assignment is one-to-one or
many-to-one, and detectors of different kinds can be compared by it.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from workbench.analysis.detection.matches import BOX as CORNERS
from workbench.analysis.detection.matches import Matches
from workbench.analysis.stability.grouped import share_of_targets
from workbench.analysis.stability.same_box import BOX, SAME_BOX_IOU
from workbench.overlap import centred_iou

FoundBy = Literal["query", "source", "box"]
_TARGET = ["image_id", "target"]
FINDERS = [*_TARGET, "query", "source", "score", *BOX]
_CHANGES = ["step", "previous", *_TARGET, "query", "previous_query", "changed"]


def finders(matches: Matches, sources: pd.DataFrame | None = None) -> pd.DataFrame:
    """Returns the candidate that detects each target at one evaluation.

    Args:
        matches: result of ``matches.match_detections``.
        sources: ``image_id``, ``query`` and ``source`` of the queries, where these are known by their encoder cell.

    Returns:
        One row per detected target: ``image_id``, ``target``, ``query`` (the candidate), ``source`` (its encoder cell, -1 without one),
        ``score``, and its box ``cx cy w h`` in pixels.
    """
    found = matches.targets[matches.targets["found_by"] >= 0]
    by = matches.detections.iloc[found["found_by"].to_numpy()].reset_index(drop=True)
    x1, y1, x2, y2 = (by[name].to_numpy(np.float64) for name in CORNERS)
    frame = pd.DataFrame({
        **{name: found[name].to_numpy() for name in _TARGET}, "query": by["query"].astype("int64"), "score": by["score"].astype(float),
        "cx": (x1 + x2) / 2, "cy": (y1 + y2) / 2, "w": x2 - x1, "h": y2 - y1,
    })  # fmt: skip
    if sources is None:
        frame["source"] = -1
    else:
        frame = frame.merge(sources[["image_id", "query", "source"]], on=["image_id", "query"], how="left")
        frame["source"] = frame["source"].fillna(-1).astype("int64")
    return frame[FINDERS].sort_values(_TARGET, ignore_index=True)


def found_by_changes(found: pd.DataFrame, steps: Sequence[int], identity: FoundBy) -> pd.DataFrame:
    """Returns whether another candidate detects each target than at the evaluation before.

    Args:
        found: frames of ``finders``, one below the other, with their ``step``.
        steps: steps of all evaluations, ascending; only neighbours among them are compared.
        identity: what makes a candidate the same at two evaluations; ``rows_of_run.found_by_identity`` determines it for a run. Boxes are
            the same from an IoU of 0.7 on.

    Returns:
        One row per evaluation but the first, and target that is detected at it and at the one before: ``step``, ``previous`` (the
        evaluation before), ``image_id``, ``target``, ``query``, ``previous_query``, ``changed``.
    """
    place = {step: number for number, step in enumerate(steps)}
    now = found.assign(place=found["step"].map(place).to_numpy())
    both = now.merge(now.assign(place=now["place"] + 1), on=["place", *_TARGET], suffixes=("", "_before"))
    if identity == "box":
        boxes = (both[BOX].to_numpy(float), both[[f"{name}_before" for name in BOX]].to_numpy(float))
        changed = centred_iou(*boxes) < SAME_BOX_IOU
    else:
        changed = (both[identity] != both[f"{identity}_before"]).to_numpy()
    both = both.assign(previous=both["step_before"], previous_query=both["query_before"], changed=changed)
    return both[_CHANGES].sort_values(["step", *_TARGET], ignore_index=True)


def found_by_churn(
    changes: pd.DataFrame, by: str | None = None, targets: pd.DataFrame | None = None, samples: int = 300, seed: int = 0
) -> pd.DataFrame:
    """Returns found-by churn: of the targets that are detected at both of two evaluations, the share whose candidate changed.

    Args:
        changes: frame of ``found_by_changes``.
        by: ``label`` or ``size`` of ``targets``; None for all together.
        targets: frame of ``targets.target_frame``.
        samples: number of resamples of the images.
        seed: seed of the draws.

    Returns:
        One row per evaluation but the first, and slice: ``step``, ``previous``, ``by``, ``found_by_churn`` 0..1 with ``low`` and ``high``
        (95 %, resampled images), ``n`` targets, ``images``.
    """
    return share_of_targets(changes, "changed", "found_by_churn", ["step", "previous"], by, targets, samples, seed)


def pooled_found_by_churn(
    changes: pd.DataFrame, by: str | None = None, targets: pd.DataFrame | None = None, samples: int = 300, seed: int = 0
) -> pd.DataFrame:
    """Returns ``found_by_churn`` with all evaluations counted together: one row, or one per slice; no row if nothing was compared."""
    together = changes.assign(step=0, previous=0)
    return found_by_churn(together, by, targets, samples, seed).drop(columns=["step", "previous"])


def found_by_totals(changes: pd.DataFrame) -> pd.DataFrame:
    """Returns ``image_id``, ``total`` (targets whose candidate changed) and ``n`` (targets compared), as ``compare_totals`` reads them."""
    counts = changes.groupby("image_id")["changed"].agg(total="sum", n="size")
    return counts.reset_index()
