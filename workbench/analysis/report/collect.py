"""Collects every number of a report about runs: results, verdicts, diagnoses, errors, stability, query value and gain."""

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import pandas as pd

from workbench.analysis.defined import undefined_of
from workbench.analysis.derived import match_frame
from workbench.analysis.detection.ap_tests import compare_errors
from workbench.analysis.diagnosis.diagnose import diagnose
from workbench.analysis.of_run import RunAt, all_evaluations, common_step, last_with_queries, one_evaluation
from workbench.analysis.report.answer import answer
from workbench.analysis.report.one_run import QUERIES, error_numbers, gain_numbers, lost_numbers, records, slot_numbers, stability_numbers
from workbench.analysis.report.sides import baseline_run, sides
from workbench.analysis.report.summary import run_result, table
from workbench.analysis.results.detections import seed_of
from workbench.analysis.results.of_runs import Results
from workbench.analysis.results.query_tests import (
    compare_detections,
    compare_masks,
    compare_queries,
    undefined_quantities,
    undefined_verdict,
)
from workbench.analysis.rows_of_run import common_identity, matched_rows
from workbench.analysis.stability.seeds import seed_spread
from workbench.errors import WorkbenchError
from workbench.store.run import Run

FORMAT = 2
_HELD = {
    "opened": 4,
    "opened_truth": 4,
    "opened_mask_truth": 4,
    "errors": 4,
    "matched_queries": 4,
    "gains": 4,
    "boxes": 4,
    "compared_targets": 4,
    "explained_changes": 2,
}  # results that others are computed from


def collect(runs: Sequence[Run], split: str = "val") -> dict[str, Any]:
    """Returns the numbers of a report as plain values: shares and AP are 0..1, None means unknown.

    Runs of one recipe, arm and schedule are the seeds of one side. The baseline is the side of the undistilled runs of the same recipe at
    equal steps, if they are among the runs.

    Args:
        runs: runs in the order in which they are shown.
        split: split whose queries are analysed: stability, gain, what slots serve, diagnoses. AP and errors are of a run's result, which
            is on the test split if the run was tested.

    Returns:
        ``format``; ``runs``, the rows of ``summary.table`` with a row for every teacher; ``answers``, whether distillation helped each
        arm (``answer.Answer``); ``comparisons`` (``baseline`` and ``other``,
        names of runs; ``verdicts`` on every number, ``errors``); ``seeds``, of every side with more than one run the ``spread`` of churn
        and IS (nothing of them where ``not_defined`` says so) and of found-by churn, and the targets ``found`` by pairs; by name of the
        run ``diagnoses``, ``errors``, ``lost`` and ``slots`` (of ``one_run``, with their ``split``), ``stability`` and ``gain`` (with its
        ``baseline``); ``notes`` on what could not be computed.
    """
    notes: list[str] = []
    results = Results({name: lru_cache(maxsize=most) for name, most in _HELD.items()})
    found: dict[str, Any] = {"format": FORMAT, "runs": records(table(runs, split, True, results))}
    baselines = {run.name: baseline_run(run, runs) for run in runs}
    diagnoses = {run.name: diagnose(run, baselines[run.name], split) for run in runs}
    found["diagnoses"] = {name: diagnosis.to_json() for name, diagnosis in diagnoses.items()}
    evaluated = {run.name: _result(results, run, notes) for run in runs}
    known = [run for run in runs if evaluated[run.name] is not None]
    found["answers"] = [own.to_json() for own in answer(known, results, diagnoses)]
    traced = {run.name: _recorded_rows(results, run, split, notes) for run in runs}
    found |= {name: {} for name in ("errors", "lost", "slots", "stability", "gain")}
    for run in runs:
        at, rows, baseline = evaluated[run.name], traced[run.name], baselines[run.name]
        if at is not None:
            found["errors"][run.name] = {"split": at.split, **error_numbers(results, at)}
            last = last_with_queries(run, split) if rows is not None else None
            found["slots"][run.name] = {"split": at.split, **slot_numbers(results, at, last, split)}
        if rows is None:
            continue
        found["lost"] |= _lost(results, run, baseline if traced.get(baseline.name if baseline else "") is not None else None, split, notes)
        found["stability"][run.name] = {"split": split, **stability_numbers(results, last_with_queries(run, split), rows)}
        if baseline is not None and traced.get(baseline.name) is not None:
            try:
                pair = [one_evaluation(one, split, common_step(run, baseline, split)) for one in (run, baseline)]
                found["gain"][run.name] = {"split": split, "baseline": baseline.name, **gain_numbers(results, *pair)}
            except WorkbenchError as error:
                notes.append(f"{run.name}: gain could not be computed: {error}")
    found["comparisons"] = _comparisons(results, runs, evaluated, traced, split, notes)
    found["seeds"] = [_seeds(results, side, traced, split) for side in sides(runs).values() if len(side) > 1]
    found["notes"] = notes
    return found


