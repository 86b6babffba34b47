"""Compares two sides in every number that is shown of them: AP, errors, calibration, stability, agreement and value."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.defined import Number, undefined
from workbench.analysis.detection.ap_tests import (
    AGREEMENT,
    CALIBRATION_ERROR,
    CHURN,
    COCO,
    FOUND_BY_CHURN,
    GROUP_AGREEMENT,
    INSTABILITY,
    LAYER_CHURN,
    MASK_COCO,
    QUALITY,
    SAMPLES,
    WORTH,
    Quantity,
    Side,
    Verdict,
    both_sides,
    compare_totals,
    judge,
)
from workbench.analysis.detection.bootstrap import draws, with_all
from workbench.analysis.detection.calibration import calibration_errors
from workbench.analysis.detection.intervals import coco_values
from workbench.analysis.detection.matches import match_detections
from workbench.analysis.rows_of_run import at_last_step, in_last_layer
from workbench.analysis.stability.agreement import group_agreement, teacher_agreement
from workbench.analysis.stability.churn import Identity
from workbench.analysis.stability.found_by import found_by_totals
from workbench.analysis.stability.grouped import image_counts
from workbench.store.run import Run

NO_VERDICT = "not defined"  # stands for the word of a verdict
_COLUMNS = ["image_id", "total", "n"]
_ONE_TO_ONE: dict[Quantity, Number] = {
    CHURN: "churn", INSTABILITY: "churn", LAYER_CHURN: "layer churn", AGREEMENT: "agreement", GROUP_AGREEMENT: "agreement", WORTH: "gain",
}  # fmt: skip


def compare_detections(
    ground_truth: Mapping[str, Any],
    baseline: Side[pd.DataFrame],
    other: Side[pd.DataFrame],
    samples: int = SAMPLES,
    seed: int = 0,
    max_detections: int = 100,
) -> list[Verdict]:
    """Returns verdicts on the twelve COCO numbers and the expected calibration error.

    Args:
        ground_truth: COCO dict.
        baseline: detections by seed, as for ``coco_ap``.
        other: detections of the other side, by seed.
        samples: number of resamples of the images.
        seed: seed of the resamples.
        max_detections: number of detections kept per image and class.

    Returns:
        One verdict per number that every run defines; sizes without targets are left out.
    """
    images = len(ground_truth["images"])
    counts = with_all(draws(images, samples, seed))
    numbers = both_sides(baseline, other, lambda found: coco_values(ground_truth, found, counts, max_detections))
    errors = both_sides(baseline, other, lambda found: calibration_errors(match_detections(ground_truth, found, max_detections), counts))
    return _defined([*_judged(COCO, numbers, images), judge(CALIBRATION_ERROR, *errors, images)])


def compare_masks(
    ground_truth: Mapping[str, Any], baseline: Side[pd.DataFrame], other: Side[pd.DataFrame], samples: int = SAMPLES, seed: int = 0
) -> list[Verdict]:
    """Returns verdicts on the twelve COCO numbers of masks, as ``compare_detections`` does on those of boxes.

    Args:
        ground_truth: COCO dict with masks.
        baseline: detections with masks by seed.
        other: those of the other side, by seed.
        samples: number of resamples of the images.
        seed: seed of the resamples.
    """
    images = len(ground_truth["images"])
    counts = with_all(draws(images, samples, seed))
    numbers = both_sides(baseline, other, lambda found: coco_values(ground_truth, found, counts, iou="mask"))
    return _defined(_judged(MASK_COCO, numbers, images))


def _judged(quantities: Mapping[str, Quantity], sides: Sequence[Side[dict[str, np.ndarray]]], images: int) -> list[Verdict]:
    """Returns a verdict on each quantity; the sides hold its values by name for each run."""
    found: list[Verdict] = []
    for name, quantity in quantities.items():
        before, after = ({run: values[name] for run, values in side.items()} for side in sides)
        found.append(judge(quantity, before, after, images))
    return found


def _defined(verdicts: Sequence[Verdict]) -> list[Verdict]:
    return [verdict for verdict in verdicts if np.isfinite([verdict.baseline, verdict.other]).all()]


def churn_totals(queries: pd.DataFrame, identity: Identity = "source") -> pd.DataFrame:
    """Returns churn between consecutive evaluations at the last layer: ``image_id``, ``total`` (targets that changed their query) and
    ``n`` (targets matched at both).
    """
    return image_counts(queries, identity=identity).rename(columns={"changed": "total"})[_COLUMNS]


def instability_totals(queries: pd.DataFrame, identity: Identity = "source") -> pd.DataFrame:
    """Returns instability between evaluations at the last layer: ``image_id``, ``total`` (queries that changed their target) and ``n``
    (1 for each pair of evaluations of the image).
    """
    return image_counts(queries, identity=identity).assign(n=1).rename(columns={"queries": "total"})[_COLUMNS]


def layer_churn_totals(queries: pd.DataFrame) -> pd.DataFrame:
    """Returns churn from each decoder layer to the next at the last evaluation: ``image_id``, ``total``, ``n`` as in ``churn_totals``."""
    student = queries[queries["model"] == "student"]
    return image_counts(student[student["step"] == student["step"].max()], "layer").rename(columns={"changed": "total"})[_COLUMNS]


def agreement_totals(queries: pd.DataFrame) -> pd.DataFrame:
    """Returns agreement with the teacher at the last evaluation and layer: ``image_id``, ``total`` (targets that agree), ``n`` (1)."""
    return _agreeing(teacher_agreement(queries))


def group_agreement_totals(queries: pd.DataFrame) -> pd.DataFrame:
    """Returns the agreement of the student's own queries with the teacher's group in its decoder, as in ``agreement_totals``."""
    return _agreeing(group_agreement(queries))


def quality_totals(queries: pd.DataFrame) -> pd.DataFrame:
    """Returns the student's quality of matched queries at the last evaluation and layer: ``image_id``, ``total`` (quality), ``n`` (1)."""
    matched = in_last_layer(at_last_step(queries[(queries["model"] == "student") & (queries["match"] >= 0)]))
    return matched.assign(total=matched["quality"], n=1)[_COLUMNS]


