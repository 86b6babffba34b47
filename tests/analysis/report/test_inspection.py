from itertools import pairwise

import duckdb
import numpy as np
import pandas as pd
import pytest

from tests import inspection_examples as examples
from workbench.analysis.detection.matches import pairwise_iou
from workbench.analysis.detection.tide import find_errors
from workbench.analysis.queries.gain import target_gain
from workbench.analysis.queries.query_detections import query_detections
from workbench.analysis.queries.value import ap_drops
from workbench.analysis.report import inspection
from workbench.analysis.report.inspection import inspect
from workbench.errors import RunError
from workbench.store.queries import read_queries

BEST = 9


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    data = examples.make_data()
    return data, *examples.make_runs(tmp_path_factory.mktemp("inspection"), data)


@pytest.fixture(scope="module")
def found(comparison):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspection, "BOXES", BEST)
        return inspect(*comparison)


def best_rows(run, step, model):
    """The last layer's best by score, asked of the files."""
    files = str(run.queries_path("val", step) / "part-*.parquet")
    last = f"SELECT * FROM '{files}' WHERE model = '{model}' AND layer = {examples.LAYERS - 1}"
    ranked = f"{last} QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY score DESC, query) <= {BEST}"
    return duckdb.sql(f"{ranked} ORDER BY image_id, score DESC, query").df()


@pytest.mark.parametrize(("role", "whose", "step"), [("teacher", 1, -1), ("student", 1, 30), ("baseline", 2, 30)])
def test_the_boxes_are_the_best_of_the_last_layer_with_what_the_query_table_says_of_them(comparison, found, role, whose, step):
    expected = best_rows(comparison[whose], step, "teacher" if role == "teacher" else "student")
    boxes = found.boxes[role]
    assert found.step == 30
    for name in ("image_id", "query", "label", "score", "cx", "w", "match", "match_iou", "quality", "loss_giou"):
        assert np.array_equal(boxes[name].to_numpy(float), expected[name].to_numpy(float)), name
    if role == "student":
        cost = expected["mate_cost_class"] + 5 * expected["mate_cost_bbox"] + 2 * expected["mate_cost_giou"]
        assert boxes["mate_cost"].to_numpy(float) == pytest.approx(cost.to_numpy(float), abs=1e-5)


@pytest.mark.parametrize("role", ["teacher", "student", "baseline"])
def test_types_of_errors_and_the_value_of_slots_are_those_of_the_boxes_alone(comparison, found, role):
    data, boxes = comparison[0], found.boxes[role]
    detections = query_detections(boxes, data)
    errors = find_errors(data.coco(), detections)
    assert list(boxes["error"]) == list(errors.detections["error"]) and list(boxes["target"]) == list(errors.detections["target"])
    places = {(record.image_id, number): box for record in data.records for number, box in enumerate(record.boxes)}
    for box, own in zip(boxes.to_dict("records"), detections[["x1", "y1", "x2", "y2"]].to_numpy(float), strict=True):
        if box["target"] < 0:
            assert pd.isna(box["iou"])
        else:
            assert box["iou"] == pytest.approx(pairwise_iou(own[None], places[box["image_id"], box["target"]][None])[0, 0])
    drops = ap_drops(data.coco(), detections).set_index("query")["ap_drop"]
    assert boxes["value"].to_numpy() == pytest.approx(drops[boxes["query"]].to_numpy())
    state = errors.targets.set_index(["image_id", "target"])["error"]
    own = found.targets.set_index(["image_id", "target"])[f"{role}_error"].dropna()
    assert own.to_dict() == state.to_dict()


def test_stability_is_the_share_of_evaluations_that_kept_the_query_of_the_target(comparison, found):
    run = comparison[1]
    rows = read_queries(run, "val", where="model = 'student' and match >= 0 and layer = 1", steps=list(examples.STEPS))
    held = rows.pivot_table(index=["image_id", "match"], columns="step", values="query")
    for row in found.targets[found.targets["kind"] == "target"].to_dict("records"):
        queries = held.loc[row["image_id"], row["target"]].dropna().tolist() if (row["image_id"], row["target"]) in held.index else []
        moments = len(queries) - 1
        kept = sum(a == b for a, b in pairwise(queries))
        if moments > 0 and len(queries) == len(examples.STEPS):
            assert row["student_stability"] == pytest.approx(kept / moments)


def test_layer_changes_count_the_layers_that_gave_the_target_to_another_query(comparison, found):
    rows = read_queries(comparison[1], "val", where="model = 'student' and match >= 0", steps=[30])
    held = rows.pivot_table(index=["image_id", "match"], columns="layer", values="query").dropna()
    own = found.targets.set_index(["image_id", "target"])["student_layer_changes"]
    for place, (first, last) in zip(held.index, held.to_numpy(), strict=True):
        assert own[place] == int(first != last)


