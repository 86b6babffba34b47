"""Slices of stability, by loops over the definitions."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.analysis.answer_examples import random_answers, random_truth
from tests.analysis.query_examples import random_queries
from workbench.analysis.detection.bootstrap import draws
from workbench.analysis.detection.targets import target_frame
from workbench.analysis.stability.churn import churn_over_layers, churn_over_steps
from workbench.analysis.stability.grouped import image_counts, pooled_by, stability_by, target_changes, target_histories

Over = Any


Holders = dict[tuple[int, int, int], dict[int, Any]]


def holders(rows: pd.DataFrame, over: str) -> Holders:
    """By (moment, what is held fixed, image) and target: the query that holds it, as it is recognised at other moments."""
    found: Holders = {}
    for row in rows.itertuples():
        moment, fixed = (row.step, row.layer) if over == "step" else (row.layer, row.step)
        query = ("cell", row.source) if over == "step" and row.source >= 0 else ("slot", row.query)
        if row.match >= 0:
            found.setdefault((moment, fixed, row.image_id), {})[row.match] = query
    return found


@given(seed=st.integers(0, 10_000), over=st.sampled_from(["step", "layer"]))
@hypothesis_settings(max_examples=6)
def test_counts_of_an_image_are_of_its_targets_of_a_class_and_the_queries_on_them(seed: int, over: Over):
    queries = random_queries(seed, layers=3, selected=True)
    targets = target_frame(random_truth(seed))
    label = {(t.image_id, t.target): t.label for t in targets.itertuples()}
    found = image_counts(queries, over, layers="all", targets=targets, by="label").set_index(["step", "layer", "image_id", "label"])
    held, wanted = holders(queries, over), {}
    moments, others = ([10, 20, 30], [0, 1, 2]) if over == "step" else ([0, 1, 2], [10, 20, 30])
    for before, now in itertools.pairwise(moments):
        for fixed in others:
            for image in range(100, 104):
                for own in (0, 1, 2):
                    old, new = (
                        {t: query for t, query in held.get((moment, fixed, image), {}).items() if label[image, t] == own}
                        for moment in (before, now)
                    )
                    if old and new:
                        both = old.keys() & new.keys()
                        on = [{query: target for target, query in side.items()} for side in (old, new)]
                        moved = [query for query in on[0].keys() | on[1].keys() if on[0].get(query, -1) != on[1].get(query, -1)]
                        key = (now, fixed) if over == "step" else (fixed, now)
                        changed = sum(old[target] != new[target] for target in both)
                        wanted[(*key, image, own)] = (before, changed, len(both), len(moved), len(new))
    columns = found[["previous", "changed", "n", "queries", "matches"]]
    assert {key: tuple(values) for key, values in zip(columns.index, columns.to_numpy().tolist(), strict=True)} == wanted


@pytest.mark.parametrize("over", ["step", "layer"])
def test_without_slices_the_numbers_are_those_of_all_targets(over: Over):
    queries = random_queries(3, images=6, layers=3)
    frame = stability_by(image_counts(queries, over, layers="all"), samples=10)
    whole = churn_over_steps(queries, layers="all") if over == "step" else churn_over_layers(queries)
    columns = ["step", "layer", "previous", "churn", "n", "instability", "instability_normalised", "images", "matches"]
    wanted = whole[whole["previous"].notna()][columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(frame[columns].sort_values(["step", "layer"], ignore_index=True), wanted, check_dtype=False)


def test_boxes_recognise_queries_where_inputs_differ():
    queries = random_answers(4, images=5)
    frame = stability_by(image_counts(queries, identity="box"), samples=10)
    whole = churn_over_steps(queries, identity="box")
    wanted = whole[whole["previous"].notna()]
    for name in ("churn", "n", "instability", "instability_normalised", "images", "matches"):
        assert frame[name].tolist() == pytest.approx(wanted[name].tolist()), name
    changes = target_changes(queries, identity="box")
    assert changes.groupby("step")["changed"].mean().dropna().tolist() == pytest.approx(wanted["churn"].tolist())


def test_intervals_are_percentiles_over_resampled_images():
    queries, targets = random_queries(5, images=8), target_frame(random_truth(5, images=8))
    counts = image_counts(queries, targets=targets, by="size")
    frame = stability_by(counts, "size", samples=40, seed=1)
    ids = sorted(counts["image_id"].unique())
    resamples = draws(len(ids), 40, 1)
    assert len(frame) == counts.groupby(["step", "size"], observed=True).ngroups
    for row in frame.itertuples():
        own = counts[(counts["step"] == row.step) & (counts["size"] == row.size)]
        weights = resamples[:, [ids.index(image) for image in own["image_id"]]]
        with np.errstate(invalid="ignore"):
            churn = (weights @ own["changed"].to_numpy()) / (weights @ own["n"].to_numpy())
            instability = (weights @ own["queries"].to_numpy()) / weights.sum(axis=1)
        assert (row.low, row.high) == pytest.approx(tuple(np.nanpercentile(churn, [2.5, 97.5])))
        assert (row.instability_low, row.instability_high) == pytest.approx(tuple(np.nanpercentile(instability, [2.5, 97.5])))
        assert (row.n, row.images) == (own["n"].sum(), len(own))


def test_pooling_counts_all_moments_together():
    queries, targets = random_queries(6, steps=4), target_frame(random_truth(6))
    counts = image_counts(queries, targets=targets, by="label")
    for row in pooled_by(counts, "label", samples=5).itertuples():
        own = counts[counts["label"] == row.label]
        assert (row.churn, row.n) == (own["changed"].sum() / own["n"].sum(), own["n"].sum())
        assert row.instability_normalised == own["queries"].sum() / (2 * own["matches"].sum())


@given(seed=st.integers(0, 10_000), over=st.sampled_from(["step", "layer"]), selected=st.booleans())
@hypothesis_settings(max_examples=6)
def test_changes_and_histories_tell_who_held_each_target(seed: int, over: Over, selected: bool):
    queries = random_queries(seed, steps=4, layers=3, selected=selected)
    changes = target_changes(queries, over, layers="all")
    moments, others = ([10, 20, 30, 40], [0, 1, 2]) if over == "step" else ([0, 1, 2], [10, 20, 30, 40])
    fixed_name = "layer" if over == "step" else "step"
    histories: dict[tuple[int, int, int], list[Any]] = {}
    held, rows = holders(queries, over), 0
    by_key = {(getattr(r, over), getattr(r, fixed_name), r.image_id, r.target): r for r in changes.itertuples()}
    for fixed in others:
        for image in range(100, 104):
            answers = [held.get((moment, fixed, image), {}) for moment in moments]
            for number, now in enumerate(answers):
                for target, query in now.items():
                    rows += 1
                    row = by_key[moments[number], fixed, image, target]
                    known = number > 0 and target in answers[number - 1]
                    assert row.changed is pd.NA if not known else bool(row.changed) == (answers[number - 1][target] != query)
                    assert query == (("cell", row.source) if query[0] == "cell" else ("slot", row.query))
                    history = histories.setdefault((fixed, image, target), [0, 0, None, set(), moments[number]])
                    history[3].add(query)
                    history[0] += known
                    if known and answers[number - 1][target] != query:
                        history[1] += 1
                        history[2] = moments[number]
    assert rows == len(changes)
    found = target_histories(changes, over)
    assert found["changes"].is_monotonic_decreasing
    for row in found.itertuples():
        n, changed, last, queries, first = histories.pop((getattr(row, fixed_name), row.image_id, row.target))
        assert (row.n, row.changes, row.queries, row.first) == (n, changed, len(queries), first)
        assert row.last_change is pd.NA if last is None else row.last_change == last
    assert not histories
    assert found["share"].dropna().tolist() == pytest.approx((found["changes"] / found["n"]).dropna().tolist())


def test_nothing_matched_gives_empty_frames():
    nothing = random_queries(7).assign(match=-1)
    counts = image_counts(nothing)
    assert counts.empty and stability_by(counts).empty and pooled_by(counts).empty
    changes = target_changes(nothing)
    assert changes.empty and target_histories(changes).empty
    assert image_counts(nothing, targets=target_frame(random_truth(1)), by="label").empty


# one image of a family that selects queries, seen at two sizes: cells of step 10 are other places than those of later steps
_SEEN = [
    # step, slot, cell, target, box
    (10, 0, 5, 0, (0.2, 0.2, 0.2, 0.2)), (10, 1, 9, 1, (0.5, 0.5, 0.2, 0.2)), (10, 2, 2, 2, (0.8, 0.8, 0.2, 0.2)),
    (20, 2, 17, 0, (0.2, 0.21, 0.2, 0.2)), (20, 1, 9, 1, (0.5, 0.7, 0.2, 0.2)), (20, 0, 40, 2, (0.8, 0.8, 0.2, 0.2)),
    (30, 2, 17, 0, (0.2, 0.21, 0.2, 0.2)), (30, 1, 9, 1, (0.5, 0.7, 0.2, 0.2)),
]  # fmt: skip
SELECTED = pd.DataFrame(
    [(step, "student", 7, 1, slot, cell, target, *box) for step, slot, cell, target, box in _SEEN],
    columns=["step", "model", "image_id", "layer", "query", "source", "match", "cx", "cy", "w", "h"],
)
BY_HAND = pd.DataFrame({"image_id": 7, "target": [0, 1, 2], "label": [4, 5, 4]})


def test_by_box_a_query_in_another_cell_is_the_same_and_one_in_the_same_cell_elsewhere_is_not():
    def changed(identity: Any) -> dict[tuple[int, int], bool]:
        frame = target_changes(SELECTED, identity=identity).dropna(subset="changed")
        return {(row.step, row.target): bool(row.changed) for row in frame.itertuples()}

    later = {(30, 0): False, (30, 1): False}
    assert changed("box") == {(20, 0): False, (20, 1): True, (20, 2): False, **later}
    assert changed("source") == {(20, 0): True, (20, 1): False, (20, 2): True, **later}


@pytest.mark.parametrize(("identity", "wanted"), [
    # changed, n, queries that changed their target (two swapped it: one lost it, one got it), matches
    ("box", {(20, 4): (0, 2, 0, 2), (20, 5): (1, 1, 2, 1), (30, 4): (0, 1, 1, 1), (30, 5): (0, 1, 0, 1)}),
    ("source", {(20, 4): (2, 2, 4, 2), (20, 5): (0, 1, 0, 1), (30, 4): (0, 1, 1, 1), (30, 5): (0, 1, 0, 1)}),
])  # fmt: skip
def test_counts_by_class_take_the_identity_of_families_that_select_queries(identity: Any, wanted: dict[tuple[int, int], Any]):
    counts = image_counts(SELECTED, identity=identity, targets=BY_HAND, by="label")
    found = {(row.step, row.label): (row.changed, row.n, row.queries, row.matches) for row in counts.itertuples()}
    assert found == wanted
    churn = stability_by(counts, "label", samples=3).set_index(["step", "label"])["churn"]
    assert churn[20, 5] == (identity == "box") and churn[20, 4] == (identity == "source")


def test_histories_by_box_count_the_queries_between_changes():
    by = {identity: target_histories(target_changes(SELECTED, identity=identity), identity=identity).set_index("target")
          for identity in ("box", "source")}  # fmt: skip
    assert by["box"]["queries"].to_dict() == {0: 1, 1: 2, 2: 1} and by["source"]["queries"].to_dict() == {0: 2, 1: 1, 2: 2}
    assert by["box"]["last_change"].dropna().to_dict() == {1: 20}


def test_between_layers_a_query_is_its_slot_whatever_its_box_does():
    rows = pd.concat([SELECTED[SELECTED["step"] == 20].assign(layer=layer) for layer in (0, 1)])
    moved = rows.assign(cx=np.where(rows["layer"] == 1, 0.05, rows["cx"]))
    assert not target_changes(moved, "layer", identity="box")["changed"].fillna(False).any()
    assert image_counts(moved, "layer", identity="box")["queries"].tolist() == [0]
