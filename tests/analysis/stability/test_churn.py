"""Churn, instability and agreement against loops that follow the definitions word by word."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.analysis.query_examples import random_queries
from workbench.analysis.stability.churn import agreement, churn_over_layers, churn_over_steps, mean_quality, pooled

Assignment = dict[Any, int]  # identity of a query -> target index or -1


def assignments(rows: pd.DataFrame, by_source: bool) -> dict[int, Assignment]:
    """Per image what every query of one moment is matched to."""
    found: dict[int, Assignment] = {}
    for row in rows.itertuples():
        identity = ("cell", row.source) if by_source and row.source >= 0 else ("slot", row.query)
        found.setdefault(row.image_id, {})[identity] = row.match
    return found


def compare(before: dict[int, Assignment], now: dict[int, Assignment]) -> dict[str, float]:
    """The definitions: churn over targets, IS over queries, images without targets left out."""
    changed_targets = targets_at_both = changed_queries = images = most = 0
    for image, old in before.items():
        new = now[image]
        if not any(target >= 0 for target in old.values()):
            continue
        images += 1
        holder_before = {target: query for query, target in old.items() if target >= 0}
        holder_now = {target: query for query, target in new.items() if target >= 0}
        for target in holder_before.keys() & holder_now.keys():
            targets_at_both += 1
            changed_targets += holder_before[target] != holder_now[target]
        changed_queries += sum(old.get(query, -1) != new.get(query, -1) for query in old.keys() | new.keys())
        most += 2 * len(holder_now)
    return {
        "churn": changed_targets / targets_at_both, "n": targets_at_both, "instability": changed_queries / images,
        "instability_normalised": changed_queries / most, "images": images, "matches": most / 2,
    }  # fmt: skip


def check(found: pd.Series, wanted: dict[str, float]) -> None:
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value), name


@given(seed=st.integers(0, 10_000), selected=st.booleans())
@hypothesis_settings(max_examples=25)
def test_churn_and_instability_between_evaluations_are_those_of_the_definitions(seed: int, selected: bool):
    queries = random_queries(seed, selected=selected)
    frame = churn_over_steps(queries, layers="all")
    assert list(zip(frame["step"], frame["layer"], strict=True)) == [(step, layer) for step in (10, 20, 30) for layer in (0, 1)]
    for _, found in frame[frame["step"] > 10].iterrows():
        rows = queries[queries["layer"] == found["layer"]]
        moments = [assignments(rows[rows["step"] == step], by_source=True) for step in (found["previous"], found["step"])]
        assert found["previous"] == found["step"] - 10
        check(found, compare(*moments))


@given(seed=st.integers(0, 10_000), selected=st.booleans())
@hypothesis_settings(max_examples=25)
def test_churn_and_instability_between_layers_are_those_of_the_definitions(seed: int, selected: bool):
    queries = random_queries(seed, steps=2, layers=3, selected=selected)
    for _, found in churn_over_layers(queries).query("layer > 0").iterrows():
        rows = queries[queries["step"] == found["step"]]
        moments = [assignments(rows[rows["layer"] == layer], by_source=False) for layer in (found["layer"] - 1, found["layer"])]
        assert found["previous"] == found["layer"] - 1
        check(found, compare(*moments))


def test_the_first_moment_is_null_and_counts_nothing():
    queries = random_queries(1)
    for frame, first in ((churn_over_steps(queries), "step == 10"), (churn_over_layers(queries), "layer == 0")):
        rows = frame.query(first)
        assert len(rows) and rows[["previous", "churn", "instability", "instability_normalised"]].isna().all(axis=None)
        assert (rows[["n", "images", "matches"]] == 0).all(axis=None)
        assert frame.drop(rows.index).notna().all(axis=None)


def test_the_last_layer_is_meant_unless_all_are_asked_for():
    queries = random_queries(2, layers=3)
    last = churn_over_steps(queries)
    everything = churn_over_steps(queries, layers="all")
    pd.testing.assert_frame_equal(last, everything[everything["layer"] == 2].reset_index(drop=True))


def test_an_unchanged_matching_has_neither_churn_nor_instability():
    one = random_queries(3, steps=1)
    frame = churn_over_steps(pd.concat([one, one.assign(step=50), one.assign(step=90)]))
    assert (frame.loc[1:, ["churn", "instability", "instability_normalised"]] == 0).all(axis=None) and (frame.loc[1:, "n"] > 0).all()


def test_when_every_target_moves_to_an_unmatched_query_everything_is_one():
    same = {"step": 5, "model": "student", "image_id": 1, "layer": 0, "source": -1}
    first = pd.DataFrame({**same, "query": range(4), "match": [0, 1, -1, -1]})
    frame = churn_over_steps(pd.concat([first, first.assign(step=9, match=[-1, -1, 0, 1])]))
    assert frame.loc[1, ["churn", "n", "instability", "instability_normalised", "images"]].tolist() == [1, 2, 4, 1, 1]


def test_queries_selected_per_image_are_recognised_by_their_encoder_cell_between_steps_and_by_slot_between_layers():
    first = random_queries(4, steps=1, layers=2, selected=True)
    order = np.array([3, 1, 4, 0, 2])
    reranked = first.assign(step=50, query=order[first["query"]])
    frame = churn_over_steps(pd.concat([first, reranked]))
    assert frame.loc[1, "churn"] == 0 and frame.loc[1, "instability"] == 0
    learned = churn_over_steps(pd.concat([first, reranked]).assign(source=-1))
    assert learned.loc[1, "churn"] > 0
    pd.testing.assert_frame_equal(churn_over_layers(first), churn_over_layers(first.assign(source=-1)))


def test_only_images_looked_at_at_both_steps_count():
    queries = random_queries(5, steps=2)
    fewer = queries[(queries["step"] == 10) | (queries["image_id"] != 102)]
    without = queries[queries["image_id"] != 102]
    pd.testing.assert_frame_equal(churn_over_steps(fewer), churn_over_steps(without))


def test_rows_without_any_match_may_be_left_out_beforehand():
    queries = random_queries(6, teacher_layers=4)
    matched = queries[queries["match"] >= 0]
    pd.testing.assert_frame_equal(churn_over_steps(queries), churn_over_steps(matched))
    pd.testing.assert_frame_equal(churn_over_layers(queries), churn_over_layers(matched))
    pd.testing.assert_frame_equal(agreement(queries), agreement(matched))


def test_a_run_without_any_target_gives_empty_frames():
    nothing = random_queries(7).assign(match=-1)
    assert churn_over_steps(nothing).empty and churn_over_layers(nothing).empty and agreement(nothing).empty
    assert pooled(churn_over_steps(nothing)) == {
        "churn": None,
        "n": 0,
        "instability": None,
        "instability_normalised": None,
        "images": 0,
        "matches": 0,
    }


def test_pooling_counts_targets_and_images_of_all_moments_together():
    queries = random_queries(8, steps=4)
    result = pooled(churn_over_steps(queries))
    rows = queries[queries["layer"] == 1]
    parts = [compare(*(assignments(rows[rows["step"] == step], True) for step in (a, a + 10))) for a in (10, 20, 30)]
    n, images, matches = (sum(part[name] for part in parts) for name in ("n", "images", "matches"))
    assert (result["n"], result["images"], result["matches"]) == (n, images, matches)
    assert result["churn"] == pytest.approx(sum(part["churn"] * part["n"] for part in parts) / n)
    changed = sum(part["instability"] * part["images"] for part in parts)
    assert (result["instability"], result["instability_normalised"]) == pytest.approx((changed / images, changed / (2 * matches)))


@given(seed=st.integers(0, 10_000))
@hypothesis_settings(max_examples=25)
def test_agreement_is_the_share_of_targets_whose_two_queries_are_mates(seed: int):
    queries = random_queries(seed, teacher_layers=4)
    student, teacher = queries[queries["model"] == "student"], queries[queries["model"] == "teacher"]
    wanted = {}
    for row in student[student["match"] >= 0].itertuples():
        other = teacher[(teacher["image_id"] == row.image_id) & (teacher["layer"] == row.mate_layer) & (teacher["match"] == row.match)]
        for holder in other["query"]:
            wanted.setdefault((row.step, row.layer), []).append(holder == row.mate)
    found = {(row.step, row.layer): (row.agreement, row.n) for row in agreement(queries).itertuples()}
    assert found == {key: (pytest.approx(np.mean(values)), len(values)) for key, values in wanted.items()}


def test_mean_quality_is_over_matched_queries():
    queries = random_queries(9, teacher_layers=2)
    frame = mean_quality(queries)
    for row in frame.itertuples():
        values = [r.quality for r in queries.itertuples() if r.model == "teacher" and r.layer == row.layer and r.match >= 0]
        assert row.quality == pytest.approx(math.fsum(values) / len(values)) and row.n == len(values) and row.step == -1
    assert len(frame) == 2