def test_gain_is_inherited_by_the_boxes_of_teacher_and_student_from_their_target(comparison, found):
    rows = [read_queries(run, "val", steps=[30]) for run in comparison[1:]]
    gains = target_gain(*rows, 30).set_index(["image_id", "target"])["gain"]
    for role in ("teacher", "student"):
        for row in found.boxes[role].to_dict("records"):
            expected = gains.get((row["image_id"], row["match"]))
            assert row["gain"] == pytest.approx(expected) if expected is not None else pd.isna(row["gain"])


def test_a_box_followed_its_mate_where_both_are_wrong_with_one_class_and_sure(found):
    teacher = {(row["image_id"], row["query"]): row for row in found.boxes["teacher"].to_dict("records")}
    for row in found.boxes["student"].to_dict("records"):
        mate = teacher.get((row["image_id"], row["mate"]))
        followed = (
            mate is not None and row["error"] not in ("correct", "ignored") and mate["error"] not in ("correct", "ignored")
            and mate["label"] == row["label"] and min(mate["score"], row["score"]) >= 0.3
        )  # fmt: skip
        assert row["followed"] == followed
    assert 0 < found.boxes["student"]["followed"].sum() < len(found.boxes["student"])


def test_a_wrong_box_is_new_where_the_baseline_has_none_like_it(found):
    def corners(row):
        return row["cx"] - row["w"] / 2, row["cy"] - row["h"] / 2, row["cx"] + row["w"] / 2, row["cy"] + row["h"] / 2

    def iou(a, b):
        a, b = corners(a), corners(b)
        inner = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
        return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)

    baseline = [row for row in found.boxes["baseline"].to_dict("records") if row["score"] >= 0.3]
    for row in found.boxes["student"].to_dict("records"):
        like = [o for o in baseline if (o["image_id"], o["label"]) == (row["image_id"], row["label"]) and iou(o, row) >= 0.5]
        assert row["new"] == (row["error"] not in ("correct", "ignored") and row["score"] >= 0.3 and not like)
    assert 0 < found.boxes["student"]["new"].sum() < len(found.boxes["student"])


def test_grades_are_the_ends_of_the_ranking_by_quality(found, comparison, monkeypatch):
    monkeypatch.setattr(inspection, "GRADED", 5)
    monkeypatch.setattr(inspection, "BOXES", BEST)
    boxes = inspect(*comparison).boxes["teacher"]
    matched = boxes[boxes["match"] >= 0].sort_values("quality")
    assert set(boxes.index[boxes["grade"] == "worst"]) == set(matched.index[:5])
    assert set(boxes.index[boxes["grade"] == "best"]) == set(matched.index[-5:])


def test_numbers_of_an_image_are_those_of_its_rows(comparison, found):
    images = found.images.set_index("image_id")
    rows = read_queries(comparison[1], "val", where="match >= 0 and layer = 1", steps=[-1, 30])
    for record in comparison[0].records:
        own = rows[rows["image_id"] == record.image_id]
        student = own[own["model"] == "student"].set_index("match")
        teacher = own[own["model"] == "teacher"].set_index("match")["query"]
        both = [target for target in student.index if target in teacher.index]
        if both:
            share = np.mean([student["mate"][target] == teacher[target] for target in both])
            assert images["agreement"][record.image_id] == pytest.approx(share)
        assert images["targets"][record.image_id] == len(record.boxes)
    assert images[["teacher_contribution", "student_contribution", "baseline_contribution"]].notna().all(axis=None)


def test_a_run_alone_is_shown_without_what_only_a_comparison_has(comparison):
    data, run, other = comparison
    alone = inspect(data, run)
    assert set(alone.boxes) == {"teacher", "student"} and "gain" not in alone.targets and "new" not in alone.boxes["student"]
    undistilled = inspect(data, other)
    assert set(undistilled.boxes) == {"student"} and "agreement" not in undistilled.images


def test_runs_without_a_common_step_and_runs_of_other_images_are_refused(comparison, tmp_path):
    data, run, _ = comparison
    other = type(run).create("other", {}, tmp_path)
    with pytest.raises(RunError, match="workbench trace other"):
        inspect(data, other)
    examples.add_evaluation(other, data, 7)
    with pytest.raises(RunError, match="in common"):
        inspect(data, run, other)
    records, data.records = data.records, data.records[1:]
    try:
        with pytest.raises(RunError, match="which the data does not have"):
            inspect(data, run)
    finally:
        data.records = records
