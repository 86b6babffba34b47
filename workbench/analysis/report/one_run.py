"""What a report says of one run: its errors, its stability, what its queries are worth, and what it gained over its baseline."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.derived import identity_over_steps
from workbench.analysis.detection.ap import Detections
from workbench.analysis.detection.calibration import calibration_error, reliability
from workbench.analysis.detection.confusion import BACKGROUND, confusion_pairs
from workbench.analysis.detection.kitti_ap import is_kitti, kitti_ap
from workbench.analysis.detection.matches import match_detections
from workbench.analysis.detection.slices import slices
from workbench.analysis.detection.targets import target_frame
from workbench.analysis.detection.tide import error_table, find_errors, images_behind
from workbench.analysis.queries.gain import common_step, gain_by, mean_gain, target_gain
from workbench.analysis.queries.predictors import rank_correlations, target_properties
from workbench.analysis.queries.quality import quality_by
from workbench.analysis.queries.slots import slot_serves, slot_table
from workbench.analysis.queries.value import ap_drops
from workbench.analysis.stability.agreement import agreement_by, group_agreement, teacher_agreement
from workbench.analysis.stability.churn import NEEDED
from workbench.analysis.stability.grouped import image_counts, pooled_by, stability_by, target_changes, target_histories
from workbench.datasets.base import Dataset
from workbench.store.queries import TEACHER_STEP, read_queries
from workbench.store.run import Run

MOST = 10  # rows of a list: slots, targets, images, confused pairs
QUERIES = (*NEEDED, "label", "score", "match_iou", "cx", "cy", "w", "h")
_SLICES = ("label", "size")


def matched_queries(run: Run, split: str) -> pd.DataFrame:
    """Matched rows of all evaluations of a run and of its teacher.

    Raises:
        RunError: the run has no query table of the split.
    """
    return read_queries(run, split, columns=QUERIES, matched=True)


def error_numbers(dataset: Dataset, detections: Detections) -> dict[str, Any]:
    """``rows`` of ``tide.error_table``, ``images`` with the most errors of each type, pairs of classes most often ``confused``,
    ``calibration_error`` with the bins of ``reliability`` as ``calibration``, ``slices``, and ``kitti`` on KITTI data, else None.
    """
    truth = dataset.coco()
    errors, matches = find_errors(truth, detections), match_detections(truth, detections)
    table, found = error_table(errors), calibration_error(matches)
    pairs = confusion_pairs(truth, detections)
    wrong = pairs[(pairs["truth"] != pairs["predicted"]) & (pairs["truth"] != BACKGROUND) & (pairs["predicted"] != BACKGROUND)]
    confused = wrong.groupby(["truth", "predicted"]).size().rename("n").reset_index().sort_values("n", ascending=False)
    names = {category["id"]: category["name"] for category in truth["categories"]}
    return {
        "rows": records(table),
        "images": {error: records(images_behind(errors, error).head(MOST)) for error in table["error"]},
        "confused": records(confused.head(MOST).assign(truth=confused["truth"].map(names), predicted=confused["predicted"].map(names))),
        "calibration_error": _plain({"value": found.value, "low": found.low, "high": found.high, "images": found.images}),
        "calibration": records(reliability(matches)),
        "slices": records(slices(truth, detections)),
        "kitti": records(kitti_ap(dataset, detections)) if is_kitti(dataset) else None,
    }


def slot_numbers(run: Run, dataset: Dataset, detections: pd.DataFrame, traced: Dataset | None, split: str) -> dict[str, Any]:
    """Slots whose loss costs most AP.

    Args:
        run: whose slots.
        dataset: that the detections are of.
        detections: of the run's result.
        traced: the split whose queries were kept, None for none.
        split: what it is called.

    Returns:
        ``slots`` in all, ``rows`` of ``value.ap_drops`` of the ten with the largest drop; and of the last evaluation of the split
        ``traced``: how many are ``dead`` (never have a target; None where it is not known), and where the ten look and what they serve.
    """
    drops = ap_drops(dataset.coco(), detections).sort_values("ap_drop", ascending=False)
    found: dict[str, Any] = {"slots": len(drops), "dead": None, "traced": split}
    top = drops.head(MOST)
    steps = run.query_steps(split)
    if traced is not None and steps:
        rows = _last_layer(run, split, steps[-1])
        table = slot_table(rows)
        serves = slot_serves(rows, target_frame(traced.coco()), "label").sort_values("n", ascending=False).drop_duplicates("query")
        serves = serves.assign(serves=[traced.classes[label] for label in serves["label"]])[["query", "serves", "share"]]
        columns = ["query", "served", "quality", "cx", "cy", "spread"]
        top = top.merge(table[columns], on="query", how="left").merge(serves, on="query", how="left")
        found |= {"slots": len(table), "dead": int(table["dead"].sum())}
    return {**found, "rows": records(top)}


def stability_numbers(run: Run, dataset: Dataset, queries: pd.DataFrame, split: str) -> dict[str, Any]:
    """Churn and IS of the student between evaluations: ``steps`` (last layer), ``by_layer``, ``by_label`` and ``by_size`` (all moments
    together); ``between_layers`` of the last evaluation and of the ``teacher``; the ten ``targets`` that change their query most often;
    ``agreement`` with the teacher and with its ``group`` over steps (last layer), each with ``by_label`` at the last; ``quality`` of
    student and teacher by class. ``identity`` says what made a query the same between evaluations.
    """
    targets, identity = target_frame(dataset.coco()), identity_over_steps(run, split, queries)
    last = queries[queries["step"] == queries["step"].max()]
    changes = target_changes(queries, identity=identity)
    found: dict[str, Any] = {
        "identity": identity,
        "steps": records(stability_by(image_counts(queries, identity=identity))),
        "by_layer": records(pooled_by(image_counts(queries, layers="all", identity=identity))),
        "between_layers": records(stability_by(image_counts(last, "layer"))),
        "teacher": records(stability_by(image_counts(queries, "layer", "teacher"))),
        "targets": records(target_histories(changes, identity=identity).head(MOST)),
    }
    for by in _SLICES:
        counts = image_counts(queries, identity=identity, targets=targets, by=by)
        found[f"by_{by}"] = _named(pooled_by(counts, by), dataset)
    for name, pairs in (("agreement", teacher_agreement(queries)), ("group", group_agreement(queries))):
        deepest = pairs[pairs["layer"] == pairs["layer"].max()]
        latest = deepest[deepest["step"] == deepest["step"].max()]
        found[name] = {
            "steps": records(agreement_by(deepest)),
            **{f"by_{by}": _named(agreement_by(latest, by, targets), dataset) for by in _SLICES},
        }
    for model, rows in (("student", last), ("teacher", queries[queries["step"] == TEACHER_STEP])):
        deepest = rows[rows["layer"] == rows.loc[rows["model"] == model, "layer"].max()]
        own = deepest.drop(columns="label")
        found[f"{model}_quality"] = {f"by_{by}": _named(quality_by(own, model, by, targets), dataset) for by in _SLICES}
    return found


def gain_numbers(dataset: Dataset, queries: pd.DataFrame, baseline: pd.DataFrame) -> dict[str, Any]:
    """``step`` compared at, ``mean`` gain, the same ``by_label`` and ``by_size``, and ``correlations`` of what was known before training
    with it (none without a teacher).

    Raises:
        RunError: the two runs have no evaluation at the same step.
    """
    targets, step = target_frame(dataset.coco()), common_step(queries, baseline)
    gains = target_gain(queries, baseline, step)
    teacher = queries[queries["model"] == "teacher"]
    return {
        "step": step,
        "mean": records(mean_gain(gains)),
        **{f"by_{by}": _named(gain_by(gains, targets, by), dataset) for by in _SLICES},
        "correlations": records(rank_correlations(target_properties(gains, teacher, baseline, targets))) if len(teacher) else [],
    }


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values, None for what is not a number."""
    return json.loads(frame.to_json(orient="records"))


def _last_layer(run: Run, split: str, step: int) -> pd.DataFrame:
    columns = ["image_id", "layer", "query", "match", "quality", "score", "cx", "cy"]
    rows = read_queries(run, split, [step], columns, "model = 'student'")
    return rows[rows["layer"] == rows["layer"].max()]


def _named(frame: pd.DataFrame, dataset: Dataset) -> list[dict[str, Any]]:
    """Records with the name of the class in the place of its label."""
    if "label" in frame:
        frame = frame.assign(label=[dataset.classes[int(label)] for label in frame["label"]])
    return records(frame)


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in values.items()}
