"""Computes what a report shows of one run: errors, stability, the value of its queries, and the gain over its baseline.

Where a number is not defined because an assignment is many-to-one, a text that says so stands in the place of its rows.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.defined import undefined
from workbench.analysis.detection.calibration import calibration_error
from workbench.analysis.detection.confusion import BACKGROUND
from workbench.analysis.detection.lost import LEAST_SCORE
from workbench.analysis.of_run import RunAt, all_evaluations
from workbench.analysis.queries.quality import quality_by
from workbench.analysis.results.of_runs import Results
from workbench.analysis.rows_of_run import at_last_step, identity_over_steps, in_last_layer
from workbench.analysis.stability.agreement import agreement_by, group_agreement, teacher_agreement
from workbench.analysis.stability.churn import NEEDED
from workbench.analysis.stability.grouped import image_counts, pooled_by, stability_by, target_changes, target_histories
from workbench.datasets.base import Dataset
from workbench.store.queries import TEACHER_STEP
from workbench.store.run import Run

MOST = 10  # number of rows of a list: slots, targets, images, confused pairs
QUERIES = (*NEEDED, "label", "score", "match_iou", "cx", "cy", "w", "h")
_SLICES = ("label", "size")


def error_numbers(results: Results, at: RunAt) -> dict[str, Any]:
    """Returns ``rows`` of ``tide.error_table``, ``images`` with the most errors of each type, the pairs of classes most often
    ``confused``, ``calibration_error`` with the bins of ``reliability`` as ``calibration``, ``slices``, and ``kitti`` on KITTI data
    (otherwise None).
    """
    table, found, kitti = results.error_costs(at), calibration_error(results.matches(at)), results.kitti(at)
    pairs, names = results.class_pairs(at), results.errors(at).classes
    wrong = pairs[(pairs["truth"] != pairs["predicted"]) & (pairs["truth"] != BACKGROUND) & (pairs["predicted"] != BACKGROUND)]
    confused = wrong.groupby(["truth", "predicted"]).size().rename("n").reset_index().sort_values("n", ascending=False)
    return {
        "rows": records(table),
        "images": {error: records(results.behind(at, error)[0].head(MOST)) for error in table["error"]},
        "confused": records(confused.head(MOST).assign(truth=confused["truth"].map(names), predicted=confused["predicted"].map(names))),
        "calibration_error": _plain({"value": found.value, "low": found.low, "high": found.high, "images": found.images}),
        "calibration": records(results.calibration(at)),
        "slices": records(results.slices(at)),
        "kitti": records(kitti) if kitti is not None else None,
    }


def slot_numbers(results: Results, at: RunAt, traced: RunAt | None, split: str) -> dict[str, Any]:
    """Returns the slots whose removal costs most AP.

    Args:
        results: provider of results.
        at: result of the run, whose detections are used.
        traced: last evaluation whose queries were kept, or None.
        split: split of these queries.

    Returns:
        ``slots``, the number of slots; ``rows`` of ``value.ap_drops`` of the ten with the largest drop; and from the evaluation
        ``traced`` the number of ``dead`` slots (never matched; None if unknown), and where the ten look and what they serve.
    """
    if why := undefined(at.run, "slots"):
        return {"slots": None, "dead": None, "traced": split, "rows": why}
    drops = results.slot_drops(at).sort_values("ap_drop", ascending=False)
    found: dict[str, Any] = {"slots": len(drops), "dead": None, "traced": split}
    top = drops.head(MOST)
    if traced is not None:
        table, classes = results.slots(traced), results.dataset(traced.data).classes
        serves = results.slot_serves(traced, "label").sort_values("n", ascending=False).drop_duplicates("query")
        serves = serves.assign(serves=[classes[label] for label in serves["label"]])[["query", "serves", "share"]]
        columns = ["query", "served", "quality", "cx", "cy", "spread"]
        top = top.merge(table[columns], on="query", how="left").merge(serves, on="query", how="left")
        found |= {"slots": len(table), "dead": int(table["dead"].sum())}
    return {**found, "rows": records(top)}


def stability_numbers(results: Results, at: RunAt, queries: pd.DataFrame) -> dict[str, Any]:
    """Returns churn and instability of the student between evaluations, and what else is said of its matching.

    ``steps`` (last layer), ``by_layer``, ``by_label`` and ``by_size`` (all evaluations together); ``between_layers`` of the last
    evaluation and of the ``teacher``; the ten ``targets`` that change their query most often; ``agreement`` with the teacher and with its
    ``group`` over steps (last layer), each with ``by_label`` at the last step; ``quality`` of student and teacher by class. ``identity``
    tells what identified a query across evaluations. ``found_by`` has found-by churn: ``identity`` of a candidate, ``steps``,
    ``by_label``, ``by_size``; None if the run keeps no detections of these evaluations.

    Args:
        results: provider of results.
        at: an evaluation of the run and split.
        queries: matched rows of student and teacher at all evaluations.
    """
    run, dataset, targets = at.run, results.dataset(at.data), results.targets(at.data)
    last = at_last_step(queries)
    found = _churn(run, at.split, dataset, targets, queries) | {"found_by": _found_by(results, at)}
    found["causes"] = undefined(run, "churn") or _causes(results, at)
    found["between_layers"] = undefined(run, "layer churn") or records(stability_by(image_counts(last, "layer")))
    found["teacher"] = undefined(run, "teacher layer churn") or records(stability_by(image_counts(queries, "layer", "teacher")))
    for name, make in (("agreement", teacher_agreement), ("group", group_agreement)):
        if why := undefined(run, "agreement"):
            found[name] = {key: why for key in ("steps", *(f"by_{by}" for by in _SLICES))}
            continue
        deepest = in_last_layer(make(queries))
        latest = at_last_step(deepest)
        found[name] = {
            "steps": records(agreement_by(deepest)),
            **{f"by_{by}": _named(agreement_by(latest, by, targets), dataset) for by in _SLICES},
        }
    for model, rows in (("student", last), ("teacher", queries[queries["step"] == TEACHER_STEP])):
        deepest = rows[rows["layer"] == rows.loc[rows["model"] == model, "layer"].max()]
        own = deepest.drop(columns="label")
        found[f"{model}_quality"] = {f"by_{by}": _named(quality_by(own, model, by, targets), dataset) for by in _SLICES}
    return found


def _churn(run: Run, split: str, dataset: Dataset, targets: pd.DataFrame, queries: pd.DataFrame) -> dict[str, Any]:
    """Returns churn and instability of the student between evaluations, and the targets that change their query."""
    if why := undefined(run, "churn"):
        return {"identity": None, **dict.fromkeys(("steps", "by_layer", "targets", *(f"by_{by}" for by in _SLICES)), why)}
    identity = identity_over_steps(run, split, queries)
    changes = target_changes(queries, identity=identity)
    found: dict[str, Any] = {
        "identity": identity,
        "steps": records(stability_by(image_counts(queries, identity=identity))),
        "by_layer": records(pooled_by(image_counts(queries, layers="all", identity=identity))),
        "targets": records(target_histories(changes, identity=identity).head(MOST)),
    }
    for by in _SLICES:
        counts = image_counts(queries, identity=identity, targets=targets, by=by)
        found[f"by_{by}"] = _named(pooled_by(counts, by), dataset)
    return found


def _found_by(results: Results, at: RunAt) -> dict[str, Any] | None:
    """Returns found-by churn over steps and by slice."""
    split = all_evaluations(at.run, at.split)
    if not set(at.run.detection_steps(at.split)) & set(at.run.query_steps(at.split)):
        return None
    return {
        "identity": results.found_by_identity(split),
        "steps": records(results.found_by_churn(split)),
        **{f"by_{by}": _named(results.found_by_churn_by(split, by), results.dataset(at.data)) for by in _SLICES},
    }


def gain_numbers(results: Results, at: RunAt, baseline: RunAt) -> dict[str, Any]:
    """Returns the compared ``step``, the ``mean`` gain, gain ``by_label`` and ``by_size``, and ``correlations`` of gain with what was
    known before training (empty without a teacher).
    """
    dataset, taught = results.dataset(at.data), len(results.matched_queries(at, "teacher")) > 0
    if why := undefined(at.run, "gain") or undefined(baseline.run, "gain"):
        return {"step": at.step, **dict.fromkeys(("mean", *(f"by_{by}" for by in _SLICES), "correlations"), why)}
    predicted = undefined(at.run, "predictors") or (records(results.correlations(at, baseline)) if taught else [])
    return {
        "step": at.step,
        "mean": records(results.mean_gain(at, baseline)),
        **{f"by_{by}": _named(results.gain_by(at, baseline, by), dataset) for by in _SLICES},
        "correlations": predicted,
    }


def lost_numbers(results: Results, at: RunAt, baseline: RunAt | None) -> dict[str, Any]:
    """Returns what the student lost of what its teacher found at one evaluation.

    Args:
        results: provider of results.
        at: evaluation of the student, whose run keeps the teacher's outputs.
        baseline: evaluation of the run that it is compared with, on the same images; None without one.

    Returns:
        ``step``, ``least_score``, ``images``, ``cells`` (of ``lost.cell_table``, all targets), ``shares`` (``lost.lost_shares``),
        ``outcomes`` (``lost.outcome_table``), ``baseline`` (name and ``step``, None without one) and ``differences``
        (``lost.compare_lost``, empty without a baseline).
    """
    cells = results.found_cells(at, at)
    return {
        "step": at.step,
        "least_score": LEAST_SCORE,
        "images": len(results.compared_images(at, at)),
        "cells": records(cells[cells["by"] == "all"]),
        "shares": records(results.lost_shares(at, at)),
        "outcomes": records(results.lost_outcomes(at, at)),
        "baseline": None if baseline is None else {"run": baseline.run.name, "step": baseline.step},
        "differences": [] if baseline is None else records(results.compared_lost(baseline, at, at)),
    }


def _causes(results: Results, at: RunAt) -> dict[str, Any]:
    """Returns churn between evaluations divided by cause: ``steps``, ``by_label``, ``by_size``, and the ``targets`` of each cause."""
    split = all_evaluations(at.run, at.split)
    return {
        "steps": records(results.churn_by_cause(split)),
        **{f"by_{by}": _named(results.churn_by_cause(split, by), results.dataset(at.data)) for by in _SLICES},
        "targets": records(results.unsettled_causes(split)),
    }


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns rows as plain values, with None for what is not a number."""
    return json.loads(frame.to_json(orient="records"))


def _named(frame: pd.DataFrame, dataset: Dataset) -> list[dict[str, Any]]:
    """Returns records with the name of the class in place of its label."""
    if "label" in frame:
        frame = frame.assign(label=[dataset.classes[int(label)] for label in frame["label"]])
    return records(frame)


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in values.items()}
