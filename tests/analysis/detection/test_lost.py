"""What a student lost of what its teacher found: against COCO's rule in loops, sums over resampled images, and laws that always hold."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.analysis.coco_examples import random_coco
from tests.analysis.detection.test_matches import greedy, iou
from workbench.analysis.detection.bootstrap import draws
from workbench.analysis.detection.lost import (
    CELLS,
    OUTCOMES,
    cell_table,
    compare_lost,
    compared_targets,
    images_of,
    inside_slice,
    lost_shares,
    nearest_boxes,
    outcome_table,
)
from workbench.errors import DataError

SIDES = pytest.mark.parametrize("seed", [1, 2, 3])
ANY = st.integers(0, 10_000)


def two_models(seed: int, images: int = 12) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """One ground truth, and two halves of its detections with scores of their own."""
    truth, everything = random_coco(seed, images=images)
    rng = np.random.default_rng(seed)
    teacher, student = (everything[rng.random(len(everything)) < 0.7].reset_index(drop=True) for _ in range(2))
    return truth, teacher, student.assign(score=rng.random(len(student)))


def ids_of(truth: dict[str, Any]) -> list[int]:
    return [image["id"] for image in truth["images"]]


def found_in_loops(truth: dict[str, Any], detections: pd.DataFrame, least: float) -> set[int]:
    """Places of the annotations that COCO's rule gives a detection with the least score, which is looked at after the matching."""
    score = detections["score"].tolist()
    return {place for row, (word, place) in greedy(truth, detections).items() if word == "hit" and score[row] >= least}


@given(seed=ANY, least=st.sampled_from([0.0, 0.3, 0.6]))
@hypothesis_settings(max_examples=8, deadline=None)
def test_every_target_is_in_the_cell_that_a_loop_over_the_detections_puts_it_in(seed: int, least: float):
    truth, teacher, student = two_models(seed, images=5)
    found = [found_in_loops(truth, side, least) for side in (teacher, student)]
    ever = found_in_loops(truth, student, -1)
    rows = compared_targets(truth, teacher, student, least).set_index(["image_id", "target"])
    place: dict[int, int] = {}
    wanted = 0
    for number, annotation in enumerate(truth["annotations"]):
        image = annotation["image_id"]
        target = place[image] = place.get(image, -1) + 1
        if annotation["iscrowd"]:
            assert (image, target) not in rows.index
            continue
        wanted += 1
        row = rows.loc[(image, target)]
        assert CELLS[row["cell"]] == (row["teacher"], row["student"]) == (number in found[0], number in found[1])
        assert (row["outcome"] == "found", row["outcome"] == "low score") == (number in found[1], number in ever - found[1])
        assert row["class"] == f"class {annotation['category_id']}"
    assert len(rows) == wanted


def test_a_target_that_the_student_has_otherwise_is_said_to_be_so():
    def box(x: float, width: float = 10) -> list[float]:
        return [x, 0, width, 10]

    places = [0, 100, 200, 300, 400]
    truth = {
        "images": [{"id": 7}], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [{"id": n, "image_id": 7, "category_id": 1, "bbox": box(x), "area": 100, "iscrowd": 0}
                        for n, x in enumerate(places)],
    }  # fmt: skip

    def detections(*rows: tuple[int, float, float]) -> pd.DataFrame:
        frame = pd.DataFrame(rows, columns=["category_id", "score", "x1"])
        return frame.assign(image_id=7, y1=0.0, x2=frame["x1"] + 10, y2=10.0)

    teacher = detections(*[(1, 0.9, x) for x in places])
    # found; found with a low score; another class; a box that overlaps by 5 / 15; nothing but a box of low score beside it
    student = detections((1, 0.9, 0), (1, 0.2, 100), (2, 0.8, 200), (1, 0.7, 305), (1, 0.1, 405))
    rows = compared_targets(truth, teacher, student)
    assert rows["outcome"].tolist() == ["found", "low score", "classification", "localisation", "missed"] == list(OUTCOMES)
    assert rows["cell"].tolist() == ["both", *["lost"] * 4]
    assert outcome_table(rows, [7])[["outcome", "n", "share"]].to_numpy().tolist() == [[name, 1, 0.2] for name in OUTCOMES]