def _lost(results: Results, run: Run, baseline: Run | None, split: str, notes: list[str]) -> dict[str, Any]:
    """Returns what a run lost of its teacher by the name of the run; nothing where it has none or cannot be set beside it."""
    if not (run.info().get("recipe") or {}).get("teacher"):
        return {}
    at = last_with_queries(run, split)
    if why := results.without_teacher(at):
        notes.append(f"{run.name}: what it lost of its teacher is not shown: {why}")
        return {}
    before = last_with_queries(baseline, split) if baseline is not None else None
    try:
        return {run.name: {"split": split, **lost_numbers(results, at, before)}}
    except WorkbenchError as error:
        notes.append(f"{run.name}: not compared with the baseline in what it lost: {error}")
        return {run.name: {"split": split, **lost_numbers(results, at, None)}}


def _comparisons(
    results: Results, runs: Sequence[Run], evaluated: Mapping[str, RunAt | None], traced: Mapping[str, Any], split: str, notes: list[str]
) -> list[dict[str, Any]]:
    """Returns the comparison of each side with the undistilled side of its recipe; notes why a side is not compared."""
    known_sides = sides([run for run in runs if evaluated[run.name] is not None])
    found: list[dict[str, Any]] = []
    for side, own in known_sides.items():
        baseline = known_sides.get(side.baseline())
        if baseline is None or baseline is own:
            continue
        everyone = [*baseline, *own]
        known = {run.name: at for run in everyone if (at := evaluated[run.name]) is not None}
        if len({at.split for at in known.values()}) > 1 or len({run.info().get("dataset_hash") for run in everyone}) > 1:
            notes.append(f"{', '.join(run.name for run in own)}: not compared, because the baseline is on other data or another split")
            continue
        truth = results.truth(known[own[0].name].data)
        first, second = ({seed_of(run): results.detections(known[run.name]) for run in part} for part in (baseline, own))
        before, after = ({seed_of(run): results.errors(known[run.name]) for run in part} for part in (baseline, own))
        verdicts = compare_detections(truth, first, second)
        if results.have_object_masks(known[run.name] for part in (baseline, own) for run in part):
            verdicts += compare_masks(results.mask_truth(known[own[0].name].data), first, second)
        left_out = undefined_quantities(everyone)
        if all(traced[run.name] is not None for run in everyone):
            identity = common_identity([(run, traced[run.name]) for run in everyone], split)
            images = [record.image_id for record in results.dataset(last_with_queries(own[0], split).data).records]
            queries = [{seed_of(run): traced[run.name] for run in part} for part in (baseline, own)]
            verdicts += compare_queries(queries[0], queries[1], images, identity, leave_out=left_out)
            changes = [{seed_of(run): all_evaluations(run, split) for run in part} for part in (baseline, own)]
            verdicts += results.found_by_verdict(changes[0], changes[1], images)
        found.append(
            {
                "baseline": [run.name for run in baseline],
                "other": [run.name for run in own],
                "split": known[own[0].name].split,
                "verdicts": [
                    *(verdict.to_json() for verdict in verdicts),
                    *(undefined_verdict(quantity, why, len(truth["images"])) for quantity, why in left_out.items()),
                ],
                "errors": records(compare_errors(before, after)),
            }
        )
    return found


def _seeds(results: Results, side: Sequence[Run], traced: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Returns how much the runs of one side differ, and which targets pairs of them find."""
    known = [run for run in side if traced[run.name] is not None]
    why = undefined_of(known, "churn")
    spread = seed_spread({} if why else {run.name: match_frame(run, "churn_steps", split) for run in known})
    found_by = {run.name: results.found_by_churn(all_evaluations(run, split)).assign(layer=-1) for run in known if _detected(run, split)}
    spread = pd.concat([spread, seed_spread(found_by, ("found_by_churn",))], ignore_index=True)
    pairs = []
    for first, second in itertools.pairwise(known):
        both = results.found_by_both(*(last_with_queries(run, split) for run in (first, second)))
        pairs += [{"first": first.name, "second": second.name, **row} for row in records(both)]
    return {"runs": [run.name for run in side], "spread": records(spread), "not_defined": why, "found": pairs}


def _detected(run: Run, split: str) -> bool:
    """Returns True if the run keeps the detections of evaluations whose queries it keeps."""
    return bool(set(run.detection_steps(split)) & set(run.query_steps(split)))


def _recorded_rows(results: Results, run: Run, split: str, notes: list[str]) -> pd.DataFrame | None:
    """Returns the matched queries of the run and its teacher, or None with a note."""
    try:
        results.dataset(last_with_queries(run, split).data)
        return matched_rows(run, split, QUERIES)
    except (WorkbenchError, KeyError, TypeError) as error:
        notes.append(f"{run.name}: stability and gain could not be computed: {error}")
        return None


def _result(results: Results, run: Run, notes: list[str]) -> RunAt | None:
    """Returns the evaluation that represents the run, if its detections and data exist; otherwise None with a note."""
    try:
        line = run_result(run)
        if not line:
            raise WorkbenchError("the run has no evaluation yet")
        at = one_evaluation(run, line["split"], line["step"])
        results.dataset(at.data)
        results.detections(at)
        return at
    except (WorkbenchError, KeyError, TypeError) as error:
        notes.append(f"{run.name}: errors, query value and verdict could not be computed: {error}")
        return None
