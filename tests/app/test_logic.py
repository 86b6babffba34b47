"""What the pages decide, run without a browser."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from tests.app.example_runs import change_info
from tests.conftest import ROOT
from tests.flows import command
from tests.patience import patience
from tests.store.test_jobs import make_job
from workbench.analysis.report.answer import answer, first_cause
from workbench.analysis.report.summary import table
from workbench.analysis.results.of_runs import Results
from workbench.remote import as_path
from workbench.store.changes import archive, keep_set, pin_baseline, tag
from workbench.store.jobs import working
from workbench.store.queries import read_queries
from workbench.store.run import Run
from workbench.store.sets import Sets, read_sets
from workbench.views.answers import answers_text

SCREENS = ROOT / "app" / "screens"
FILES = {"errors": "error_types", "storage": "caches_and_runs"}  # of pages whose address is another


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, runs_root: Path):
    """Runs one page on a folder of runs."""
    monkeypatch.syspath_prepend(str(ROOT / "app"))

    def run(name: str, root: Path = runs_root, **address) -> AppTest:
        monkeypatch.setenv("WORKBENCH_RUNS", str(root))
        test = AppTest.from_file(str(SCREENS / f"{FILES.get(name, name)}.py"), default_timeout=patience(60))
        for key, value in address.items():
            test.query_params[key] = value
        return test.run()

    return run


def copied(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder))


def test_a_comparison_is_chosen_at_first_and_written_into_the_address(page, runs_root: Path, tmp_path: Path):
    root = copied(runs_root, tmp_path / "copy")
    shutil.rmtree(root / "tiny-teacher")
    test = page("overview", root)
    assert not test.exception
    assert test.multiselect[0].value == ["undistilled", "distilled"]
    assert test.query_params["run"] == ["undistilled", "distilled"]


def test_the_run_whose_terms_are_drawn_is_part_of_the_address(page):
    test = page("training", run="distilled")
    assert test.selectbox[0].value == "distilled"
    test.selectbox[0].set_value("undistilled").run()
    assert test.query_params["run"] == "undistilled"


def test_the_undistilled_run_lies_beside_the_distilled_one_and_what_lies_beside_is_part_of_the_address(page):
    test = page("training", run="distilled")
    assert not test.exception
    assert test.query_params["beside"] in ("undistilled", ["undistilled"])
    test.multiselect[0].set_value([]).run()
    assert not test.exception and "beside" not in test.query_params
    test.selectbox[1].set_value(10).run()
    assert test.query_params["smoothing"] == "10"
    other = page("training", run="undistilled", beside="tiny-teacher", smoothing="5")
    assert other.query_params["beside"] in ("tiny-teacher", ["tiny-teacher"]) and other.query_params["smoothing"] == "5"


def test_a_pinned_baseline_is_that_of_every_page_and_a_saved_set_has_an_address(page, runs_root: Path, tmp_path: Path):
    root = copied(runs_root, tmp_path / "copy")
    shutil.copytree(root / "undistilled", root / "again")
    change_info(root / "again", created="2020-01-01")
    assert page("diagnosis", root, run="distilled").query_params["baseline"] == "undistilled"
    plain = page("overview", root, run="distilled").dataframe[0].value.set_index("run")
    pin_baseline(root, "again")
    keep_set(root, "mine", ["distilled", "again", "gone"])
    for name in ("diagnosis", "errors", "value"):
        test = page(name, root, run="distilled")
        assert not test.exception
        assert test.query_params["baseline"] == "again"
    overview = page("overview", root, set="mine")
    assert not overview.exception
    assert sorted(overview.query_params["run"]) == ["again", "distilled"]
    shown = overview.dataframe[0].value.set_index("run")
    # the pinned run is a copy of the undistilled one
    assert shown.loc["distilled", "difference"] == plain.loc["distilled", "difference"]


def test_an_archived_run_is_in_no_list_but_a_link_to_it_opens(page, runs_root: Path, tmp_path: Path):
    root = copied(runs_root, tmp_path / "copy")
    archive([Run(root / "undistilled")])
    test = page("training", root)
    assert "undistilled" not in test.selectbox[0].options and "undistilled" not in test.multiselect[0].options
    assert page("training", root, run="undistilled").selectbox[0].value == "undistilled"
    listed = page("runs", root)
    assert listed.dataframe[0].value["run"].tolist() == ["distilled", "tiny-teacher"]
    assert page("runs", root, archived="True").dataframe[0].value["run"].tolist() == ["undistilled"]


def test_the_address_of_the_page_of_runs_holds_search_filters_order_and_groups(page, runs_root: Path, tmp_path: Path):
    root = copied(runs_root, tmp_path / "copy")
    tag([Run(root / "distilled")], add=["paper"])
    test = page("runs", root, words="SHAPES", arm="undistilled", order="newest")
    assert not test.exception
    assert set(test.dataframe[0].value["arm"]) == {"undistilled"} and "undistilled" in set(test.dataframe[0].value["run"])
    assert test.query_params["arm"] in ("undistilled", ["undistilled"]) and test.query_params["order"] == "newest"
    tagged = page("runs", root, tag="paper")
    assert tagged.dataframe[0].value["run"].tolist() == ["distilled"]
    groups = page("runs", root, group="arm").dataframe[0].value.set_index("arm")
    ends = {run.name: run.evaluations()[-1]["coco"]["ap"] for run in (Run(root / "distilled"), Run(root / "undistilled"))}
    assert groups.loc["distilled", "ap"] == pytest.approx(100 * ends["distilled"])
    assert not page("runs", root, words="nothing of the kind", order="?", group="<b>", since="yesterday").exception


def test_what_was_done_last_is_said_and_undone(page, runs_root: Path, tmp_path: Path):
    root = copied(runs_root, tmp_path / "copy")
    test = page("runs", root)
    test.session_state["picked"] = ["distilled"]
    test.run()
    next(button for button in test.button if button.key == "delete").click().run()
    assert not test.exception and not (root / "distilled").exists()
    assert any(text.value == "Moved distilled to the trash." for text in test.text)
    next(button for button in test.button if button.key == "undo").click().run()
    assert (root / "distilled" / "run.json").is_file()
    assert read_sets(root) == Sets()


def test_the_overview_opens_with_the_answer_and_offers_it_as_text(page, runs_root: Path):
    test = page("overview")
    assert not test.exception
    assert test.query_params["run"] == ["undistilled", "distilled"]
    runs = [Run(runs_root / name) for name in ("undistilled", "distilled")]
    (found,) = answer(runs, Results(), first_cause(runs, Results()))
    (text,) = [block.value for block in test.code]
    assert text == answers_text([found], ["undistilled", "distilled"]) and found.sentence() in text
    assert "1 of the 5 seeds that a statement about the method needs" in text
    alone = page("overview", run="undistilled")
    assert not alone.exception and not alone.code


def test_all_columns_of_the_table_say_how_many_targets_are_behind_a_number(page, runs_root: Path):
    test = page("overview", columns="all")
    shown = test.dataframe[0].value.set_index("run")
    runs = [Run(runs_root / name) for name in ("undistilled", "distilled")]
    for run, numbers in zip(runs, table(runs).to_dict("records"), strict=True):
        assert shown.loc[run.name, "churn_n"] == numbers["churn_n"] > 0


@pytest.mark.parametrize("name", ["diagnosis", "errors", "image", "masks", "stability", "training", "value"])
def test_a_page_opens_on_the_distilled_run_though_a_lone_teacher_is_newer(page, name: str):
    assert page(name).query_params["run"] == "distilled"


@pytest.mark.parametrize("name", ["evaluations.jsonl", "metrics.jsonl", "timings.jsonl"])
def test_lines_that_lack_what_they_are_for_are_a_banner_and_no_traceback(page, runs_root: Path, tmp_path: Path, name: str):
    root = copied(runs_root, tmp_path / "copy")
    (root / "distilled" / name).write_text('{"step": 10}\n[1, 2]\n')
    for where in ("overview", "training"):
        test = page(where, root)
        assert not test.exception
        assert [warning.value for warning in test.warning] == ["A run cannot be shown"]
        assert any("distilled" in text.value and name in text.value for text in test.text)


def test_a_damaged_query_table_is_a_banner_and_the_rest_of_the_page_is_drawn(page, runs_root: Path, tmp_path: Path):
    root = copied(runs_root, tmp_path / "copy")
    for file in (root / "distilled").rglob("*.parquet"):
        file.write_bytes(b"PAR1 and then nothing of the kind")
    for where in ("overview", "image"):
        test = page(where, root, run="distilled")
        assert not test.exception
        assert test.error


@pytest.mark.parametrize("name", ["diagnosis", "errors", "image", "masks", "stability", "storage", "training", "value"])
def test_every_page_draws_a_real_run_and_a_run_without_its_analysed_files(page, runs_root: Path, tmp_path: Path, name: str):
    test = page(name, run="distilled")
    assert not test.exception
    assert not test.error
    if name != "storage":
        assert test.query_params["run"] == "distilled"
    root = copied(runs_root, tmp_path / "copy")
    for folder in ("queries", "detections", "states", "derived"):
        shutil.rmtree(root / "distilled" / folder, ignore_errors=True)
    bare = page(name, root, run="distilled")
    assert not bare.exception


def test_errors_and_values_of_a_run_are_seen_against_the_undistilled_one(page):
    for name in ("errors", "value", "diagnosis"):
        assert page(name, run="distilled").query_params["baseline"] == "undistilled"
        alone = page(name, run="distilled", baseline="no baseline")
        assert not alone.exception
        assert alone.query_params["baseline"] == "no baseline"


def test_a_link_to_a_slot_an_error_or_a_query_opens_it(page):
    value = page("value", run="distilled", query="3", property="score", box="0,1,-1,1", slots="quality")
    assert (value.query_params["query"], value.query_params["property"], value.query_params["box"]) == ("3", "score", "0,1,-1,1")
    errors = page("errors", run="distilled", error="missed", step="20")
    assert (errors.query_params["error"], errors.query_params["step"]) == ("missed", "20")
    masks = page("masks", run="distilled", query="2", image="3", mask_layer="0")
    assert [masks.query_params[key] for key in ("query", "image", "mask_layer", "drawn")] == ["2", "3", "0", "student's, by number"]
    nonsense = page("value", run="distilled", query="<b>", property="?", box="a,b")
    assert not nonsense.exception


def test_a_query_in_the_address_is_the_same_query_of_the_student_on_every_page_and_a_rank_is_none(page, runs_root: Path):
    value = page("value", run="distilled", query="3")
    following = AppTest.from_file(str(SCREENS / "masks.py"), default_timeout=patience(60))
    following.session_state["chosen"] = value.session_state["chosen"]
    following.query_params["query"] = value.query_params["query"]
    masks = following.run()
    assert not masks.exception
    rows = read_queries(Run(runs_root / "distilled"), "val", [30], where="image_id = 1 and model = 'student' and layer = 1 and query = 3")
    named = next(box for box in masks.selectbox if box.key == "query")
    assert named.value == 3
    assert named.label == "Student's query in the layer that learns from 3"
    said = f"score {rows['score'].item():.2f}, quality {rows['quality'].item():.2f}"
    assert any(option.startswith("query 3 (rank ") and option.endswith(said) for option in named.options)
    ranked = page("masks", run="distilled", rank="1")
    assert ranked.query_params["drawn"] == "teacher's, by rank" and "query" not in ranked.query_params


def test_a_run_chosen_on_one_page_is_chosen_on_the_next(page):
    first = page("training", run="undistilled")
    chosen = first.session_state["chosen"]
    following = AppTest.from_file(str(SCREENS / "image.py"), default_timeout=patience(60))
    following.session_state["chosen"] = chosen
    assert following.run().selectbox[0].value == "undistilled"


def test_runs_that_are_damaged_or_stopped_are_listed_with_what_is_wrong(page, runs_root: Path, tmp_path: Path):
    root = copied(runs_root, tmp_path / "copy")
    (root / "distilled" / "run.json").write_text("{")
    test = page("storage", root)
    assert not test.exception
    table = test.dataframe[0].value.set_index("run")
    assert "not valid JSON" in table.loc["distilled", "health"]
    assert table.loc["undistilled", "health"] == "good"
    files = [file for file in (root / "undistilled").rglob("*") if file.is_file()]
    assert table.loc["undistilled", "size"] == pytest.approx(sum(file.stat().st_size for file in files) / 1e6)


def test_jobs_that_are_not_done_are_shown_with_their_stages(page, runs_root: Path, tmp_path: Path):
    root = copied(runs_root, tmp_path / "place" / "runs")
    folder = make_job(root.parent / "distilled", "cells", runs={"teacher": None, "students": ["undistilled", "elsewhere"]})
    make_job(root.parent / "distilled", "over", stage="done")
    with working(folder):
        (text,) = [bar.proto.text for bar in page("storage", root).get("progress")]
    assert text == "teacher and cache done, students 50 %, answer to come; about 80 s left."
    (text,) = [bar.proto.text for bar in page("storage", root).get("progress")]
    assert "It was stopped; the command that began it goes on." in text


def test_runs_at_a_remote_address_are_shown_like_those_on_disk(page, runs_root: Path):
    fsspec.filesystem("memory").put(f"{runs_root}/", "/dashboard/runs", recursive=True)
    root = as_path("memory://dashboard/runs")
    local, remote = (page("overview", where, run="distilled").dataframe[0].value for where in (runs_root, root))
    assert remote.drop(columns="images").equals(local.drop(columns="images"))
    assert not page("image", root, run="distilled", image="2").error
    table = page("storage", root).dataframe[0].value.set_index("run")
    files = [file for file in (runs_root / "distilled").rglob("*") if file.is_file() and "derived" not in file.parts]
    assert table.loc["distilled", "size"] - table.loc["distilled", "derived"] == pytest.approx(sum(f.stat().st_size for f in files) / 1e6)


def test_choosing_nothing_asks_for_a_choice(page):
    test = page("overview")
    test.multiselect[0].set_value([]).run()
    assert not test.exception
    assert "Choose at least one run" in test.caption[-1].value


def test_the_address_wins_over_the_defaults_and_nonsense_in_it_does_not(page):
    test = page("image", run="distilled", step="10", image="3", layer="0", score="0.5")
    assert [box.value for box in test.selectbox[:4]] == ["distilled", "val", 10, 0]
    assert test.number_input[0].value == 3
    nonsense = page("image", run="/etc/passwd", step="-1", image="1e9", layer="?", score="inf", opacity="nan", mask="<b>")
    assert not nonsense.exception
    assert [box.value for box in nonsense.selectbox[1:]] == ["val", 30, 1, "off"]
    assert (nonsense.number_input[0].value, nonsense.slider[0].value, nonsense.slider[1].value) == (1, 0.3, 0.7)


def test_another_run_keeps_what_it_has_too_and_replaces_what_it_lacks(page, runs_root: Path, tmp_path: Path):
    root = copied(runs_root, tmp_path / "copy")
    shutil.rmtree(root / "distilled" / "queries" / "split=val" / "step=20")
    test = page("image", root, run="undistilled", step="20", image="4")
    test.selectbox[0].set_value("distilled").run()
    assert not test.exception
    assert test.selectbox[2].value == 30
    assert test.number_input[0].value == 4


def test_data_that_is_gone_is_a_banner_and_no_traceback(page, runs_root: Path, tmp_path: Path):
    root = copied(runs_root, tmp_path / "copy")
    run = Run(root / "undistilled")
    recipe = run.info()["recipe"]
    recipe["data"] |= {"path": str(tmp_path / "gone"), "format": "coco"}
    run.update_info(recipe=recipe, dataset_hash="of the data that is gone")
    test = page("image", root, run="undistilled")
    assert not test.exception
    assert [error.value for error in test.error] == ["This image cannot be shown"]
    assert any("gone" in text.value for text in test.text)


def test_a_teacher_that_was_not_traced_leaves_the_student_alone(page):
    test = page("image", run="tiny-teacher")
    assert not test.exception
    assert any("without a teacher" in caption.value for caption in test.caption)


def test_runs_without_any_evaluation_say_so(page, runs_root: Path, tmp_path: Path):
    root = copied(runs_root, tmp_path / "copy")
    for folder in root.iterdir():
        shutil.rmtree(folder / "queries", ignore_errors=True)
    test = page("image", root)
    assert not test.exception
    assert [info.value for info in test.info] == ["No evaluation yet"]
    assert not page("overview", root).exception


def test_an_error_of_a_failed_run_is_shown_as_text(page, runs_root: Path, tmp_path: Path):
    root = copied(runs_root, tmp_path / "copy")
    Run(root / "undistilled").update_info(state="failed", error="<b>**NaN**</b> in layer 1")
    test = page("overview", root, run="undistilled")
    assert not test.exception
    assert [error.value for error in test.error] == ["A run failed"]
    assert any(text.value == "undistilled: <b>**NaN**</b> in layer 1" for text in test.text)
    assert not any("<b>" in markdown.value for markdown in test.markdown)


def test_no_page_loads_torch():
    modules = "lib.held, lib.page, lib.choices, lib.arm_verdicts, lib.open_in_fiftyone, lib.all_queries"
    code = f"import sys; sys.path.insert(0, 'app'); import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def test_the_report_says_the_same_numbers_as_the_dashboard(page, runs_root: Path, tmp_path: Path):
    out = tmp_path / "report.html"
    code, _, error = command("report", "undistilled", "distilled", "--runs", str(runs_root), "--out", str(out))
    assert code == 0, error
    assert out.stat().st_size <= 1.5e6
    said = {row["run"]: row for row in json.loads(out.with_suffix(".json").read_text())["runs"]}
    shown = page("overview", run=["undistilled", "distilled"], columns="all").dataframe[0].value.set_index("run")
    for run in ("undistilled", "distilled", "shapes_teacher"):
        for name, scale in (("ap", 100), ("ap50", 100), ("churn", 100), ("agreement", 100), ("quality", 1), ("ms_per_image", 1)):
            if said[run][name] is None:
                assert pd.isna(shown.loc[run, name])
            else:
                assert shown.loc[run, name] == pytest.approx(scale * said[run][name]), (run, name)
