"""Error types and their costs: a hand-worked image, an oracle in plain loops, and hotcoco's own implementation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.analysis.coco_examples import random_coco
from tests.analysis.detection.test_bootstrap import resampled
from tests.analysis.detection.test_matches import greedy, iou, xyxy
from workbench.analysis.detection import tide
from workbench.analysis.detection.ap import coco_ap, evaluate, light_ground_truth
from workbench.analysis.detection.bootstrap import draws
from workbench.analysis.detection.tide import MAIN, SPECIAL, Errors, error_costs, error_counts, error_table, find_errors, rows_behind

Point = tuple[int, float, bool]  # category, score, hit


def everything(errors: Errors) -> dict[str, float]:
    """Costs on all images, each once."""
    return {name: float(value[0]) for name, value in error_costs(errors, np.ones((1, len(errors.images)))).items()}


def one_image() -> tuple[dict[str, Any], pd.DataFrame]:
    """Targets of class 1 at x = 0, 100, 200 and of class 2 at x = 300, 400, each 10 wide; a detection of every type, named by its query."""

    def box(x: float) -> list[float]:
        return [x, 0, 10, 10]

    annotations = [{"id": n, "image_id": 7, "category_id": category, "bbox": box(x), "area": 100, "iscrowd": 0}
                   for n, (category, x) in enumerate([(1, 0), (1, 100), (1, 200), (2, 300), (2, 400)], start=1)]  # fmt: skip
    rows = [
        (10, 1, 0.95, 0),  # finds target 0
        (11, 1, 0.90, 1),  # overlaps it by 9 / 11 again: duplicate
        (12, 1, 0.85, 105),  # overlaps target 1 by 5 / 15: localisation
        (13, 1, 0.80, 106),  # by 4 / 16: localisation, but a better one would correct the target
        (14, 1, 0.75, 300),  # covers target 3 of the other class: classification
        (15, 2, 0.70, 205),  # overlaps target 2 of the other class by 5 / 15: both
        (16, 2, 0.65, 600),  # background
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["query", "category_id", "score", "x1"]).assign(image_id=7, y1=0.0, y2=10.0)
    truth = {"images": [{"id": 7}], "annotations": annotations, "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
    return truth, table.assign(x2=table["x1"] + 10)


def test_a_detection_of_every_type_is_named_with_the_target_it_is_about():
    errors = find_errors(*one_image())
    rows = errors.detections.set_index("query")
    assert rows["error"].to_dict() == {10: "correct", 11: "duplicate", 12: "localisation", 13: "localisation", 14: "classification",
                                       15: "both", 16: "background"}  # fmt: skip
    assert rows["target"].to_dict() == {10: 0, 11: 0, 12: 1, 13: 1, 14: 3, 15: 2, 16: -1}
    assert rows.index[rows["corrects"]].tolist() == [12, 14]
    assert errors.targets["error"].tolist() == ["found", "localisation", "missed", "classification", "missed"]


def test_the_costs_of_one_image_are_those_worked_out_by_hand():
    """Class 1 asks for 3 targets, class 2 for 2, of which none is found.

    Precision of class 1 is 1 at recall 1/3 (34 of 101 thresholds), so AP50 = (34 / 101 + 0) / 2.
    """
    found = everything(find_errors(*one_image()))
    base = 34 / 101 / 2
    assert found["ap50"] == pytest.approx(base)
    # hits of class 1 are then ranks 1 and 3, the third and fourth wrong ones gone: 1 to recall 1/3, 2/3 to recall 2/3 (33 thresholds)
    assert found["localisation"] == pytest.approx((34 + 33 * 2 / 3) / 101 / 2 - base)
    # the detection at x = 300 moves to class 2, where it ranks first: recall 1/2 at precision 1 (51 thresholds)
    assert found["classification"] == pytest.approx(51 / 101 / 2)
    # class 1 is asked for 2 targets, class 2 for 1
    assert found["missed"] == pytest.approx((51 / 101) / 2 - base)
    assert found["false_negative"] == pytest.approx(1 / 2 - base)
    assert [found[name] for name in ("both", "duplicate", "background", "false_positive")] == pytest.approx([0, 0, 0, 0])


def test_rows_images_and_queries_behind_a_number_are_listed():
    errors = find_errors(*one_image())
    assert tide.rows_behind(errors, "localisation")["query"].tolist() == [12, 13]
    assert tide.rows_behind(errors, "false_positive")["query"].tolist() == [11, 12, 13, 14, 15, 16]
    assert tide.rows_behind(errors, "missed")["target"].tolist() == [2, 4]
    assert tide.rows_behind(errors, "false_negative")["target"].tolist() == [1, 2, 3, 4]
    assert tide.images_behind(errors, "missed").to_dict("list") == {"image_id": [7], "n": [2]}
    assert tide.queries_behind(errors, "background").to_dict("list") == {"query": [16], "n": [1], "images": [1]}
    assert tide.queries_behind(errors, "missed").empty


def average_precision(points: list[Point], targets: dict[int, int], classes: list[int]) -> float:
    """AP50 from its definition: the best precision at each of 101 recalls or beyond, the mean over classes."""
    total = 0.0
    for category in classes:
        ranked = sorted((p for p in points if p[0] == category), key=lambda p: -p[1])
        hits, curve = 0, []
        for rank, (_, _, hit) in enumerate(ranked, start=1):
            hits += hit
            curve.append((hits / targets[category] if targets[category] else 0, hits / rank))
        total += sum(max((p for r, p in curve if r >= level), default=0) for level in np.linspace(0, 1, 101)) / 101
    return total / len(classes)


def oracle(truth: dict[str, Any], detections: pd.DataFrame) -> tuple[dict[str, int], dict[str, float]]:
    """Counts and costs as the paper tells them, one detection after the other."""
    matched = greedy(truth, detections)
    taken = {place for word, place in matched.values() if word == "hit"}
    kind: dict[int, str] = {}
    best: dict[int, int] = {}
    for row in detections.sort_values("score", ascending=False, kind="stable").index:
        if matched[row][0] == "region":
            continue
        one = detections.loc[row]
        box = one[["x1", "y1", "x2", "y2"]].tolist()
        there = [(iou(box, xyxy(a)), a["category_id"] == one["category_id"], n) for n, a in enumerate(truth["annotations"])
                 if a["image_id"] == one["image_id"] and not a["iscrowd"]]  # fmt: skip
        own = max((o for o in there if o[1]), default=(0, True, -1))
        other = max((o for o in there if not o[1]), default=(0, False, -1))
        about = -1
        if matched[row][0] == "hit":
            kind[row] = "correct"
        elif 0.1 <= own[0] <= 0.5:
            kind[row], about = "localisation", own[2]
        elif other[0] >= 0.5:
            kind[row], about = "classification", other[2]
        elif own[0] >= 0.5:
            kind[row] = "duplicate"
        else:
            kind[row] = "background" if max(own[0], other[0]) <= 0.1 else "both"
        if about >= 0 and about not in taken:
            best.setdefault(about, row)
    asked = [n for n, a in enumerate(truth["annotations"]) if not a["iscrowd"]]
    missed = [n for n in asked if n not in taken and n not in best]
    category = {n: truth["annotations"][n]["category_id"] for n in asked}

    def ap(keep: Callable[[int], bool], fixed: str = "", gone: list[int] | None = None) -> float:
        points: list[Point] = []
        for row, word in kind.items():
            row_class, score = int(detections.loc[row, "category_id"]), float(detections.loc[row, "score"])
            corrected = [n for n, candidate in best.items() if candidate == row]
            if word == fixed and corrected:
                points.append((category[corrected[0]], score, True))
            elif word != fixed and keep(row):
                points.append((row_class, score, word == "correct"))
        targets = {c: sum(category[n] == c for n in asked if n not in (gone or [])) for c in set(category.values())}
        return average_precision(points, targets, sorted(set(category.values())))

    base = ap(lambda _: True)
    fixed = {name: ap(lambda _: True, name) - base for name in MAIN if name != "missed"}
    fixed["missed"] = ap(lambda _: True, gone=missed) - base
    fixed["false_positive"] = ap(lambda row: kind[row] == "correct") - base
    fixed["false_negative"] = ap(lambda _: True, gone=[n for n in asked if n not in taken]) - base
    counts = {name: sum(word == name for word in kind.values()) for name in MAIN} | {"missed": len(missed)}
    wrong = sum(word != "correct" for word in kind.values())
    return {**counts, "false_positive": wrong, "false_negative": len(asked) - len(taken)}, {"ap50": base, **fixed}


@given(seed=st.integers(0, 10_000))
@hypothesis_settings(max_examples=8)
def test_counts_and_costs_are_those_of_a_loop_that_follows_the_paper(seed: int):
    truth, detections = random_coco(seed, images=6, ties=False)
    errors = find_errors(truth, detections)
    counts, costs = oracle(truth, detections)
    assert error_counts(errors) == counts
    assert everything(errors) == pytest.approx(costs, abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_hotcoco_counts_and_costs_the_same(seed: int):
    truth, detections = random_coco(seed, ties=False, crowds=False)
    theirs = evaluate(light_ground_truth(truth), detections, "hotcoco", 100).tide_errors()
    names = dict(zip(["Cls", "Loc", "Both", "Dupe", "Bkg", "Miss", "FP", "FN"], [*MAIN, *SPECIAL], strict=True))
    errors = find_errors(truth, detections)
    costs, counts = everything(errors), error_counts(errors)
    for key, value in theirs["delta_ap"].items():
        assert costs[names[key]] == pytest.approx(value, abs=1e-9)
    assert all(counts[names[key]] == value for key, value in theirs["counts"].items())
    assert costs["ap50"] == pytest.approx(coco_ap(truth, detections).ap50, abs=1e-9)


def test_detections_on_crowds_are_no_errors():
    truth, detections = random_coco(4)
    errors = find_errors(truth, detections)
    ignored = errors.detections["error"] == "ignored"
    assert ignored.any() and (ignored == ~errors.detections["counted"]).all()
    assert everything(errors)["ap50"] == pytest.approx(coco_ap(truth, detections).ap50, abs=1e-9)


def test_costs_of_a_resample_are_those_of_its_data_set():
    truth, detections = random_coco(6, ties=False)
    counts = draws(12, 4, seed=1)
    found = error_costs(find_errors(truth, detections), counts)
    for place, row in enumerate(counts):
        again = everything(find_errors(*resampled(truth, detections, row)))
        assert {name: value[place] for name, value in found.items()} == pytest.approx(again, abs=1e-9)


def test_the_table_gives_each_cost_its_interval_and_the_images_behind_it():
    errors = find_errors(*random_coco(7, images=20))
    table = error_table(errors, samples=50).set_index("error")
    costs = everything(errors)
    assert table.index.tolist() == [*MAIN, *SPECIAL] and table["special"].sum() == 2
    assert table["cost"].to_dict() == pytest.approx({name: costs[name] for name in table.index})
    assert (table["low"] <= table["high"]).all() and (table["high"] > 0).any()
    missed = errors.targets[errors.targets["error"] == "missed"]
    assert table.loc["missed", "images"] == missed["image_id"].nunique() and table.loc["missed", "count"] == len(missed)


def test_rows_behind_an_error_are_those_of_the_image_that_is_asked_for():
    errors = find_errors(*random_coco(7, images=20))
    for error in (*MAIN, *SPECIAL):
        rows = rows_behind(errors, error)
        for image in errors.images:
            pd.testing.assert_frame_equal(rows_behind(errors, error, int(image)), rows[rows["image_id"] == image])


def test_nothing_found_costs_what_is_missed_and_without_targets_nothing_is_defined():
    truth, detections = random_coco(8)
    nothing = find_errors(truth, detections.iloc[:0])
    assert everything(nothing)["ap50"] == 0 and error_counts(nothing)["missed"] == len(nothing.targets)
    undefined = everything(find_errors({**truth, "annotations": []}, detections))
    assert np.isnan(list(undefined.values())).all()
