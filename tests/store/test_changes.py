"""Runs are renamed, thrown away and brought back, and saved in sets; each change is undone as a whole."""

import re
from pathlib import Path

import pytest

from workbench.errors import RunError
from workbench.store import trash
from workbench.store.changes import delete, drop_set, empty_trash, keep_set, pin_baseline, rename, restore
from workbench.store.run import Run, list_runs
from workbench.store.sets import Sets, read_sets, save_set


def make(root: Path, name: str, **info) -> Run:
    run = Run.create(name, {"state": "done", **info}, root)
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "weights").write_bytes(b"weights of " + name.encode())
    return run


def names(root: Path) -> list[str]:
    return sorted(run.name for run in list_runs(root))


def content(run: Run) -> dict[str, bytes]:
    return {str(file.relative_to(run.path)): file.read_bytes() for file in run.path.rglob("*") if file.is_file() and file.name != ".lock"}


def test_a_run_that_was_thrown_away_is_in_no_list_and_comes_back_whole(tmp_path: Path):
    run, other = make(tmp_path, "a"), make(tmp_path, "b")
    before = content(run)
    change = delete([run])
    assert names(tmp_path) == ["b"] and [thrown.name for thrown in trash.thrown_away(tmp_path)] == ["a"]
    make(tmp_path, "a", seed=1)  # its name is free
    with pytest.raises(RunError, match="another run is called 'a' by now"):
        change.undo()
    delete([Run(tmp_path / "a")])
    change.undo()
    assert content(Run(tmp_path / "a")) == before and names(tmp_path) == ["a", other.name]


def test_the_run_of_a_name_that_was_thrown_away_last_is_restored_and_the_trash_is_emptied_for_good(tmp_path: Path):
    for seed in (1, 2):
        delete([make(tmp_path, "a", seed=seed)])
    with pytest.raises(RunError, match=r"no run 'b' in the trash .* Runs there: a"):
        restore(tmp_path, ["a", "b"])
    assert names(tmp_path) == []
    assert [run.info()["seed"] for run in restore(tmp_path, ["a"])] == [2]
    assert empty_trash(tmp_path) == ["a"] and trash.thrown_away(tmp_path) == [] and names(tmp_path) == ["a"]


def test_a_run_that_is_being_trained_is_neither_thrown_away_nor_renamed_and_the_others_come_back(tmp_path: Path):
    runs = [make(tmp_path, name) for name in "ab"]
    with runs[1].locked():
        with pytest.raises(RunError, match="is being written by another process"):
            delete(runs)
        with pytest.raises(RunError, match="is being written by another process"):
            rename(runs[1], "c")
    assert names(tmp_path) == ["a", "b"] and trash.thrown_away(tmp_path) == []


def test_a_link_is_neither_thrown_away_nor_renamed(tmp_path: Path):
    run = make(tmp_path / "elsewhere", "a")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a").symlink_to(run.path)
    for change in (lambda: delete([Run(tmp_path / "runs" / "a")]), lambda: rename(Run(tmp_path / "runs" / "a"), "b")):
        with pytest.raises(RunError, match="is a link to"):
            change()
    assert run.path.is_dir()


def test_a_new_name_is_followed_by_sets_and_the_pinned_baseline_and_is_undone(tmp_path: Path):
    run = make(tmp_path, "a")
    make(tmp_path, "b")
    keep_set(tmp_path, "both", ["a", "b"])
    pin_baseline(tmp_path, "a")
    before = content(run)
    change = rename(run, "c")
    assert names(tmp_path) == ["b", "c"] and content(Run(tmp_path / "c")) == before
    assert read_sets(tmp_path) == Sets({"both": ("c", "b")}, "c")
    change.undo()
    assert names(tmp_path) == ["a", "b"] and read_sets(tmp_path) == Sets({"both": ("a", "b")}, "a")


def test_a_name_that_is_taken_or_cannot_be_one_and_the_name_of_a_teacher_are_refused(tmp_path: Path):
    teacher, run = make(tmp_path, "teacher"), make(tmp_path, "student", teacher="teacher")
    for name, said in (("teacher", "already a run"), ("../x", "cannot be a run name"), (".trash", "cannot be a run name")):
        with pytest.raises(RunError, match=said):
            rename(run, name)
    with pytest.raises(RunError, match="is the teacher of student"):
        rename(teacher, "other")
    assert names(tmp_path) == ["student", "teacher"]


def test_sets_are_saved_replaced_and_removed_and_each_change_is_undone(tmp_path: Path):
    assert read_sets(tmp_path) == Sets()
    first = keep_set(tmp_path, " mine ", ["a", "b"])
    second = keep_set(tmp_path, "mine", ["c"])
    assert read_sets(tmp_path).sets == {"mine": ("c",)}
    second.undo()
    assert read_sets(tmp_path).sets == {"mine": ("a", "b")}
    gone = drop_set(tmp_path, "mine")
    assert read_sets(tmp_path).sets == {}
    with pytest.raises(RunError, match="no set 'mine'"):
        drop_set(tmp_path, "mine")
    gone.undo()
    assert read_sets(tmp_path).sets == {"mine": ("a", "b")}
    first.undo()
    assert read_sets(tmp_path).sets == {}
    for name in ("", "two\nlines", "x" * 61):
        with pytest.raises(RunError, match="cannot be the name of a set"):
            save_set(tmp_path, name, ["a"])


def test_a_change_says_what_was_done(tmp_path: Path):
    runs = [make(tmp_path, name) for name in "abcd"]
    assert delete(runs[:1]).said == "moved a to the trash"
    assert re.fullmatch("moved b, c, d to the trash", delete(runs[1:]).said)
    assert pin_baseline(tmp_path, "a").said == "pinned a as the baseline"
