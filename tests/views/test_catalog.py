import json
from pathlib import Path

import pytest

from workbench.store.run import Run
from workbench.views.catalog import baseline_of, catalog, latest_comparison, opening_run


def make(root: Path, name: str, arm: str = "distilled", seed: int = 0, schedule: str = "equal steps", **info) -> Run:
    group = {"recipe": "shapes", "arm": arm, "seed": seed, "schedule": schedule}
    return Run.create(name, {"group": group, "recipe": {"train": {"steps": 100}}, "state": "done", **info}, root)


def test_runs_of_a_comparison_stand_together_baseline_first(tmp_path: Path):
    make(tmp_path, "a", arm="distilled", schedule="equal compute")
    make(tmp_path, "b", arm="distilled")
    make(tmp_path, "c", arm="undistilled")
    make(tmp_path, "d", arm="undistilled", seed=1)
    make(tmp_path, "e", arm="uniform")
    assert [entry.run.name for entry in catalog(tmp_path)] == ["c", "b", "e", "a", "d"]


def test_the_latest_comparison_is_that_of_the_newest_run_with_the_newest_of_each_arm(tmp_path: Path):
    make(tmp_path, "other", seed=1)
    make(tmp_path, "z-quick", arm="undistilled")
    make(tmp_path, "base", arm="undistilled")
    make(tmp_path, "short", schedule="equal compute")
    make(tmp_path, "full")
    assert [entry.run.name for entry in latest_comparison(catalog(tmp_path))] == ["base", "full", "short"]


def test_a_newer_run_that_belongs_to_no_comparison_does_not_open_the_pages(tmp_path: Path):
    make(tmp_path, "base", arm="undistilled")
    make(tmp_path, "full")
    make(tmp_path, "lone-teacher", arm="undistilled", group={"recipe": "big", "arm": "undistilled", "seed": 0, "schedule": "equal steps"})
    assert [entry.run.name for entry in latest_comparison(catalog(tmp_path))] == ["base", "full"]
    assert opening_run(catalog(tmp_path)).run.name == "full"


def test_pages_open_on_the_finished_distilled_run_at_equal_steps_of_the_newest_comparison(tmp_path: Path):
    make(tmp_path, "alone", arm="undistilled")
    assert opening_run(catalog(tmp_path)).run.name == "alone"
    make(tmp_path, "other-arm", arm="a")
    assert opening_run(catalog(tmp_path)).run.name == "other-arm"
    make(tmp_path, "own-arm")
    make(tmp_path, "short", schedule="equal compute")
    assert opening_run(catalog(tmp_path)).run.name == "own-arm"
    make(tmp_path, "begun", arm="z", state="running")
    assert opening_run(catalog(tmp_path)).run.name == "own-arm"


def test_runs_of_one_recipe_on_other_data_are_another_comparison(tmp_path: Path):
    make(tmp_path, "cells-base", arm="undistilled", dataset_hash="cells")
    make(tmp_path, "cells", dataset_hash="cells")
    make(tmp_path, "steel-base", arm="undistilled", dataset_hash="steel")
    entries = catalog(tmp_path)
    assert [entry.run.name for entry in latest_comparison(entries)] == ["cells-base", "cells"]
    make(tmp_path, "steel", dataset_hash="steel")
    entries = catalog(tmp_path)
    assert [entry.run.name for entry in latest_comparison(entries)] == ["steel-base", "steel"]
    cells = next(entry for entry in entries if entry.run.name == "cells")
    assert (baseline_of(cells, entries) or cells).run.name == "cells-base"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"format_version": 1, "gro', "not valid JSON"),
        ('{"format_version": 2}', "its format is version 2, but this workbench reads version 1"),
        ('{"format_version": 1}', "group"),
        ("[]", "run.json"),
        ("null", "run.json"),
    ],
)
def test_a_run_that_cannot_be_shown_says_why_and_hides_no_other(tmp_path: Path, content: str, problem: str):
    make(tmp_path, "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text(content)
    good, bad = catalog(tmp_path)
    assert (good.run.name, good.problem) == ("good", "")
    assert problem in bad.problem


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations.jsonl"])
def test_broken_lines_are_a_problem_of_their_run(tmp_path: Path, name: str):
    (make(tmp_path, "a").path / name).write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    assert "line 2" in catalog(tmp_path)[0].problem


def test_a_run_that_is_being_written_is_running_one_that_was_killed_has_stopped(tmp_path: Path):
    run = make(tmp_path, "a", state="running")
    run.metrics_path.write_text(json.dumps({"step": 30}) + "\n")
    with run.locked():
        assert catalog(tmp_path)[0].title == "a · running 30/100"
    assert catalog(tmp_path)[0].state == "stopped"
    run.update_info(state="failed", error="no space left")
    assert (catalog(tmp_path)[0].state, catalog(tmp_path)[0].error) == ("failed", "no space left")


def test_a_folder_that_is_not_there_or_holds_other_things_has_no_runs(tmp_path: Path):
    assert catalog(tmp_path / "none") == []
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    assert catalog(tmp_path) == []