def worth_totals(queries: pd.DataFrame) -> pd.DataFrame:
    """Returns score x IoU of the student's matched queries at the last evaluation and layer, whose difference is the gain: ``image_id``,
    ``total``, ``n`` (1). Empty without the columns ``score`` and ``match_iou``.
    """
    if not {"score", "match_iou"} <= set(queries):
        return pd.DataFrame(columns=_COLUMNS)
    matched = in_last_layer(at_last_step(queries[(queries["model"] == "student") & (queries["match"] >= 0)]))
    return matched.assign(total=matched["score"].astype(float) * matched["match_iou"].astype(float), n=1)[_COLUMNS]


def compare_queries(
    baseline: Side[pd.DataFrame],
    other: Side[pd.DataFrame],
    images: Sequence[int],
    identity: Identity = "source",
    samples: int = SAMPLES,
    seed: int = 0,
    leave_out: Collection[Quantity] = (),
) -> list[Verdict]:
    """Returns verdicts on churn and instability between evaluations, churn between layers, agreement with the teacher and with its group,
    quality, and score x IoU.

    Args:
        baseline: rows of the query table by seed, at least the matched ones, including the teacher's for agreement; with the columns of
            ``churn.NEEDED``, and ``score`` and ``match_iou`` for score x IoU.
        other: rows of the other side, by seed.
        images: ids of all images of the split.
        identity: what identifies a query across evaluations in all runs; see ``rows_of_run.common_identity``.
        samples: number of resamples of the images.
        seed: seed of the resamples.
        leave_out: numbers that are not defined for one of the runs: ``undefined_quantities``.

    Returns:
        One verdict per number that every run of both sides has.
    """
    numbers: dict[Quantity, Callable[[pd.DataFrame], pd.DataFrame]] = {
        CHURN: partial(churn_totals, identity=identity), INSTABILITY: partial(instability_totals, identity=identity),
        LAYER_CHURN: layer_churn_totals, AGREEMENT: agreement_totals, GROUP_AGREEMENT: group_agreement_totals, QUALITY: quality_totals,
        WORTH: worth_totals,
    }  # fmt: skip
    found: list[Verdict] = []
    for quantity, totals in numbers.items():
        if quantity in leave_out:
            continue
        sides = [{run: totals(rows) for run, rows in side.items()} for side in (baseline, other)]
        if all(len(frame) for side in sides for frame in side.values()):
            found.append(compare_totals(quantity, sides[0], sides[1], images, samples, seed))
    return found


def compare_found_by(
    baseline: Side[pd.DataFrame], other: Side[pd.DataFrame], images: Sequence[int], samples: int = SAMPLES, seed: int = 0
) -> list[Verdict]:
    """Returns the verdict on found-by churn, which every detector has; empty if a run has only one evaluation.

    Args:
        baseline: frames of ``found_by.found_by_changes`` by seed, of one identity in all runs.
        other: frames of the other side, by seed.
        images: ids of all images of the split.
        samples: number of resamples of the images.
        seed: seed of the resamples.
    """
    sides = [{run: found_by_totals(changes) for run, changes in side.items()} for side in (baseline, other)]
    if not all(len(frame) for side in sides for frame in side.values()):
        return []
    return [compare_totals(FOUND_BY_CHURN, sides[0], sides[1], images, samples, seed)]


def undefined_quantities(runs: Sequence[Run]) -> dict[Quantity, str]:
    """Returns the numbers of ``compare_queries`` that are not defined for one of these runs, each with ``NOT_DEFINED`` and why."""
    found: dict[Quantity, str] = {}
    for quantity, number in _ONE_TO_ONE.items():
        if said := next((said for run in runs if (said := undefined(run, number))), ""):
            found[quantity] = said
    return found


def undefined_verdict(quantity: Quantity, why: str, images: int) -> dict[str, Any]:
    """Returns what stands in the place of ``Verdict.to_json`` for a number that is not defined."""
    numbers = dict.fromkeys(("baseline", "other", "difference", "low", "high"))
    sentence = f"{quantity.name}: {why}."
    return {"quantity": quantity.name, "verdict": NO_VERDICT, "about": "", **numbers, "images": images, "seeds": [], "sentence": sentence}


def _agreeing(pairs: pd.DataFrame) -> pd.DataFrame:
    last = in_last_layer(at_last_step(pairs))
    return last.assign(total=last["agrees"], n=1)[_COLUMNS]