@SIDES
def test_counts_shares_and_intervals_are_those_of_loops_over_resampled_images(seed: int):
    truth, teacher, student = two_models(seed)
    images = ids_of(truth)
    rows = compared_targets(truth, teacher, student)
    table, shares = cell_table(rows, images, samples=25, seed=seed), lost_shares(rows, images, samples=25, seed=seed)
    counts = [[1] * len(images), *draws(len(images), 25, seed).tolist()]
    places = [images.index(image) for image in rows["image_id"]]
    records = rows.to_dict("records")

    def estimate(above: list[bool], below: list[bool]) -> tuple[float, float, float]:
        values = []
        for count in counts:
            weight = [count[place] for place in places]
            total = math.fsum(w for w, inside in zip(weight, below, strict=True) if inside)
            values.append(math.fsum(w for w, inside in zip(weight, above, strict=True) if inside) / total if total else math.nan)
        kept = [value for value in values[1:] if not math.isnan(value)]
        low, high = np.percentile(kept, [2.5, 97.5]) if kept else (math.nan, math.nan)
        return values[0], float(low), float(high)

    seen = set()
    for row in table.to_dict("records"):
        inside = [row["by"] == "all" or own[row["by"]] == row["slice"] for own in records]
        there = [cell == row["cell"] and mine for cell, mine in zip(rows["cell"], inside, strict=True)]
        assert (row["n"], row["targets"]) == (sum(there), sum(inside))
        assert row["images"] == len({image for image, mine in zip(rows["image_id"], there, strict=True) if mine})
        assert (row["share"], row["low"], row["high"]) == pytest.approx(estimate(there, inside), nan_ok=True)
        seen.add((row["by"], row["slice"]))
    for row in shares.to_dict("records"):
        taught = [own["teacher"] and (row["by"] == "all" or own[row["by"]] == row["slice"]) for own in records]
        lost = [mine and not found for mine, found in zip(taught, rows["student"], strict=True)]
        assert (row["found"], row["lost"]) == (sum(taught), sum(lost))
        assert (row["share"], row["low"], row["high"]) == pytest.approx(estimate(lost, taught), nan_ok=True)
        seen.remove((row["by"], row["slice"]))
    assert not seen


@given(seed=ANY)
@hypothesis_settings(max_examples=8, deadline=None)
def test_what_is_true_of_every_two_models_is_true_of_the_table(seed: int):
    truth, teacher, student = two_models(seed, images=6)
    rows, turned = compared_targets(truth, teacher, student), compared_targets(truth, student, teacher)
    table = cell_table(rows, ids_of(truth), samples=5)
    # the cells divide the targets of every slice, and the slices of a kind divide all targets
    for _, own in table.groupby(["by", "slice"]):
        assert own["n"].sum() == own["targets"].iloc[0] and own["cell"].tolist() == list(CELLS)
    for _, own in table[table["cell"] == "lost"].groupby("by"):
        assert own["targets"].sum() == len(rows) and own["n"].sum() == (rows["cell"] == "lost").sum()
    # what one lost the other gained, and nobody loses to himself
    assert turned["cell"].tolist() == rows["cell"].replace({"lost": "gained", "gained": "lost"}).tolist()
    assert set(compared_targets(truth, teacher, teacher)["cell"]) <= {"both", "neither"}
    # with a higher least score nothing more is found
    stricter = compared_targets(truth, teacher, student, 0.6)
    for side in ("teacher", "student"):
        assert not (stricter[side].to_numpy() & ~rows[side].to_numpy()).any()


