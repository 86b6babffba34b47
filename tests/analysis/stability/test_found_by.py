"""Found-by churn against loops that match detections with targets one at a time."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.analysis.detection.bootstrap import draws
from workbench.analysis.detection.matches import match_detections
from workbench.analysis.detection.targets import target_frame
from workbench.analysis.stability.found_by import (
    finders,
    found_by_changes,
    found_by_churn,
    found_by_totals,
    pooled_found_by_churn,
)

STEPS = [10, 20, 30]


def example(seed: int, images: int = 5, classes: int = 2) -> tuple[dict[str, Any], dict[int, pd.DataFrame]]:
    """Ground truth with targets of several sizes, and detections near them and elsewhere at three evaluations; now and then none."""
    rng = np.random.default_rng(seed)
    annotations, number = [], 0
    for image in range(1, images + 1):
        for _ in range(rng.integers(0, 4)):
            number += 1
            x, y, w, h = (*rng.uniform(0, 150, 2), *rng.uniform(15, 140, 2))
            annotations.append({"id": number, "image_id": image, "category_id": int(rng.integers(1, classes + 1)), "bbox": [x, y, w, h],
                                "area": w * h, "iscrowd": 0})  # fmt: skip
    truth = {
        "images": [{"id": image, "width": 300, "height": 300} for image in range(1, images + 1)],
        "categories": [{"id": label, "name": str(label)} for label in range(1, classes + 1)],
        "annotations": annotations,
    }
    found = {}
    for step in STEPS:
        rows = []
        for own in annotations:
            for _ in range(rng.integers(0, 4)):
                x, y, w, h = np.array(own["bbox"]) + rng.normal(0, 12, 4)
                label = own["category_id"] if rng.random() < 0.8 else int(rng.integers(1, classes + 1))
                rows.append((own["image_id"], int(rng.integers(0, 40)), label, rng.random(), x, y, x + abs(w), y + abs(h)))
        frame = pd.DataFrame(rows, columns=["image_id", "query", "category_id", "score", "x1", "y1", "x2", "y2"])
        found[step] = frame.drop_duplicates(["image_id", "query", "category_id"], ignore_index=True)
    return truth, found


def overlap(a: Any, b: Any) -> float:
    """IoU of two boxes x1 y1 x2 y2, by hand."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(wide, 0) * max(high, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def found_slowly(truth: dict[str, Any], detections: pd.DataFrame) -> dict[tuple[int, int], tuple[int, tuple[float, ...]]]:
    """By image and target the candidate and box that COCO's matching gives it: the best score first, each takes the best free target."""
    found: dict[tuple[int, int], tuple[int, tuple[float, ...]]] = {}
    places: dict[int, int] = {}
    targets: list[tuple[int, int, int, list[float]]] = []
    for own in truth["annotations"]:
        place = places.get(own["image_id"], 0)
        places[own["image_id"]] = place + 1
        x, y, w, h = own["bbox"]
        targets.append((own["image_id"], place, own["category_id"], [x, y, x + w, y + h]))
    for row in detections.sort_values("score", ascending=False, kind="stable").to_dict("records"):
        box = (row["x1"], row["y1"], row["x2"], row["y2"])
        free = [(overlap(box, own[3]), own[:2]) for own in targets
                if own[0] == row["image_id"] and own[2] == row["category_id"] and own[:2] not in found]  # fmt: skip
        best = max((pair for pair in free if pair[0] >= 0.5), default=None)
        if best is not None:
            found[best[1]] = (row["query"], box)
    return found


def changed_slowly(now: Any, before: Any, by_box: bool) -> bool:
    return overlap(now[1], before[1]) < 0.7 if by_box else now[0] != before[0]


