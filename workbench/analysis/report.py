"""Every number of a report about one run or several: results, verdicts against a baseline, diagnoses, errors, query value."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from workbench.analysis.data import open_data
from workbench.analysis.diagnosis import diagnose
from workbench.analysis.summary import table
from workbench.analysis.tide import error_table, find_errors
from workbench.analysis.value import ap_drops
from workbench.analysis.verdict import compare_ap, compare_errors
from workbench.cache.detections import read_detections
from workbench.errors import WorkbenchError
from workbench.runs import Run

FORMAT = 1
SLOTS = 10  # of each run, those whose loss costs most


def collect(runs: Sequence[Run]) -> dict[str, Any]:
    """What a report says, as plain values: shares and AP are 0..1, None is not known.

    Runs of one recipe, arm and schedule are the seeds of one side. The baseline is the side of the undistilled runs at equal steps of
    the same recipe, where they are among the runs.

    Returns:
        ``format``; ``runs``, the rows of ``summary.table`` with a row for every teacher; ``comparisons`` (``baseline`` and ``other``,
        names of runs; ``verdict`` on AP, ``errors``); by name of the run ``diagnoses``, ``errors`` (rows of ``tide.error_table``) and
        ``slots`` (the ten of ``value.ap_drops`` with the largest drop, ``slots`` in all); ``notes`` on what could not be computed.
    """
    notes: list[str] = []
    found: dict[str, Any] = {"format": FORMAT, "runs": _records(table(runs, with_teacher=True))}
    baselines = {run.name: _baseline_of(run, runs) for run in runs}
    found["diagnoses"] = {run.name: diagnose(run, baselines[run.name]).to_json() for run in runs}
    detections = {run.name: _result(run, notes) for run in runs}
    found["errors"], found["slots"] = {}, {}
    for name, result in detections.items():
        if result is not None:
            truth, rows, split = result
            found["errors"][name] = {"split": split, "rows": _records(error_table(find_errors(truth, rows)))}
            drops = ap_drops(truth, rows).sort_values("ap_drop", ascending=False)
            found["slots"][name] = {"split": split, "slots": len(drops), "rows": _records(drops.head(SLOTS))}
    found["comparisons"] = _comparisons(runs, detections, notes)
    found["notes"] = notes
    return found


def _comparisons(runs: Sequence[Run], detections: Mapping[str, Any], notes: list[str]) -> list[dict[str, Any]]:
    """Each side against the undistilled side of its recipe."""
    sides: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if detections[run.name] is not None:
            sides.setdefault(_side(run), []).append(run)
    found: list[dict[str, Any]] = []
    for side, own in sides.items():
        recipe = side[0]
        baseline = sides.get((recipe, "undistilled", "equal steps"))
        if baseline is None or baseline is own:
            continue
        everyone = [*baseline, *own]
        if len({detections[run.name][2] for run in everyone}) > 1 or len({run.info().get("dataset_hash") for run in everyone}) > 1:
            notes.append(f"{', '.join(run.name for run in own)}: on other data or another split than its baseline, so not compared")
            continue
        truth = detections[own[0].name][0]
        first, second = ({_seed(run): detections[run.name][1] for run in part} for part in (baseline, own))
        before, after = ({seed: find_errors(truth, rows) for seed, rows in part.items()} for part in (first, second))
        found.append({
            "baseline": [run.name for run in baseline],
            "other": [run.name for run in own],
            "verdict": compare_ap(truth, first, second).to_json(),
            "errors": _records(compare_errors(before, after)),
        })
    return found


def _result(run: Run, notes: list[str]) -> tuple[dict[str, Any], pd.DataFrame, str] | None:
    """Ground truth, detections and split of the run's result: the test split where it was tested."""
    try:
        lines = run.evaluations()
        tested = [line for line in lines if line["split"] == "test"]
        if not lines:
            raise WorkbenchError("no evaluation yet")
        best = run.info().get("best_step")
        line = tested[-1] if tested else next((line for line in lines if line["step"] == best), lines[-1])
        rows = read_detections(run, line["split"], line["step"])
        return open_data(run.info(), line["split"]).coco(), rows, line["split"]
    except (WorkbenchError, KeyError, TypeError) as error:
        notes.append(f"{run.name}: no errors, query value and verdict: {error}")
        return None


def _baseline_of(run: Run, runs: Sequence[Run]) -> Run | None:
    """The undistilled run of the same recipe, of the same seed where there is one."""
    same = [other for other in runs if _side(other) == (_side(run)[0], "undistilled", "equal steps") and other.name != run.name]
    return next((other for other in same if _seed(other) == _seed(run)), same[0] if same else None)


def _side(run: Run) -> tuple[Any, ...]:
    group = run.info().get("group") or {}
    return group.get("recipe"), group.get("arm"), group.get("schedule")


def _seed(run: Run) -> int:
    return int(run.info().get("seed") or 0)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(frame.to_json(orient="records"))
