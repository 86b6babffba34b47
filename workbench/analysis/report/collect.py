"""Every number of a report about one run or several: results, verdicts, diagnoses, errors, stability, query value, gain."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from workbench.analysis.derived import identity_over_steps, match_frame
from workbench.analysis.detection.ap_tests import compare_errors
from workbench.analysis.detection.targets import target_frame
from workbench.analysis.detection.tide import find_errors
from workbench.analysis.diagnosis.diagnose import diagnose
from workbench.analysis.of_run import open_data
from workbench.analysis.report.one_run import error_numbers, gain_numbers, matched_queries, records, slot_numbers, stability_numbers
from workbench.analysis.report.query_tests import compare_detections, compare_queries
from workbench.analysis.report.summary import table
from workbench.analysis.stability.seeds import found_by_both, seed_spread
from workbench.datasets.base import Dataset
from workbench.errors import WorkbenchError
from workbench.store.detections import read_detections
from workbench.store.groups import EQUAL_STEPS, UNDISTILLED
from workbench.store.run import Run

FORMAT = 2
_TRACED = "val"  # the split whose queries every run keeps


@dataclass(frozen=True)
class _Result:
    """Detections of a run's result and the split they are of: the test split where it was tested."""

    dataset: Dataset
    detections: pd.DataFrame
    split: str


def collect(runs: Sequence[Run]) -> dict[str, Any]:
    """What a report says, as plain values: shares and AP are 0..1, None is not known.

    Runs of one recipe, arm and schedule are the seeds of one side. The baseline is the side of the undistilled runs at equal steps of
    the same recipe, where they are among the runs.

    Returns:
        ``format``; ``runs``, the rows of ``summary.table`` with a row for every teacher; ``comparisons`` (``baseline`` and ``other``,
        names of runs; ``verdicts`` on every number, ``errors``); ``seeds``, of every side with more than one run the ``spread`` of churn
        and IS and the targets ``found`` by pairs; by name of the run ``diagnoses``, ``errors`` and ``slots`` (of ``run_report``, with
        their ``split``), ``stability`` and ``gain`` (with its ``baseline``); ``notes`` on what could not be computed.
    """
    notes: list[str] = []
    found: dict[str, Any] = {"format": FORMAT, "runs": records(table(runs, with_teacher=True))}
    baselines = {run.name: _baseline_of(run, runs) for run in runs}
    found["diagnoses"] = {run.name: diagnose(run, baselines[run.name]).to_json() for run in runs}
    results = {run.name: _result(run, notes) for run in runs}
    traced = {run.name: _traced(run, notes) for run in runs}
    found |= {name: {} for name in ("errors", "slots", "stability", "gain")}
    for run in runs:
        result, queries, baseline = results[run.name], traced[run.name], baselines[run.name]
        if result is not None:
            found["errors"][run.name] = {"split": result.split, **error_numbers(result.dataset, result.detections)}
            slots = slot_numbers(run, result.dataset, result.detections, queries[0] if queries is not None else None, _TRACED)
            found["slots"][run.name] = {"split": result.split, **slots}
        if queries is None:
            continue
        dataset, rows = queries
        found["stability"][run.name] = {"split": _TRACED, **stability_numbers(run, dataset, rows, _TRACED)}
        other = traced.get(baseline.name) if baseline is not None else None
        if baseline is not None and other is not None:
            try:
                found["gain"][run.name] = {"split": _TRACED, "baseline": baseline.name, **gain_numbers(dataset, rows, other[1])}
            except WorkbenchError as error:
                notes.append(f"{run.name}: no gain: {error}")
    found["comparisons"] = _comparisons(runs, results, traced, notes)
    found["seeds"] = [_seeds(side, traced) for side in _sides(runs).values() if len(side) > 1]
    found["notes"] = notes
    return found


