"""Frames kept in derived/: equal to a computation on the rows, made once, made anew when the rows change."""

from typing import get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.analysis.query_examples import random_queries
from tests.analysis.run_examples import finished_run, write_queries
from workbench.analysis import derived
from workbench.analysis.derived import Name, diagnosis_inputs, evaluation_hash, kept_frame, kept_json, match_frame
from workbench.analysis.stability.churn import Identity, agreement, churn_over_layers, churn_over_steps, mean_quality
from workbench.errors import WorkbenchError
from workbench.files import write_text
from workbench.store.detections import DETECTION_SCHEMA, write_detections
from workbench.store.queries import query_facts, query_writer
from workbench.store.query_schema import QUERY_SCHEMA
from workbench.store.run import Run


def test_each_frame_is_that_of_its_definition_on_all_rows():
    run, queries = finished_run("frames")
    wanted = {
        "churn_steps": churn_over_steps(queries), "churn_layers": churn_over_layers(queries),
        "teacher_churn_layers": churn_over_layers(queries, model="teacher"), "agreement": agreement(queries),
        "quality": mean_quality(queries, "student"), "teacher_quality": mean_quality(queries),
    }  # fmt: skip
    assert set(wanted) == set(get_args(Name))
    for name in get_args(Name):
        for _ in ("computed", "read back"):
            pd.testing.assert_frame_equal(match_frame(run, name), wanted[name], check_dtype=False)


def test_a_result_is_made_once(monkeypatch: pytest.MonkeyPatch):
    run, _ = finished_run("once")
    first = match_frame(run, "churn_steps")

    def refuse(*_: object, **__: object) -> pd.DataFrame:
        raise AssertionError("read again")

    monkeypatch.setattr(derived, "read_queries", refuse)
    pd.testing.assert_frame_equal(match_frame(run, "churn_steps"), first, check_dtype=False)
    with pytest.raises(AssertionError, match="read again"):
        match_frame(run, "agreement")


def test_a_new_evaluation_makes_it_anew_and_removes_the_old():
    run, queries = finished_run("grows")
    before = match_frame(run, "churn_steps")
    later = random_queries(99, steps=1).assign(step=40)
    write_queries(run, later)
    frame = match_frame(run, "churn_steps")
    assert len(frame) == len(before) + 1
    pd.testing.assert_frame_equal(frame, churn_over_steps(pd.concat([queries, later])), check_dtype=False)
    assert len(list((run.path / "derived").glob("churn_steps-*.parquet"))) == 1


def test_a_raised_definition_makes_it_anew(monkeypatch: pytest.MonkeyPatch):
    run, _ = finished_run("version")
    match_frame(run, "quality")
    old = list((run.path / "derived").glob("*.parquet"))
    monkeypatch.setattr(derived, "DEFINITIONS", 2)
    match_frame(run, "quality")
    assert len(old) == 1 and list((run.path / "derived").glob("*.parquet")) != old


def test_a_folder_that_cannot_be_written_still_gives_the_result(monkeypatch: pytest.MonkeyPatch):
    run, queries = finished_run("readonly")

    def full(*_: object) -> None:
        raise WorkbenchError("no space left")

    monkeypatch.setattr(derived, "replacing", full)
    pd.testing.assert_frame_equal(match_frame(run, "churn_steps"), churn_over_steps(queries), check_dtype=False)


@pytest.mark.parametrize(("inputs", "identity"), [(("one", "one"), "source"), (("one", "other"), "box")])
def test_where_inputs_differ_selected_queries_are_recognised_by_their_box(inputs: tuple[str, str], identity: Identity):
    run = Run.create("inputs", {})
    queries = random_queries(8, steps=2, selected=True)
    rng = np.random.default_rng(0)
    queries = queries.assign(**{name: 0.4 + 0.1 * rng.random(len(queries)) for name in ("cx", "cy", "w", "h")})
    for step, key in zip((10, 20), inputs, strict=True):
        own = queries[queries["step"] == step].drop(columns="step").reindex(columns=QUERY_SCHEMA.names)
        with query_writer(run, "val", step, facts=query_facts(4, False, key)) as writer:
            writer.write(pa.Table.from_pandas(own, QUERY_SCHEMA, preserve_index=False))
    wanted = churn_over_steps(queries, identity=identity)
    other: Identity = "box" if identity == "source" else "source"
    assert wanted.loc[1, "churn"] != churn_over_steps(queries, identity=other).loc[1, "churn"]
    pd.testing.assert_frame_equal(match_frame(run, "churn_steps"), wanted, check_dtype=False)


def test_a_run_without_queries_gives_an_empty_frame():
    run = Run.create("bare", {})
    assert all(match_frame(run, name).empty for name in get_args(Name))


def test_a_kept_frame_or_value_is_made_again_only_when_its_inputs_change_and_leaves_other_names_alone():
    run, made = Run.create("kept", {}), []

    def make() -> pd.DataFrame:
        made.append(len(made))
        return pd.DataFrame({"n": [len(made)], "error": ["missed"]})

    for inputs, times in ((["a", 1], 1), (["a", 1], 1), (["b", 1], 2), (["a", 1], 3)):
        assert kept_frame(run, "errors-val-1", inputs, make)["n"].tolist() == [times] and len(made) == times
    assert kept_frame(run, "errors-val-10", ["a"], make)["n"].tolist() == [4]
    assert kept_json(run, "errors-val-1", ["a"], lambda: {"n": 5}) == kept_json(run, "errors-val-1", ["a"], dict) == {"n": 5}
    assert kept_frame(run, "errors-val-1", ["a", 1], make)["n"].tolist() == [3]
    assert len([path for path in (run.path / "derived").iterdir() if path.suffix != ".sha256"]) == 3


def test_what_an_evaluation_or_a_diagnosis_is_made_of_changes_with_any_of_its_files():
    run, queries = finished_run("files")
    step = int(queries["step"].max())
    seen = [(evaluation_hash(run, "val", step), diagnosis_inputs(run, "val"))]
    changes = [
        lambda: write_detections(run, "val", step, pa.table({field.name: pa.array([], field.type) for field in DETECTION_SCHEMA})),
        lambda: write_queries(run, queries[queries["step"] == step].assign(score=0.5)),
    ]
    for change in changes:
        change()
        assert evaluation_hash(run, "val", step) not in [one for one, _ in seen]
        seen.append((evaluation_hash(run, "val", step), diagnosis_inputs(run, "val")))
    assert seen[2][1] != seen[1][1]
    run.metrics_path.write_text('{"step": 1}\n')
    assert diagnosis_inputs(run, "val") != seen[2][1]
    write_text(run.derived_path("teacher-readings", "0" * 16, "json"), "{}")
    assert diagnosis_inputs(run, "val") not in [inputs for _, inputs in seen]
