"""The summary of runs says what their files say, and None for what they do not."""

import json

import pandas as pd
import pytest

from tests.analysis.run_examples import finished_run, line, write_lines
from workbench.analysis.report.summary import TEACHER, summarise, summarise_teacher, table
from workbench.analysis.stability.churn import agreement, churn_over_layers, churn_over_steps, mean_quality, pooled
from workbench.store.run import Run


def test_a_finished_run_is_summarised_from_its_files():
    run, queries = finished_run("whole", seed=3)
    row = summarise(run)
    assert {key: row[key] for key in ("run", "recipe", "arm", "seed", "schedule", "state", "commit", "steps", "split", "step")} == {
        "run": "whole", "recipe": "demo", "arm": "distilled", "seed": 3, "schedule": "equal steps", "state": "done", "commit": "abc",
        "steps": 30, "split": "test", "step": 30,
    }  # fmt: skip
    assert (row["ap"], row["ap50"], row["ap75"], row["ap_small"]) == pytest.approx((0.4, 0.6, 0.3, None))
    assert row["per_class"] == {"a|b": 0.5, "<i>c": None}
    assert (row["parameters"], row["flops"], row["ms_per_image"]) == (120_000, 40_000_000, 5.25)
    assert (row["compute_seconds"], row["compute_kind"]) == (100.5, "cpu")
    steps = pooled(churn_over_steps(queries))
    layers = pooled(churn_over_layers(queries, step=30))
    for prefix, wanted in (("", steps), ("layers_", layers)):
        assert row[f"{prefix}churn"] == pytest.approx(wanted["churn"]) and row[f"{prefix}churn_n"] == wanted["n"] > 0
        assert row[f"{prefix}instability"] == pytest.approx(wanted["instability"])
        assert row[f"{prefix}instability_normalised"] == pytest.approx(wanted["instability_normalised"])
    assert row["churn_spacing"] == 10
    last = agreement(queries).query("step == 30 and layer == 1").iloc[0]
    assert (row["agreement"], row["agreement_n"]) == (pytest.approx(last["agreement"]), last["n"])
    own = mean_quality(queries, "student").query("step == 30 and layer == 1").iloc[0]
    assert (row["quality"], row["quality_n"]) == (pytest.approx(own["quality"]), own["n"])


def test_a_run_that_has_just_begun_has_none_for_everything_it_lacks():
    row = summarise(Run.create("begun", {"state": "created"}))
    assert row.pop("run") == "begun" and row.pop("state") == "created" and row.pop("per_class") == {}
    assert set(row.values()) == {None}


def test_without_a_test_the_chosen_step_stands_for_the_run_and_without_a_choice_the_last():
    run, queries = finished_run("untested")
    write_lines(run, "evaluations.jsonl", [line(10, "val", 0.1), line(20, "val", 0.5), line(30, "val", 0.45)])
    assert (summarise(run)["step"], summarise(run)["ap"], summarise(run)["split"]) == (30, 0.45, "val")
    run.update_info(best_step=20)
    row = summarise(run)
    assert (row["step"], row["ap"]) == (20, 0.5)
    assert row["layers_churn"] == pytest.approx(pooled(churn_over_layers(queries, step=20))["churn"])


def test_on_a_gpu_compute_is_the_time_of_the_device():
    run, _ = finished_run("gpu", device="cuda:0")
    assert (summarise(run)["compute_seconds"], summarise(run)["compute_kind"]) == (130.0, "wall")


def test_unequal_spacing_of_evaluations_is_not_given_as_one_number():
    run, queries = finished_run("uneven")
    for path in run.queries_path("val", 20).iterdir():
        path.unlink()
    assert summarise(run)["churn_spacing"] == 20
    assert summarise(run)["churn"] == pytest.approx(pooled(churn_over_steps(queries[queries["step"] != 20]))["churn"])


def test_the_teacher_is_summarised_from_what_the_run_measured_of_it():
    run, queries = finished_run("taught")
    row = summarise_teacher(run)
    assert row is not None and row.keys() == summarise(run).keys()
    assert (row["run"], row["arm"], row["ap"], row["parameters"], row["split"]) == ("big", TEACHER, 0.6, 500_000, "test")
    wanted = mean_quality(queries).query("layer == 3").iloc[0]
    assert (row["quality"], row["quality_n"]) == (pytest.approx(wanted["quality"]), wanted["n"])
    assert row["layers_churn"] == pytest.approx(pooled(churn_over_layers(queries, model="teacher"))["churn"])
    assert row["churn"] is row["agreement"] is row["compute_seconds"] is row["seed"] is None
    assert summarise_teacher(finished_run("alone", teacher=None)[0]) is None


def test_the_table_has_a_row_per_run_a_row_per_teacher_and_a_column_per_class():
    one, other = finished_run("one", seed=1)[0], finished_run("other", seed=2)[0]
    untested = finished_run("untested")[0]
    write_lines(untested, "evaluations.jsonl", [])
    alone = finished_run("alone", seed=1, arm="undistilled", teacher=None)[0]
    frame = table([untested, one, other, alone], with_teacher=True)
    assert frame["run"].tolist() == ["big", "untested", "one", "other", "alone"]
    assert frame["arm"].tolist() == [TEACHER, "distilled", "distilled", "distilled", "undistilled"]
    assert frame["ap"].tolist() == [0.6, None, 0.4, 0.4, 0.4] and frame["ap a|b"].tolist() == [0.7, None, 0.5, 0.5, 0.5]
    assert frame["seed"].tolist() == [None, 0, 1, 2, 1] and "per_class" not in frame
    assert frame["targets a|b"].tolist() == [5, None, 5, 5, 5]
    assert frame["agreement"].tolist()[-1] is None
    assert table([one])["run"].tolist() == ["one"]


def test_the_table_can_be_written_as_json():
    frame = table([finished_run("json")[0], Run.create("empty", {})], with_teacher=True)
    json.dumps(frame.to_dict("records"), allow_nan=False)
    assert len(json.loads(frame.to_json(orient="records"))) == 3


def test_a_table_of_no_runs_is_empty():
    assert isinstance(table([]), pd.DataFrame) and table([]).empty
