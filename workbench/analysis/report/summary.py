"""Summarises runs, one row each: accuracy, stability of the matching, cost and compute.

All but found-by churn, which needs the targets of the data, is read only from the files of the run.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pandas as pd

from workbench.analysis.defined import NOT_DEFINED, Number, undefined
from workbench.analysis.derived import Name, frame_if_defined
from workbench.analysis.of_run import RunAt, all_evaluations, one_evaluation
from workbench.analysis.results.detections import data_held
from workbench.analysis.results.stability import StabilityResults
from workbench.analysis.rows_of_run import in_last_layer
from workbench.analysis.stability.churn import pooled
from workbench.errors import WorkbenchError
from workbench.store.run import Run

TEACHER = "teacher"  # stands for the arm in the row of a teacher
_RESULT = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
_COST = ("parameters", "flops", "ms_per_image")
_CHANGES = ("churn", "instability", "instability_normalised")


def summarise(run: Run, trace: str = "val") -> dict[str, Any]:
    """Returns what is known of a run; None for what its files do not hold.

    AP is on the test split if the run was tested, otherwise on the validation split at the chosen step. Stability, agreement and quality
    are on the ``trace`` split, on images without augmentation.

    Args:
        run: run, finished or in progress.
        trace: split of the query table.

    Returns:
        ``run``, ``recipe``, ``arm``, ``seed``, ``schedule``, ``state``, ``commit``, ``steps`` (of the schedule), ``split`` and ``step``
        of the result, ``ap`` .. ``ap_large`` (0..1), ``per_class`` {name: AP}; ``churn``, ``churn_n``, ``instability``,
        ``instability_normalised`` between evaluations (all pairs of consecutive ones pooled, last layer) and ``churn_spacing``, the steps
        between them, None if they differ; the same with ``layers_`` in front between layers at the result's step; ``agreement``
        and ``agreement_n`` with the teacher, ``quality`` and ``quality_n`` of matched queries, both of the last layer at that step
        (``NOT_DEFINED`` in place of each number that a many-to-one assignment does not define);
        ``parameters``, ``flops``, ``ms_per_image``; ``compute_seconds`` of training and ``compute_kind``, cpu (process seconds)
        or wall (of the device).
    """
    info = run.info()
    group = info.get("group") or {}
    evaluations = run.evaluations()
    result = run_result(run)
    steps = frame_if_defined(run, "churn_steps", trace)[0]
    at = _recorded_step(run, trace, result.get("step"))
    seconds, kind = _compute(run, info)
    return {
        "run": run.name,
        "recipe": group.get("recipe"),
        "arm": group.get("arm"),
        "seed": group.get("seed", info.get("seed")),
        "schedule": group.get("schedule"),
        "state": run.state(),
        "commit": info.get("commit"),
        "steps": info.get("recipe", {}).get("train", {}).get("steps"),
        **_accuracy(result),
        **_stability(steps, ""),
        "churn_spacing": _spacing(steps),
        **_stability(_at(frame_if_defined(run, "churn_layers", trace)[0], at), "layers_"),
        **_deepest(run, "agreement", "agreement", trace, at),
        **_undefined(run, "churn", _CHANGES),
        **_undefined(run, "layer churn", [f"layers_{name}" for name in _CHANGES]),
        **_undefined(run, "agreement", ["agreement"]),
        **_deepest(run, "quality", "quality", trace, at),
        **_cost(evaluations),
        "compute_seconds": seconds,
        "compute_kind": kind,
    }


def summarise_teacher(run: Run, trace: str = "val") -> dict[str, Any] | None:
    """Returns the same for the teacher of a run, or None without a teacher; what belongs only to training is None."""
    info = run.info()
    if not info.get("teacher"):
        return None
    result = teacher_result(run)
    steps = pd.DataFrame(columns=["step", "layer"])
    return {
        **dict.fromkeys(("run", "recipe", "arm", "seed", "schedule", "state", "commit", "steps")),
        "run": str(info["teacher"]),
        "recipe": (info.get("group") or {}).get("recipe"),
        "arm": TEACHER,
        **_accuracy(result),
        **_stability(steps, ""),
        "churn_spacing": None,
        **_stability(frame_if_defined(run, "teacher_churn_layers", trace)[0], "layers_"),
        **_undefined(run, "teacher layer churn", [f"layers_{name}" for name in _CHANGES]),
        "agreement": None,
        "agreement_n": None,
        **_deepest(run, "teacher_quality", "quality", trace, None),
        **_cost([result]),
        "compute_seconds": None,
        "compute_kind": None,
    }


def table(runs: Sequence[Run], trace: str = "val", with_teacher: bool = False, results: StabilityResults | None = None) -> pd.DataFrame:
    """Returns one row per run with the keys of ``summarise``; ``per_class`` becomes columns ``ap <class>`` and ``targets <class>``.

    ``found_by_churn`` and ``found_by_churn_n`` stand beside churn: all pairs of consecutive evaluations pooled, None if the data of the run
    is gone.

    Args:
        runs: runs in the order of the rows.
        trace: split of the query table.
        with_teacher: True to put one row in front for every teacher that the runs learned from.
        results: opens the data of the runs; one that remembers what it opened by default.

    Returns:
        A frame of objects with None, never NaN, for unknown numbers.
    """
    results = results or StabilityResults(data_held())
    rows = [summarise(run, trace) | _found_by(results, run, trace) | _targets(run_result(run)) for run in runs]
    if with_teacher:
        rows = [*_teachers(runs, trace), *rows]
    for row in rows:
        row |= {f"ap {name}": ap for name, ap in row.pop("per_class").items()}
    frame = pd.DataFrame(rows, dtype=object)
    return frame.where(frame.notna(), None)


def _found_by(results: StabilityResults, run: Run, trace: str) -> dict[str, Any]:
    """Returns found-by churn of all evaluations together, and its n."""
    frame = None
    if len(set(run.detection_steps(trace)) & set(run.query_steps(trace))) > 1:
        with suppress(WorkbenchError, KeyError, TypeError):  # the data is gone, or the run does not say what it is
            frame = results.found_by_churn_by(all_evaluations(run, trace), None)
    if frame is None or frame.empty:
        return {"found_by_churn": None, "found_by_churn_n": None}
    return {"found_by_churn": float(frame["found_by_churn"].iloc[0]), "found_by_churn_n": int(frame["n"].iloc[0])}


def _undefined(run: Run, number: Number, keys: Sequence[str]) -> dict[str, str]:
    """Returns what is said in place of the numbers of these keys; empty if they are defined."""
    return dict.fromkeys(keys, NOT_DEFINED) if undefined(run, number) else {}


def _teachers(runs: Sequence[Run], trace: str) -> list[dict[str, Any]]:
    """Returns one row per teacher, from a run that tested it if there is one."""
    found: dict[Any, dict[str, Any]] = {}
    for run in runs:
        row, key = summarise_teacher(run, trace), run.info().get("teacher_hash")
        if row is not None and (key not in found or found[key]["ap"] is None):
            found[key] = row | _targets(teacher_result(run))
    return list(found.values())


def run_result(run: Run) -> dict[str, Any]:
    """Returns the evaluation that represents the run: the last test, else the chosen step's, else the last; {} if there is none."""
    return result_of(run.evaluations(), run.info().get("best_step"))


