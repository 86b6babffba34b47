"""Which rows, layer and evaluation of a run are meant, against a filter over all rows of its table."""

from typing import Any

import pandas as pd
import pytest

from tests.analysis.query_examples import random_queries
from tests.analysis.run_examples import finished_run, write_queries
from workbench.analysis.rows_of_run import (
    common_identity,
    found_by_identity,
    image_rows,
    in_last_layer,
    last_layer,
    layers,
    matched_rows,
    paired_layer,
    student_over_steps,
)
from workbench.errors import RunError
from workbench.store.queries import TEACHER_STEP, query_facts, query_writer, read_queries
from workbench.store.query_schema import QUERY_SCHEMA
from workbench.store.run import Run

KEYS = ["step", "model", "image_id", "layer", "query", "match"]


def same(found: pd.DataFrame, wanted: pd.DataFrame) -> bool:
    """Whether both hold the same rows, in any order."""
    ordered = [frame[KEYS].sort_values(KEYS, ignore_index=True) for frame in (found, wanted)]
    return ordered[0].equals(ordered[1]) and len(wanted) > 0


def test_the_last_layer_of_each_model_is_its_deepest():
    run, _ = finished_run("deepest")
    everything = read_queries(run, "val")
    for model, step, depth in (("student", 20, 1), ("teacher", TEACHER_STEP, 3)):
        own = everything[(everything["model"] == model) & (everything["step"] == step)]
        assert layers(run, "val", 20, model) == sorted(own["layer"].unique()) == list(range(depth + 1))
        assert same(last_layer(run, "val", 20, model, KEYS), own[own["layer"] == depth])
        matched = last_layer(run, "val", 20, model, KEYS, matched=True)
        assert same(matched, own[(own["layer"] == depth) & (own["match"] >= 0)])
        assert same(in_last_layer(own), own[own["layer"] == depth])


def test_without_a_teacher_its_rows_are_none_and_a_student_that_was_not_recorded_is_an_error():
    run, _ = finished_run("alone", teacher=None)
    assert layers(run, "val", 20, "teacher") == []
    assert last_layer(run, "val", 20, "teacher", KEYS).columns.tolist() == KEYS
    assert last_layer(run, "val", 20, "teacher", KEYS).empty and image_rows(run, "val", [20], 101)[1].empty
    with pytest.raises(RunError, match="at step 25"):
        last_layer(run, "val", 25)
    with pytest.raises(RunError, match="split 'test'"):
        last_layer(run, "test", 20)


def test_rows_are_of_the_split_that_is_asked_for():
    run, _ = finished_run("splits")
    write_queries(run, random_queries(5, steps=2, layers=3), "test")
    everything = read_queries(run, "test")
    assert layers(run, "test", 20) == [0, 1, 2] and layers(run, "val", 20) == [0, 1]
    rows, identity = student_over_steps(run, "test", layer=2, until=10)
    assert identity == "source"
    wanted = everything[(everything["layer"] == 2) & (everything["step"] == 10) & (everything["match"] >= 0)]
    assert same(rows, wanted)
    assert same(student_over_steps(run, "test")[0], everything[everything["match"] >= 0])


def test_matched_rows_are_of_all_models_at_one_evaluation_or_all():
    run, _ = finished_run("matched")
    everything = read_queries(run, "val")
    matched = everything[everything["match"] >= 0]
    assert same(matched_rows(run, "val", KEYS), matched)
    assert same(matched_rows(run, "val", KEYS, 30), matched[matched["step"].isin([TEACHER_STEP, 30])])


def test_the_teachers_layer_is_the_one_that_the_mates_of_the_students_layer_are_in():
    run, _ = finished_run("paired")
    student, teacher = image_rows(run, "val", [10], 102)
    for layer in (0, 1, None):
        own, mates = paired_layer(student, teacher, layer)
        assert own["layer"].unique().tolist() == [1 if layer is None else layer]
        assert mates["layer"].unique().tolist() == own["mate_layer"].unique().tolist() == [2 * own["layer"].iloc[0] + 1]


def test_runs_are_compared_by_box_where_one_of_them_needs_it(monkeypatch: pytest.MonkeyPatch):
    runs = [Run.create(name, {}) for name in ("cells", "boxes")]
    rows = pd.DataFrame({"source": [3]})
    monkeypatch.setattr("workbench.analysis.rows_of_run._inputs_differ", lambda run, split: run.name == "boxes")
    assert common_identity([(runs[0], rows)], "val") == "source"
    assert common_identity([(run, rows) for run in runs], "val") == "box"


@pytest.mark.parametrize(
    ("facts", "source", "same", "other"),
    [
        ({}, -1, "query", "query"), ({}, 5, "source", "box"),
        ({"assignment": "many", "grid": {"strides": [8]}}, -1, "query", "box"), ({"assignment": "many"}, -1, "box", "box"),
    ],
    ids=["learned queries", "selected queries", "dense", "two-stage"],
)  # fmt: skip
def test_a_candidate_is_known_by_what_stays_the_same_place(facts: dict[str, Any], source: int, same: str, other: str):
    found = pd.DataFrame({"source": [source]})
    for name, inputs, wanted in (("same", ("a", "a"), same), ("other", ("a", "b"), other)):
        run = Run.create(name, {})
        for step, key in zip((10, 20), inputs, strict=True):
            with query_writer(run, "val", step, facts=query_facts(1, False, key, **facts)) as writer:
                writer.write(QUERY_SCHEMA.empty_table())
        assert found_by_identity(run, "val", found) == wanted


def test_without_pairs_the_teachers_last_layer_stands_beside_the_students():
    run, _ = finished_run("unpaired")
    student, teacher = image_rows(run, "val", [10], 102)
    own, beside = paired_layer(student.assign(mate_layer=None), teacher, 0)
    assert own["layer"].unique().tolist() == [0] and beside["layer"].unique().tolist() == [3]