@SIDES
def test_two_students_differ_by_what_only_one_of_them_lost(seed: int):
    truth, teacher, student = two_models(seed)
    _, _, other = two_models(seed + 50)
    other = student[np.random.default_rng(seed).random(len(student)) < 0.6].reset_index(drop=True)
    images = ids_of(truth)
    first, second = (compared_targets(truth, teacher, side) for side in (student, other))
    table = compare_lost(first, second, images, samples=25, seed=seed)
    shares = [lost_shares(side, images, samples=25, seed=seed) for side in (first, second)]
    lost = [
        {(i, t) for i, t, cell in side[["image_id", "target", "cell"]].itertuples(index=False) if cell == "lost"}
        for side in (first, second)
    ]
    whole = table.iloc[0]
    assert (whole["both_lost"], whole["only_baseline"], whole["only_other"]) == (
        len(lost[0] & lost[1]), len(lost[0] - lost[1]), len(lost[1] - lost[0]))  # fmt: skip
    for name, own in zip(("baseline", "other"), shares, strict=True):
        assert table[name].tolist() == pytest.approx(own["share"].tolist(), nan_ok=True)
    assert (table["difference"] - (table["other"] - table["baseline"])).abs().max() < 1e-12
    counts = draws(len(images), 25, seed)
    per_image = [np.array([((side["image_id"] == image) & (side["cell"] == "lost")).sum() for image in images]) for side in (first, second)]
    found = np.array([(first["teacher"] & (first["image_id"] == image)).sum() for image in images])
    resampled = counts @ (per_image[1] - per_image[0]) / (counts @ found)
    assert (whole["low"], whole["high"]) == pytest.approx(tuple(np.percentile(resampled, [2.5, 97.5])))
    assert whole["sentence"].startswith("share of the teacher's targets that were lost: ")
    assert compare_lost(first, first, images, samples=5)["difference"].fillna(0).eq(0).all()


def test_students_of_different_teachers_are_not_compared():
    truth, teacher, student = two_models(1)
    first, second = compared_targets(truth, teacher, student), compared_targets(truth, teacher.iloc[:3], student)
    with pytest.raises(DataError, match="same detections of the teacher"):
        compare_lost(first, second, ids_of(truth))


def test_the_images_of_a_cell_have_as_many_targets_as_the_cell():
    truth, teacher, student = two_models(4)
    rows = compared_targets(truth, teacher, student)
    table = cell_table(rows, ids_of(truth), samples=5)
    for row in table.to_dict("records"):
        images = images_of(inside_slice(rows, row["by"], row["slice"]), row["cell"])
        assert (images["n"].sum(), len(images)) == (row["n"], row["images"])
        assert images["n"].is_monotonic_decreasing


def test_a_split_without_targets_or_detections_has_empty_cells():
    truth, teacher, student = two_models(5)
    nothing = compared_targets({**truth, "annotations": []}, teacher, student)
    table = cell_table(nothing, ids_of(truth), samples=5)
    assert table["n"].sum() == 0 and set(table["by"]) == {"all"} and table["share"].isna().all()
    rows = compared_targets(truth, teacher.iloc[:0], student.iloc[:0])
    assert set(rows["cell"]) == {"neither"} and set(rows["outcome"]) == {"missed"}
    assert lost_shares(rows, ids_of(truth), samples=5)["share"].isna().all()


def test_the_nearest_box_of_a_target_is_the_one_that_overlaps_it_most():
    truth, teacher, student = two_models(6)
    rows = compared_targets(truth, teacher, student)
    for image, own in rows.groupby("image_id"):
        boxes = student[student["image_id"] == image]
        near = nearest_boxes(own, boxes).set_index("target")
        for target in own.to_dict("records"):
            corners = [target[name] for name in ("x1", "y1", "x2", "y2")]
            overlaps = [iou(corners, box) for box in boxes[["x1", "y1", "x2", "y2"]].to_numpy().tolist()]
            assert (target["target"] in near.index) == (max(overlaps, default=0) > 0)
            if max(overlaps, default=0) > 0:
                assert near.loc[target["target"], "iou"] == pytest.approx(max(overlaps))
    assert nearest_boxes(rows, student.iloc[:0]).empty
