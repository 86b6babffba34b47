"""What the pages decide, run without a browser."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.conftest import ROOT

PATIENCE = 60


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, runs_root: Path):
    """Runs one page on a folder of runs."""
    monkeypatch.syspath_prepend(str(ROOT / "app"))

    def run(name: str, root: Path = runs_root, **address) -> AppTest:
        monkeypatch.setenv("WORKBENCH_RUNS", str(root))
        test = AppTest.from_file(str(ROOT / "app" / f"{name}.py"), default_timeout=PATIENCE)
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


def test_choosing_nothing_asks_for_a_choice(page):
    test = page("overview")
    test.multiselect[0].set_value([]).run()
    assert not test.exception
    assert "Choose at least one run" in test.caption[-1].value


def test_the_address_wins_over_the_defaults_and_nonsense_in_it_does_not(page):
    test = page("image", run="distilled", step="10", image="3", layer="0", score="0.5")
    assert [box.value for box in test.selectbox[:3]] == ["distilled", 10, 0]
    assert test.number_input[0].value == 3
    nonsense = page("image", run="/etc/passwd", step="-1", image="1e9", layer="?", score="inf", opacity="nan", mask="<b>")
    assert not nonsense.exception
    assert [box.value for box in nonsense.selectbox[1:]] == [30, 1, "off"]
    assert (nonsense.number_input[0].value, nonsense.slider[0].value, nonsense.slider[1].value) == (1, 0.3, 0.7)


def test_another_run_keeps_what_it_has_too_and_replaces_what_it_lacks(page, runs_root: Path, tmp_path: Path):
    root = copied(runs_root, tmp_path / "copy")
    shutil.rmtree(root / "distilled" / "queries" / "split=val" / "step=20")
    test = page("image", root, run="undistilled", step="20", image="4")
    test.selectbox[0].set_value("distilled").run()
    assert not test.exception
    assert test.selectbox[1].value == 30
    assert test.number_input[0].value == 4


def test_data_that_is_gone_is_a_banner_and_no_traceback(page, runs_root: Path, tmp_path: Path):
    root = copied(runs_root, tmp_path / "copy")
    info = json.loads((root / "undistilled" / "run.json").read_text())
    info["recipe"]["data"] |= {"path": str(tmp_path / "gone"), "format": "coco"}
    info["dataset_hash"] = "of the data that is gone"
    (root / "undistilled" / "run.json").write_text(json.dumps(info))
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
    info = json.loads((root / "undistilled" / "run.json").read_text())
    (root / "undistilled" / "run.json").write_text(json.dumps({**info, "state": "failed", "error": "<b>**NaN**</b> in layer 1"}))
    test = page("overview", root, run="undistilled")
    assert not test.exception
    assert [error.value for error in test.error] == ["A run failed"]
    assert any(text.value == "undistilled: <b>**NaN**</b> in layer 1" for text in test.text)
    assert not any("<b>" in markdown.value for markdown in test.markdown)


def test_no_page_loads_torch():
    modules = "shared, reads, workbench.views.image, workbench.views.overview, workbench.views.summary, workbench.views.training"
    code = f"import sys; sys.path.insert(0, 'app'); import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0
