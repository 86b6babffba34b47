"""Which run, split and evaluation is meant, and its data."""

import json
import os
import pickle

import pandas as pd
import pytest

from tests.analysis.query_examples import random_queries
from tests.analysis.run_examples import finished_run, write_queries
from workbench.analysis.of_run import (
    RunAt,
    RunData,
    all_evaluations,
    common_step,
    last_with_detections,
    last_with_queries,
    one_evaluation,
    open_data,
    splits_with_detections,
    splits_with_queries,
)
from workbench.errors import RunError
from workbench.store.run import Run


def test_the_data_of_a_run_is_opened_with_its_options_and_refused_when_its_classes_changed():
    data = {"path": "shapes", "format": "auto", "val": "test", "policy": {}, "options": {"test": 3}}
    info = {"recipe": {"data": data}, "classes": ["circle", "square", "triangle", "cross"]}
    assert (len(open_data(info)), open_data(info).split) == (3, "test")
    with pytest.raises(RunError, match="other classes"):
        open_data({**info, "classes": ["circle"]})


def test_an_evaluation_is_the_same_key_until_one_of_its_files_changes():
    run, queries = finished_run("keys")
    at, same = (one_evaluation(run, "val", 20) for _ in range(2))
    assert at == same and hash(at) == hash(same) and pickle.loads(pickle.dumps(at)) == at
    assert one_evaluation(run, "val", 10) != at and one_evaluation(run, "test", 20) != at
    assert at.run.path == run.path
    write_queries(run, queries[queries["step"] == 20].assign(score=0.25))
    os.utime(run.queries_path("val", 20), (1, 1))
    changed = one_evaluation(run, "val", 20)
    assert changed != at and one_evaluation(run, "val", 10).files != changed.files
    # the data is the same for all evaluations of a split, as long as run.json is
    assert changed.data == at.data == all_evaluations(run).data and type(at.data) is RunData
    run.info_path.write_text(json.dumps({**run.info(), "state": "failed", "error": "since then"}))
    assert one_evaluation(run, "val", 20).data != at.data


def test_all_evaluations_are_another_key_as_soon_as_one_is_added():
    run, _ = finished_run("growing")
    before = all_evaluations(run, "val")
    assert before == all_evaluations(run, "val") != all_evaluations(run, "test")
    write_queries(run, random_queries(3, steps=1).assign(step=40))
    assert all_evaluations(run, "val") != before
    assert all_evaluations(run, "test") == all_evaluations(run, "test")


def test_splits_are_those_of_which_something_was_kept_validation_first():
    run, _ = finished_run("several")
    write_queries(run, random_queries(4, steps=2), "test")
    assert list(splits_with_queries(run)) == ["val", "test"] and list(splits_with_detections(run)) == []
    for step in (30, 5):
        path = run.detections_path("test", step)
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame().to_parquet(path)
    assert list(splits_with_detections(run)) == ["test"] and run.detection_steps("test") == [5, 30]
    assert last_with_detections(run, "test").step == 30
    with pytest.raises(RunError, match="split 'val'"):
        last_with_detections(run)


def test_the_last_evaluation_is_meant_unless_one_is_named_and_one_that_is_not_there_is_an_error():
    run, _ = finished_run("last")
    assert isinstance(last_with_queries(run), RunAt) and last_with_queries(run).step == 30
    assert last_with_queries(run, "val", 10).step == 10
    with pytest.raises(RunError, match="keeps queries of the steps 10, 20, 30, not of 15"):
        last_with_queries(run, "val", 15)
    with pytest.raises(RunError, match="steps none"):
        last_with_queries(run, "test")


def test_two_runs_are_compared_at_the_last_step_that_both_have():
    run, _ = finished_run("one")
    other = Run.create("other", {})
    write_queries(other, random_queries(1, steps=2))
    assert (common_step(run, other, "val"), common_step(run, None, "val")) == (20, 30)
    with pytest.raises(RunError, match="no evaluation with queries of split 'test'"):
        common_step(run, other, "test")
    write_queries(run, random_queries(2, steps=1).assign(step=7), "test")
    with pytest.raises(RunError, match="in common"):
        common_step(run, other, "test")
