"""Measures whether two sets of queries give a target to corresponding queries: by target, class, size or image, with intervals.

A student query corresponds to the teacher query that it is paired with by the full Hungarian assignment. A query of the teacher's group,
which the student's decoder gets beside its own queries, corresponds to the teacher's query of the same slot.
"""

import pandas as pd

from workbench.analysis.stability.churn import matched_rows
from workbench.analysis.stability.grouped import share_of_targets

_KEYS = ["step", "layer", "image_id", "target"]
_COLUMNS = [*_KEYS, "query", "mate", "other_query", "agrees"]


def teacher_agreement(queries: pd.DataFrame) -> pd.DataFrame:
    """Returns, for targets matched in both models, whether student and teacher give them to queries that are paired with each other.

    Args:
        queries: rows of the query table, including the teacher's.

    Returns:
        One row per target, step and student layer: ``step``, ``layer``, ``image_id``, ``target``, ``query`` (the student's), ``mate`` (the
        teacher query paired with it), ``other_query`` (the teacher's own, at the layer of that pair), ``agrees``.
    """
    teacher = matched_rows(queries, "teacher")[["image_id", "layer", "match", "query"]]
    other = teacher.rename(columns={"layer": "mate_layer", "query": "other_query"})
    return _agreement(queries, other, ["image_id", "mate_layer", "match"])


def group_agreement(queries: pd.DataFrame) -> pd.DataFrame:
    """Returns targets matched in both groups of the student's decoder: its own queries, and the teacher's beside them.

    Args:
        queries: rows of the query table with those of model ``teacher_group``, whose slots are the teacher's.

    Returns:
        The columns of ``teacher_agreement``; ``other_query`` is the slot of the teacher's group that is matched to the target at the same
        step and layer. Empty without a teacher's group.
    """
    group = matched_rows(queries, "teacher_group")[["step", "layer", "image_id", "match", "query"]]
    return _agreement(queries, group.rename(columns={"query": "other_query"}), ["step", "layer", "image_id", "match"])


def agreement_by(
    pairs: pd.DataFrame, by: str | None = None, targets: pd.DataFrame | None = None, samples: int = 300, seed: int = 0
) -> pd.DataFrame:
    """Returns the share of the targets on which both agree.

    Args:
        pairs: frame of ``teacher_agreement`` or ``group_agreement``.
        by: ``label`` or ``size`` of ``targets``, or ``image_id``; None for all together.
        targets: frame of ``targets.target_frame``.
        samples: number of resamples of the images.
        seed: seed of the draws.

    Returns:
        One row per step, layer and slice: ``step``, ``layer``, ``by``, ``agreement`` 0..1 with ``low`` and ``high`` (meaningless for a
        single image), ``n`` targets, ``images``.
    """
    return share_of_targets(pairs, "agrees", "agreement", ["step", "layer"], by, targets, samples, seed)


def _agreement(queries: pd.DataFrame, other: pd.DataFrame, on: list[str]) -> pd.DataFrame:
    student = matched_rows(queries, "student").dropna(subset=["mate"])
    both = student.merge(other, on=on).rename(columns={"match": "target"})
    both["agrees"] = (both["mate"] == both["other_query"]).astype(bool)
    return both[_COLUMNS].sort_values(_KEYS, ignore_index=True)