def all_finders(truth: dict[str, Any], found: dict[int, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([finders(match_detections(truth, own)).assign(step=step) for step, own in found.items()], ignore_index=True)


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.booleans())
def test_churn_is_what_a_loop_over_targets_counts(seed: int, by_box: bool):
    truth, found = example(seed)
    slow = {step: found_slowly(truth, own) for step, own in found.items()}
    frame = all_finders(truth, found)
    told = {(r.step, r.image_id, r.target): r.query for r in frame.itertuples()}
    assert told == {(step, *key): query for step, own in slow.items() for key, (query, _) in own.items()}
    changes = found_by_changes(frame, STEPS, "box" if by_box else "query")
    churn = found_by_churn(changes, samples=20).set_index("step")
    for before, step in itertools.pairwise(STEPS):
        both = sorted(set(slow[before]) & set(slow[step]))
        wanted = [changed_slowly(slow[step][key], slow[before][key], by_box) for key in both]
        own = changes[changes["step"] == step]
        assert list(zip(own["image_id"], own["target"], own["changed"], strict=True)) == [
            (*k, w) for k, w in zip(both, wanted, strict=True)
        ]
        if both:
            assert churn.loc[step, "found_by_churn"] == pytest.approx(np.mean(wanted)) and churn.loc[step, "n"] == len(both)
        else:
            assert step not in churn.index


@settings(max_examples=25)
@given(st.integers(0, 2**31))
def test_equal_detections_have_no_churn_and_other_candidates_have_nothing_else(seed: int):
    truth, found = example(seed)
    same = all_finders(truth, dict.fromkeys(STEPS, found[10]))
    for identity in ("query", "box"):
        assert not found_by_changes(same, STEPS, identity)["changed"].any()
    moved = same.assign(query=same["query"] + 1000 * same["step"])
    changes = found_by_changes(moved, STEPS, "query")
    assert changes["changed"].all() and len(changes) == 2 * len(same[same["step"] == 10])
    assert not found_by_changes(moved, STEPS, "box")["changed"].any()


@pytest.mark.parametrize("by", ["label", "size"])
def test_slices_and_intervals_are_of_resampled_images(by: str):
    truth, found = example(3, images=12)
    targets = target_frame(truth)
    changes = found_by_changes(all_finders(truth, found), STEPS, "query")
    told = pooled_found_by_churn(changes, by, targets, samples=40, seed=2)
    assert told["n"].sum() == len(changes) and set(told[by]) <= set(targets[by])
    known = changes.merge(targets, on=["image_id", "target"])
    everything = np.unique(known["image_id"])
    counts = draws(len(everything), 40, 2)
    for row in told.itertuples():
        own = known[known[by] == getattr(row, by)]
        assert row.found_by_churn == pytest.approx(own["changed"].mean()) and row.images == own["image_id"].nunique()
        totals = {image: (part["changed"].sum(), len(part)) for image, part in own.groupby("image_id")}
        values = []
        for count in counts:
            above, below = (sum(c * totals.get(i, (0, 0))[k] for c, i in zip(count, everything, strict=True)) for k in (0, 1))
            values += [above / below] if below else []
        assert (row.low, row.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))
    assert found_by_totals(changes)[["total", "n"]].sum().tolist() == [changes["changed"].sum(), len(changes)]


def test_an_evaluation_in_between_at_which_the_target_is_not_found_is_not_stepped_over():
    truth, found = example(5, images=8)
    frame = all_finders(truth, {10: found[10], 20: found[20].iloc[:0], 30: found[10]})
    assert len(frame) and found_by_changes(frame, STEPS, "query").empty
    assert len(found_by_changes(frame, [10, 30], "query")) == len(frame) / 2
    assert found_by_churn(found_by_changes(frame, STEPS, "query")).empty


def test_a_query_that_is_selected_per_image_is_known_by_its_cell():
    truth, found = example(7, images=8)
    sources = found[10].drop_duplicates(["image_id", "query"])[["image_id", "query"]].assign(source=lambda own: 7 * own["query"])
    first = finders(match_detections(truth, found[10]), sources)
    assert (first["source"] == 7 * first["query"]).all()
    # the same cells under other numbers
    renamed = first.assign(query=first["query"] + 1)
    both = pd.concat([first.assign(step=10), renamed.assign(step=20)], ignore_index=True)
    assert found_by_changes(both, STEPS, "query")["changed"].all() and not found_by_changes(both, STEPS, "source")["changed"].any()
