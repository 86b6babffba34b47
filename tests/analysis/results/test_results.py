"""Results about a run: equal to a computation on its files, kept under names that stay, made once where a caller holds them."""

import dataclasses
import functools
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests import inspection_examples as examples
from workbench.analysis import derived
from workbench.analysis.derived import evaluation_hash
from workbench.analysis.detection.ap_tests import AP, compare_ap, judge
from workbench.analysis.detection.bootstrap import bootstrap_ap
from workbench.analysis.detection.calibration import reliability
from workbench.analysis.detection.lost import cell_table, compare_lost, compared_targets, lost_shares, outcome_table
from workbench.analysis.detection.matches import match_detections
from workbench.analysis.detection.slices import slices
from workbench.analysis.detection.targets import target_frame
from workbench.analysis.detection.tide import error_table, find_errors, images_behind, queries_behind
from workbench.analysis.of_run import RunAt, all_evaluations, one_evaluation
from workbench.analysis.queries.gain import slot_gain, target_gain
from workbench.analysis.queries.predictors import rank_correlations, target_properties
from workbench.analysis.queries.query_detections import query_detections
from workbench.analysis.queries.slots import slot_serves, slot_table
from workbench.analysis.queries.value import ap_drops
from workbench.analysis.results import detections
from workbench.analysis.results.of_runs import Results
from workbench.analysis.stability.agreement import agreement_by, teacher_agreement
from workbench.analysis.stability.change_causes import explain_changes
from workbench.analysis.stability.grouped import image_counts, pooled_by, stability_by, target_changes
from workbench.errors import RunError
from workbench.files import hash_json
from workbench.store.detections import DETECTION_SCHEMA, read_detections, write_detections
from workbench.store.queries import read_queries
from workbench.store.run import Run