def _comparisons(
    runs: Sequence[Run], results: Mapping[str, _Result | None], traced: Mapping[str, Any], notes: list[str]
) -> list[dict[str, Any]]:
    """Each side against the undistilled side of its recipe."""
    sides = _sides([run for run in runs if results[run.name] is not None])
    found: list[dict[str, Any]] = []
    for side, own in sides.items():
        baseline = sides.get((side[0], UNDISTILLED, EQUAL_STEPS))
        if baseline is None or baseline is own:
            continue
        everyone = [*baseline, *own]
        known = {run.name: result for run in everyone if (result := results[run.name]) is not None}
        if len({result.split for result in known.values()}) > 1 or len({run.info().get("dataset_hash") for run in everyone}) > 1:
            notes.append(f"{', '.join(run.name for run in own)}: on other data or another split than its baseline, so not compared")
            continue
        truth = known[own[0].name].dataset.coco()
        first, second = ({_seed(run): known[run.name].detections for run in part} for part in (baseline, own))
        before, after = ({seed: find_errors(truth, rows) for seed, rows in part.items()} for part in (first, second))
        verdicts = compare_detections(truth, first, second)
        if all(traced[run.name] is not None for run in everyone):
            identity = "box" if any(identity_over_steps(run, _TRACED, traced[run.name][1]) == "box" for run in everyone) else "source"
            images = [record.image_id for record in traced[own[0].name][0].records]
            queries = [{_seed(run): traced[run.name][1] for run in part} for part in (baseline, own)]
            verdicts += compare_queries(queries[0], queries[1], images, identity)
        found.append(
            {
                "baseline": [run.name for run in baseline],
                "other": [run.name for run in own],
                "split": known[own[0].name].split,
                "verdicts": [verdict.to_json() for verdict in verdicts],
                "errors": records(compare_errors(before, after)),
            }
        )
    return found


def _seeds(side: Sequence[Run], traced: Mapping[str, Any]) -> dict[str, Any]:
    """How far the runs of one side lie apart, and which targets pairs of them find."""
    known = [run for run in side if traced[run.name] is not None]
    spread = seed_spread({run.name: match_frame(run, "churn_steps", _TRACED) for run in known})
    pairs = []
    for first, second in itertools.pairwise(known):
        rows = [_last_step(traced[run.name][1]) for run in (first, second)]
        both = found_by_both(rows[0], rows[1], target_frame(traced[first.name][0].coco()))
        pairs += [{"first": first.name, "second": second.name, **row} for row in records(both)]
    return {"runs": [run.name for run in side], "spread": records(spread), "found": pairs}


def _last_step(rows: pd.DataFrame) -> pd.DataFrame:
    student = rows[rows["model"] == "student"]
    return student[student["step"] == student["step"].max()]


def _traced(run: Run, notes: list[str]) -> tuple[Dataset, pd.DataFrame] | None:
    """The split whose queries were kept, and those that are matched."""
    try:
        return open_data(run.info(), _TRACED), matched_queries(run, _TRACED)
    except (WorkbenchError, KeyError, TypeError) as error:
        notes.append(f"{run.name}: no stability and gain: {error}")
        return None


def _result(run: Run, notes: list[str]) -> _Result | None:
    try:
        lines = run.evaluations()
        tested = [line for line in lines if line["split"] == "test"]
        if not lines:
            raise WorkbenchError("no evaluation yet")
        best = run.info().get("best_step")
        line = tested[-1] if tested else next((line for line in lines if line["step"] == best), lines[-1])
        rows = read_detections(run, line["split"], line["step"])
        return _Result(open_data(run.info(), line["split"]), rows, line["split"])
    except (WorkbenchError, KeyError, TypeError) as error:
        notes.append(f"{run.name}: no errors, query value and verdict: {error}")
        return None


def _baseline_of(run: Run, runs: Sequence[Run]) -> Run | None:
    """The undistilled run of the same recipe, of the same seed where there is one."""
    same = [other for other in runs if _side(other) == (_side(run)[0], UNDISTILLED, EQUAL_STEPS) and other.name != run.name]
    return next((other for other in same if _seed(other) == _seed(run)), same[0] if same else None)


def _sides(runs: Sequence[Run]) -> dict[tuple[Any, ...], list[Run]]:
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        found.setdefault(_side(run), []).append(run)
    return found


def _side(run: Run) -> tuple[Any, ...]:
    group = run.info().get("group") or {}
    return group.get("recipe"), group.get("arm"), group.get("schedule")


def _seed(run: Run) -> int:
    return int(run.info().get("seed") or 0)
