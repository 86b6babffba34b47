import dataclasses
import json
from pathlib import Path

import pytest

from workbench.store.run import Run
from workbench.views import catalog as catalog_module
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


def with_long_logs(root: Path) -> Run:
    run = make(root, "long", dataset_hash="x")
    run.metrics_path.write_text("".join(json.dumps({"step": step, "loss": 1.0, "padding": 0.5}) + "\n" for step in range(1, 4001)))
    run.evaluations_path.write_text(json.dumps({"step": 100, "split": "val", "coco": {"ap": 0.25}}) + "\n")
    return run


def test_a_server_that_was_started_anew_reads_no_log_of_a_run_that_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = with_long_logs(tmp_path)
    (before,) = catalog(tmp_path)
    assert (before.step, before.ap, before.split) == (4000, 0.25, "val")
    catalog_module._read.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_log", lambda *_: 1 / 0)
        assert [dataclasses.replace(entry, run=before.run) for entry in catalog(tmp_path)] == [before]
    # as soon as a log has changed, it is read again
    run.evaluations_path.write_text(json.dumps({"step": 100, "split": "val", "coco": {"ap": 0.75}}) + "\n" * 2)
    assert catalog(tmp_path)[0].ap == 0.75
    run.metrics_path.write_text(run.metrics_path.read_text() + "{damaged}\n")
    assert "is not valid JSON" in catalog(tmp_path)[0].problem


def test_what_is_kept_of_the_logs_is_read_again_where_it_is_damaged_and_never_trusted_in_another_shape(tmp_path: Path):
    with_long_logs(tmp_path)
    (before,) = catalog(tmp_path)
    (file,) = (tmp_path / "long" / "derived").glob("catalog-*.json")
    file.write_text("{}")
    catalog_module._read.cache_clear()
    assert [dataclasses.replace(entry, run=before.run) for entry in catalog(tmp_path)] == [before]
    file.write_text('{"problem": "<b>"}')
    file.with_name(file.name + ".sha256").unlink()
    catalog_module._read.cache_clear()
    assert catalog(tmp_path)[0].problem != ""


def test_a_run_in_progress_is_read_whenever_it_has_changed_and_nothing_is_kept(tmp_path: Path):
    run = with_long_logs(tmp_path)
    run.update_info(state="running")
    assert catalog(tmp_path)[0].step == 4000
    assert not (run.path / "derived").exists()


def test_a_pinned_run_is_the_baseline_of_every_other_run_on_its_data(tmp_path: Path):
    make(tmp_path, "alone", arm="undistilled", dataset_hash="cells")
    make(tmp_path, "taught", dataset_hash="cells")
    make(tmp_path, "pinned", arm="other", seed=7, dataset_hash="cells")
    make(tmp_path, "steel", dataset_hash="steel")
    entries = {entry.run.name: entry for entry in catalog(tmp_path)}

    def baseline(name: str, pinned: str | None) -> str | None:
        found = baseline_of(entries[name], list(entries.values()), pinned)
        return found and found.run.name

    assert baseline("taught", None) == baseline("taught", "gone") == baseline("taught", "taught") == "alone"
    assert baseline("taught", "pinned") == baseline("alone", "pinned") == "pinned"
    assert baseline("pinned", "pinned") is None and baseline("steel", "pinned") is None
