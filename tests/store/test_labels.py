"""Tags, notes and what is archived: they lie in the run's folder, and no hash of the run depends on them."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT
from workbench.analysis.derived import diagnosis_inputs
from workbench.errors import RunError, WorkbenchError
from workbench.store.changes import archive, note, tag
from workbench.store.labels import LONGEST_NOTE, MOST_TAGS, NO_LABELS, Labels, read_labels, write_labels
from workbench.store.run import Run
from workbench.views.catalog import catalog

GROUP = {"recipe": "r", "arm": "a", "seed": 0, "schedule": "equal steps"}


def make(root: Path, name: str) -> Run:
    return Run.create(name, {"state": "done", "recipe": {"train": {"steps": 10}}, "group": GROUP}, root)


def test_a_run_of_before_labels_has_none_and_gets_no_file_until_something_is_said(tmp_path: Path):
    run = make(tmp_path, "a")
    assert read_labels(run) == NO_LABELS and not run.labels_path.exists()
    tag([run], remove=["never-there"])
    assert not run.labels_path.exists()


def test_labels_are_read_as_they_were_written(tmp_path: Path):
    run = make(tmp_path, "a")
    write_labels(run, Labels(("baseline", "paper v2"), "Ünicode <b>\nsecond line", archived=True))
    assert read_labels(run) == Labels(("baseline", "paper v2"), "Ünicode <b>\nsecond line", archived=True)
    assert json.loads((tmp_path / "a" / "labels.json").read_text())["tags"] == ["baseline", "paper v2"]


def test_a_tag_is_added_once_and_taken_off_and_every_change_is_undone(tmp_path: Path):
    runs = [make(tmp_path, name) for name in "ab"]
    tag(runs[:1], add=["old"])
    change = tag(runs, add=["new", " old "], remove=["gone"])
    assert [read_labels(run).tags for run in runs] == [("old", "new"), ("new", "old")]
    change.undo()
    assert [read_labels(run).tags for run in runs] == [("old",), ()]
    assert not runs[1].labels_path.exists()
    for make_change in (lambda: note(runs, "why"), lambda: archive(runs)):
        change = make_change()
        assert all(read_labels(run).note or read_labels(run).archived for run in runs)
        change.undo()
    assert [read_labels(run) for run in runs] == [Labels(("old",)), NO_LABELS]


@pytest.mark.parametrize("word", ["", "  ", "a,b", "two\nlines", "x" * 41])
def test_what_cannot_be_a_tag_is_refused_and_no_run_is_changed(tmp_path: Path, word: str):
    runs = [make(tmp_path, name) for name in "ab"]
    with pytest.raises(RunError, match="cannot be a tag"):
        tag(runs, add=["fine", word])
    assert not any(run.labels_path.exists() for run in runs)


def test_too_many_tags_and_too_long_a_note_are_refused(tmp_path: Path):
    run = make(tmp_path, "a")
    with pytest.raises(RunError, match=f"{MOST_TAGS} tags"):
        tag([run], add=[f"t{number}" for number in range(MOST_TAGS + 1)])
    with pytest.raises(RunError, match=f"{LONGEST_NOTE} letters"):
        note([run], "x" * (LONGEST_NOTE + 1))
    shutil.rmtree(run.path)
    with pytest.raises(RunError, match="has been removed or moved"):
        note([run], "x")
    assert not run.path.exists()


def test_labels_change_no_hash_that_results_are_kept_under(tmp_path: Path):
    shutil.copytree(ROOT / "tests" / "stored" / "saved" / "distilled", tmp_path / "distilled")
    run = Run(tmp_path / "distilled")
    before = diagnosis_inputs(run, "val"), run.info(), run.evaluations(), run.state()
    tag([run], add=["kept"])
    note([run], "A note.")
    archive([run])
    assert (diagnosis_inputs(run, "val"), run.info(), run.evaluations(), run.state()) == before


def test_damaged_labels_are_said_and_hide_no_run(tmp_path: Path):
    run = make(tmp_path, "a")
    run.labels_path.write_text('{"tags": "no list"}')
    with pytest.raises(WorkbenchError, match=r"labels\.json is damaged"):
        read_labels(run)
    (entry,) = catalog(tmp_path)
    assert entry.problem == "" and "labels.json is damaged" in entry.labels.note


def test_the_catalog_sees_labels_as_soon_as_they_change(tmp_path: Path):
    run = make(tmp_path, "a")
    assert catalog(tmp_path)[0].labels == NO_LABELS
    change = tag([run], add=["x"])
    assert catalog(tmp_path)[0].labels.tags == ("x",)
    change.undo()
    assert catalog(tmp_path)[0].labels == NO_LABELS
