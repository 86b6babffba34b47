"""Two sides compared by what their queries and errors say: which totals over images each number is a ratio of."""

from collections.abc import Callable, Sequence

import pandas as pd

from workbench.analysis.agreement import teacher_agreement
from workbench.analysis.stability_slices import image_counts
from workbench.analysis.tide import Error, Errors, rows_behind
from workbench.analysis.verdict import AGREEMENT, CHURN, INSTABILITY, QUALITY, SAMPLES, Quantity, Side, Verdict, compare_totals


def churn_totals(queries: pd.DataFrame) -> pd.DataFrame:
    """Churn between evaluations at the last layer, all pairs of consecutive ones: ``image_id``, ``total`` (targets that changed their
    query), ``n`` (targets matched at both).
    """
    return image_counts(queries).rename(columns={"changed": "total"})[["image_id", "total", "n"]]


def instability_totals(queries: pd.DataFrame) -> pd.DataFrame:
    """Instability between evaluations at the last layer: ``image_id``, ``total`` (queries that changed their target), ``n`` (1: a pair of
    evaluations of the image).
    """
    return image_counts(queries).assign(n=1).rename(columns={"queries": "total"})[["image_id", "total", "n"]]


def agreement_totals(queries: pd.DataFrame) -> pd.DataFrame:
    """Agreement with the teacher at the last layer of the last evaluation: ``image_id``, ``total`` (targets that agree), ``n`` (1)."""
    pairs = _last(teacher_agreement(queries))
    return pairs.assign(total=pairs["agrees"], n=1)[["image_id", "total", "n"]]


def quality_totals(queries: pd.DataFrame) -> pd.DataFrame:
    """Quality of the student's matched queries at the last layer of the last evaluation: ``image_id``, ``total`` (quality), ``n`` (1)."""
    matched = _last(queries[(queries["model"] == "student") & (queries["match"] >= 0)])
    return matched.assign(total=matched["quality"], n=1)[["image_id", "total", "n"]]


def error_totals(errors: Errors, error: Error) -> pd.DataFrame:
    """Errors of a type per target: ``image_id``, ``total`` (errors), ``n`` (targets that may be found)."""
    wrong = rows_behind(errors, error).groupby("image_id").size()
    counts = pd.DataFrame({"total": wrong, "n": errors.targets.groupby("image_id").size()}).fillna(0)
    return counts.rename_axis("image_id").reset_index()


_TOTALS: dict[Quantity, Callable[[pd.DataFrame], pd.DataFrame]] = {
    CHURN: churn_totals, INSTABILITY: instability_totals, AGREEMENT: agreement_totals, QUALITY: quality_totals,
}  # fmt: skip


def compare_queries(
    baseline: Side[pd.DataFrame], other: Side[pd.DataFrame], images: Sequence[int], samples: int = SAMPLES, seed: int = 0
) -> list[Verdict]:
    """Verdicts on churn, IS, agreement with the teacher and quality.

    Args:
        baseline: rows of the query table by seed, those of the teacher included for agreement; columns as in ``stability.NEEDED``.
        other: likewise.
        images: ids of all images of the split.
        samples: resamples of the images.
        seed: of the resamples.

    Returns:
        One per number that every run of both sides has.
    """
    found: list[Verdict] = []
    for quantity, totals in _TOTALS.items():
        sides = [{run: totals(rows) for run, rows in side.items()} for side in (baseline, other)]
        if all(len(frame) for side in sides for frame in side.values()):
            found.append(compare_totals(quantity, sides[0], sides[1], images, samples, seed))
    return found


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the last layer at the last step."""
    rows = rows[rows["step"] == rows["step"].max()]
    return rows[rows["layer"] == rows["layer"].max()]