def result_of(evaluations: Sequence[dict[str, Any]], best_step: int | None) -> dict[str, Any]:
    """Returns the same of evaluations that were read before; ``best_step`` is that of ``run.json``."""
    tested = [line for line in evaluations if line["split"] == "test"]
    chosen = [line for line in evaluations if line["step"] == best_step]
    return next((lines[-1] for lines in (tested, chosen, evaluations) if lines), {})


def result_at(run: Run) -> RunAt | None:
    """Names the evaluation that represents the run; None if there is none."""
    line = run_result(run)
    return one_evaluation(run, line["split"], line["step"]) if line else None


def teacher_result(run: Run) -> dict[str, Any]:
    """Returns what the run measured of its teacher; {} if nothing."""
    tested = [line for line in run.evaluations() if line.get("teacher")]
    return {**tested[-1]["teacher"], "split": tested[-1]["split"]} if tested else {}


def _targets(result: dict[str, Any]) -> dict[str, Any]:
    """Returns the number of targets of each class that a result has."""
    return {f"targets {name}": value.get("targets") for name, value in result.get("per_class", {}).items()}


def _accuracy(result: dict[str, Any]) -> dict[str, Any]:
    coco = result.get("coco", {})
    classes = {name: value.get("ap") for name, value in result.get("per_class", {}).items()}
    return {"split": result.get("split"), "step": result.get("step"), **{name: coco.get(name) for name in _RESULT}, "per_class": classes}


def _stability(changes: pd.DataFrame, prefix: str) -> dict[str, Any]:
    names = {"churn": "churn", "n": "churn_n", "instability": "instability", "instability_normalised": "instability_normalised"}
    values = pooled(changes) if len(changes) else {}
    return {prefix + shown: values.get(name) for name, shown in names.items()}


def _spacing(changes: pd.DataFrame) -> int | None:
    spacings = set(changes["step"].diff().dropna())
    return int(spacings.pop()) if len(spacings) == 1 else None


def _recorded_step(run: Run, trace: str, step: int | None) -> int | None:
    """Returns the step of the result if its queries were kept, else the last step whose queries were."""
    traced = run.query_steps(trace)
    return step if step in traced else max(traced, default=None)


def _at(frame: pd.DataFrame, step: int | None) -> pd.DataFrame:
    return frame if step is None else frame[frame["step"] == step]


def _deepest(run: Run, name: Name, column: str, trace: str, step: int | None) -> dict[str, Any]:
    frame = _at(frame_if_defined(run, name, trace)[0], step)
    if frame.empty:
        return {column: None, f"{column}_n": None}
    row = in_last_layer(frame).iloc[-1]
    return {column: float(row[column]), f"{column}_n": int(row["n"])}


def _cost(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    measured = [line for line in lines if "parameters" in line]
    return {name: measured[-1].get(name) if measured else None for name in _COST}


def _compute(run: Run, info: dict[str, Any]) -> tuple[float | None, str | None]:
    """Returns the seconds of training so far, and their kind."""
    timings = run.timings()
    seconds = info.get("seconds") or (timings[-1] if timings else None)
    if seconds is None:
        return None, None
    kind = "cpu" if info.get("device") == "cpu" else "wall"
    return seconds.get(kind), kind