STEP = 30
RESULTS = Results()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A distilled and an undistilled run with queries and detections."""
    data = examples.make_data()
    root: Path = tmp_path_factory.mktemp("results")
    pair = examples.make_runs(root, data)
    for run in pair:
        for step in examples.STEPS:
            rows = read_queries(run, "val", [step], where="model = 'student' and layer = 1")
            table = pa.Table.from_pandas(query_detections(rows, data)[DETECTION_SCHEMA.names], preserve_index=False)
            write_detections(run, "val", step, table)
    return pair


@pytest.fixture
def pair(runs: tuple[Run, Run]) -> tuple[RunAt, RunAt]:
    distilled, undistilled = (one_evaluation(run, "val", STEP) for run in runs)
    return distilled, undistilled


def equal(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found.reset_index(drop=True), wanted.reset_index(drop=True), check_dtype=False)


def test_what_is_said_of_detections_is_what_a_computation_on_the_files_gives(pair: tuple[RunAt, RunAt]):
    at, _ = pair
    data = examples.make_data()
    truth, found = data.coco(), read_detections(at.run, "val", STEP)
    for _ in ("computed", "read back"):
        equal(RESULTS.error_costs(at), error_table(find_errors(truth, found)))
        equal(RESULTS.slices(at), slices(truth, found))
        equal(RESULTS.slot_drops(at), ap_drops(truth, found))
    equal(RESULTS.calibration(at), reliability(match_detections(truth, found)))
    interval = bootstrap_ap(truth, found)
    assert RESULTS.ap_interval(at) == pytest.approx((interval.low, interval.high))
    assert RESULTS.kitti(at) is None


def test_a_verdict_on_resampled_aps_is_the_one_that_is_computed_from_the_detections(pair: tuple[RunAt, RunAt]):
    at, baseline = pair
    truth = examples.make_data().coco()
    wanted = compare_ap(truth, {0: read_detections(baseline.run, "val", STEP)}, {0: read_detections(at.run, "val", STEP)})
    for _ in ("computed", "read back"):
        assert judge(AP, {0: RESULTS.ap_resamples(baseline)}, {0: RESULTS.ap_resamples(at)}, examples.IMAGES) == wanted


def test_what_is_said_of_queries_is_what_a_computation_on_the_rows_gives(pair: tuple[RunAt, RunAt]):
    at, baseline = pair
    targets = target_frame(examples.make_data().coco())
    rows, before, teacher = (read_queries(one.run, "val", [step], where="layer = 1") for one, step in
                             ((at, STEP), (baseline, STEP), (at, -1)))  # fmt: skip
    equal(RESULTS.slots(at), slot_table(rows))
    for by in ("label", "size"):
        equal(RESULTS.slot_serves(at, by), slot_serves(rows, targets, by))
    assert sum(int(counts.sum()) for counts in RESULTS.slot_heatmaps(at).values()) == len(rows)
    gains = target_gain(rows, before, STEP)
    equal(RESULTS.gains(at, baseline), gains)
    equal(RESULTS.slot_gains(at, baseline), slot_gain(gains))
    assert RESULTS.mean_gain(at, baseline)["gain"].item() == pytest.approx(gains["gain"].mean())
    order = ["image_id", "target"]
    properties = target_properties(gains, teacher, before, targets)
    equal(RESULTS.properties(at, baseline).sort_values(order), properties.sort_values(order))
    equal(RESULTS.correlations(at, baseline), rank_correlations(RESULTS.properties(at, baseline)))
    assert RESULTS.correlations(at, baseline)["correlation"].to_numpy() == pytest.approx(
        rank_correlations(properties)["correlation"].to_numpy(), nan_ok=True
    )
    matched = RESULTS.matched_queries(at, "teacher")
    assert len(matched) == (teacher["match"] >= 0).sum() and (np.diff(matched["quality"]) <= 0).all()


def test_what_is_said_of_the_matching_is_what_a_computation_on_the_rows_gives(runs: tuple[Run, Run]):
    run, _ = runs
    split, targets = all_evaluations(run, "val"), target_frame(examples.make_data().coco())
    rows = read_queries(run, "val", matched=True)
    equal(RESULTS.churn_by_layer(split), stability_by(image_counts(rows, layers="all")))
    equal(RESULTS.churn_by(split, "label"), pooled_by(image_counts(rows, targets=targets, by="label"), "label"))
    pairs = teacher_agreement(rows[rows["step"].isin([-1, STEP])])
    equal(RESULTS.agreement_by(split, "size"), agreement_by(pairs[pairs["layer"] == 1], "size", targets))
    assert RESULTS.agreement_by(all_evaluations(runs[1], "val"), "label").empty
    assert RESULTS.student_layers(split) == [0, 1]


def test_results_are_kept_under_the_names_and_keys_that_runs_of_today_have(pair: tuple[RunAt, RunAt]):
    at, baseline = pair
    own, theirs = ([examples.make_data().hash(), evaluation_hash(one.run, "val", STEP)] for one in pair)
    made = {
        f"errors-val-{STEP}": (RESULTS.error_costs, (at,), own), f"slices-val-{STEP}": (RESULTS.slices, (at,), own),
        f"ap-drops-val-{STEP}": (RESULTS.slot_drops, (at,), own), f"slots-val-{STEP}": (RESULTS.slots, (at,), own),
        f"ap-interval-val-{STEP}": (RESULTS.ap_interval, (at,), own), f"ap-resamples-val-{STEP}": (RESULTS.ap_resamples, (at,), own),
        f"errors-against-val-{STEP}": (RESULTS.compared_errors, (baseline, at), [[0, 0], theirs, own]),
    }  # fmt: skip
    for name, (ask, what, inputs) in made.items():
        ask(*what)
        assert at.run.derived_path(name, hash_json([1, *inputs])[:16], "parquet").is_file(), name


def test_a_result_that_is_held_is_made_once_for_all_that_are_made_of_it(pair: tuple[RunAt, RunAt], monkeypatch: pytest.MonkeyPatch):
    at, baseline = pair
    found: list[int] = []

    def counted(*arguments):
        found.append(len(found))
        return find_errors(*arguments)

    monkeypatch.setattr(detections, "find_errors", counted)
    monkeypatch.setattr(derived, "DEFINITIONS", 99)  # nothing is kept on disk yet
    held = Results({"errors": functools.lru_cache(maxsize=2)})
    costs = held.error_costs(at)
    equal(held.calibration(at), RESULTS.calibration(at))
    assert found == [0, 1]  # the second for the results that hold nothing
    verdicts, changed = held.compared_errors(baseline, at)
    assert found == [0, 1, 2] and len(verdicts) == len(costs) and len(changed)


def test_verdicts_and_causes_are_of_the_runs_that_are_named(runs: tuple[Run, Run], pair: tuple[RunAt, RunAt]):
    at, baseline = pair
    table = RESULTS.verdicts(((0, baseline),), ((0, at),))
    assert table.loc[table["quantity"] == "AP", "images"].tolist() == [examples.IMAGES]
    assert {"AP", "churn", "instability", "quality"} <= set(table["quantity"])
    found = RESULTS.diagnosis(all_evaluations(runs[0]), all_evaluations(runs[1]))
    assert (found.run, found.baseline) == ("distilled", "undistilled")


def test_what_a_student_lost_is_read_from_the_query_tables_of_both(pair: tuple[RunAt, RunAt]):
    at, baseline = pair
    data = examples.make_data()
    deepest = int(read_queries(at.run, "val", [-1])["layer"].max())

    def boxes(one: RunAt, step: int, model: str, layer: int) -> pd.DataFrame:
        where = "model = $model and layer = $layer"
        return query_detections(read_queries(one.run, "val", [step], where=where, parameters={"model": model, "layer": layer}), data)

    teacher, student, other = boxes(at, -1, "teacher", deepest), boxes(at, STEP, "student", 1), boxes(baseline, STEP, "student", 1)
    for least in (0.0, 0.3):
        wanted = compared_targets(data.coco(), teacher, student, least)
        before = compared_targets(data.coco(), teacher, other, least)
        images = [record.image_id for record in data.records]
        equal(RESULTS.compared_targets(at, at, least), wanted)
        equal(RESULTS.found_cells(at, at, least), cell_table(wanted, images))
        equal(RESULTS.lost_shares(at, at, least), lost_shares(wanted, images))
        equal(RESULTS.lost_outcomes(at, at, least), outcome_table(wanted, images))
        equal(RESULTS.compared_lost(baseline, at, at, least), compare_lost(before, wanted, images))
        assert RESULTS.cell_images(at, at, least, "lost")["n"].sum() == (wanted["cell"] == "lost").sum()
    assert RESULTS.without_teacher(at) == ""


def test_a_run_that_keeps_nothing_of_its_teacher_says_how_to_make_it(pair: tuple[RunAt, RunAt]):
    at, _ = pair
    elsewhere = dataclasses.replace(at, split="test")
    recipe = at.run.info()["recipe"]
    assert RESULTS.without_teacher(elsewhere) == f"Run '{at.run.name}' has no teacher, so there is nothing that it could have lost."
    at.run.update_info(recipe={**recipe, "teacher": {"recipe": "big.yaml"}})
    assert RESULTS.without_teacher(elsewhere).endswith(f"workbench record {at.run.name} --split test")
    with pytest.raises(RunError, match="keeps queries of the steps none"):
        RESULTS.compared_targets(elsewhere, elsewhere)
    at.run.update_info(recipe=recipe)


def test_errors_with_a_least_score_are_those_of_the_detections_that_have_it(pair: tuple[RunAt, RunAt]):
    at, _ = pair
    detections = read_detections(at.run, "val", STEP)
    wanted = find_errors(examples.make_data().coco(), detections[detections["score"] >= 0.4])
    images, slots = RESULTS.behind(at, "missed", 0.4)
    equal(images, images_behind(wanted, "missed"))
    equal(RESULTS.behind(at, "background", 0.4)[1], queries_behind(wanted, "background"))
    assert slots.empty


def test_why_targets_change_their_query_is_read_pair_by_pair(pair: tuple[RunAt, RunAt]):
    split = all_evaluations(pair[0].run, "val")
    data = examples.make_data()
    rows = read_queries(split.run, "val", list(examples.STEPS), where="model = 'student' and layer = 1")
    truth = target_frame(data.coco())
    sizes = {record.image_id: (record.width, record.height) for record in data.records}
    boxes = [[(r.x1 + r.x2) / 2 / w, (r.y1 + r.y2) / 2 / h, (r.x2 - r.x1) / w, (r.y2 - r.y1) / h]
             for r in truth.itertuples() for w, h in [sizes[r.image_id]]]  # fmt: skip
    targets = truth[["image_id", "target", "label"]].assign(**dict(zip(("cx", "cy", "w", "h"), np.transpose(boxes), strict=True)))
    changes = target_changes(rows)
    wanted = pd.concat([
        explain_changes(rows[rows["step"] == a], rows[rows["step"] == b], changes[changes["step"] == b], targets)
        for a, b in itertools.pairwise(examples.STEPS)
    ])  # fmt: skip
    for _ in ("computed", "read back"):
        equal(RESULTS.explained_changes(split).convert_dtypes(), wanted.convert_dtypes())
    whole = RESULTS.churn_by_layer(split)
    whole = whole[whole["layer"] == 1].set_index("step")["churn"]
    assert RESULTS.churn_by_cause(split).groupby("step")["churn"].sum().tolist() == pytest.approx(whole.tolist())
    assert RESULTS.unsettled_causes(split)["targets"].sum() == len(RESULTS.unsettled_targets(split))
