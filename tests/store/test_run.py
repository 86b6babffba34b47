"""A run directory: hostile names are refused, one process writes, incomplete things do not count."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conftest import ROOT
from workbench.errors import RunError, WorkbenchError
from workbench.store.run import FORMAT_VERSION, Run, append_line, is_path, list_runs, read_lines, runs_root


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc", ".hidden", "-rf", "a b", "a\nb", "x" * 101, "\u00e9"])
def test_a_name_that_could_be_a_path_or_an_option_is_refused(name: str):
    with pytest.raises(RunError, match="cannot be a run name"):
        Run.create(name, {})
    assert not runs_root().exists()


@pytest.mark.parametrize("name", ["../x", "a/b", ""])
def test_opening_a_hostile_name_is_refused_too(name: str):
    with pytest.raises(RunError):
        Run.open(name)


@pytest.mark.parametrize(("name", "path"), [
    ("a", False), ("a.b-c_d", False), ("..", False), ("", False), ("./a", True), ("a/", True), ("runs/a", True), ("/a", True),
    ("s3://bucket/a", True),
])  # fmt: skip
def test_a_path_has_a_separator(name: str, path: bool):
    assert is_path(name) == path


def test_a_name_is_looked_up_in_the_folder_of_runs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here = tmp_path / "here"
    elsewhere = Run.create("exp", {"seed": 1}, here)
    monkeypatch.chdir(here)
    with pytest.raises(RunError, match=r"no run 'exp' in .*\. Runs there: none\. To open the folder of that name .*, write \./exp\."):
        Run.open("exp")
    assert Run.find("exp") is None and Run.find("nothing") is None and Run.find("a b") is None and Run.find("./nothing") is None
    run = Run.create("exp", {"seed": 2})
    assert Run.open("exp").path == run.path and Run.open("exp").info()["seed"] == 2
    for path in ("./exp", "exp/", str(elsewhere.path), elsewhere.path):
        assert Run.open(path).info()["seed"] == 1
        found = Run.find(path)
        assert found is not None and found.name == "exp" and found.info()["seed"] == 1
    with pytest.raises(RunError, match=r"no run at nothing/exp: it has no run\.json"):
        Run.open("nothing/exp")


def test_a_new_run_holds_its_info_and_the_format_version():
    run = Run.create("first", {"seed": 3})
    info = run.info()
    assert datetime.fromisoformat(info.pop("created")).tzinfo is UTC
    assert info == {"format_version": FORMAT_VERSION, "seed": 3}
    assert Run.open("first").path == run.path == runs_root() / "first"
    assert Run.open(run.path).name == "first"


def test_a_taken_name_is_refused_and_says_the_three_ways_out():
    Run.create("taken", {"seed": 1})
    with pytest.raises(RunError) as caught:
        Run.create("taken", {"seed": 2})
    assert all(word in str(caught.value) for word in ("'taken' already exists", "--resume taken", "runs rm taken", "--name"))
    assert Run.open("taken").info()["seed"] == 1


def test_a_missing_run_is_refused_and_lists_those_there_are():
    Run.create("one", {})
    with pytest.raises(RunError, match=r"no run 'two'.*Runs there: one"):
        Run.open("two")


def test_an_unusable_runs_folder_is_one_message(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkbenchError, match="Choose a writable folder with --runs"):
        Run.create("name", {}, root=tmp_path / "file")


def test_runs_are_listed_oldest_first_and_other_folders_are_not_runs():
    for name in ("zebra", "ant", "mole"):
        Run.create(name, {})
    (runs_root() / "no-run").mkdir()
    (runs_root() / "file.txt").write_text("")
    assert [run.name for run in list_runs()] == ["zebra", "ant", "mole"]
    Run.open("zebra").update_info(state="done")
    assert [run.name for run in list_runs()] == ["zebra", "ant", "mole"], "going on with a run does not move it"


def test_no_runs_folder_is_no_runs():
    assert list_runs() == []


def test_a_second_process_cannot_write_and_is_told_so():
    run = Run.create("busy", {})
    code = (
        "import sys; from pathlib import Path; from workbench.store.run import Run\n"
        "with Run(Path(sys.argv[1])).locked():\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == b"held\n"
        assert run.is_running()
        with pytest.raises(RunError, match="'busy' is being written by another process"), run.locked():
            pass
        with pytest.raises(RunError):
            run.remove()
        assert run.info_path.exists()
        other.stdin.close()
        other.wait()
    assert not run.is_running()
    run.remove()
    assert not run.path.exists()


def test_asking_whether_a_run_is_running_leaves_no_file():
    run = Run.create("quiet", {})
    assert not run.is_running()
    assert [p.name for p in run.path.iterdir()] == ["run.json"]


def test_a_last_line_cut_off_by_a_kill_is_left_out(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert read_lines(path) == [{"step": 1}, {"step": 2}]
    assert read_lines(tmp_path / "absent.jsonl") == []


def test_a_line_cut_inside_a_letter_is_left_out_too(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes('{"step": 1}\n{"name": "\u00e9'.encode()[:-1])
    assert read_lines(path) == [{"step": 1}]


def test_a_broken_line_in_the_middle_is_one_message(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl.*line 2"):
        read_lines(path)


def test_only_complete_checkpoints_count():
    run = Run.create("checkpoints", {})
    assert run.checkpoint_steps() == []
    for step in (1000, 20, 300):
        run.checkpoint_path(step).mkdir(parents=True)
        (run.checkpoint_path(step) / "model.safetensors").write_bytes(b"")
        if step != 300:
            (run.checkpoint_path(step) / "DONE").write_text("")
    (run.checkpoints_path / ".0000400.partial").mkdir()
    (run.checkpoints_path / ".0000400.partial" / "DONE").write_text("")
    assert run.checkpoint_steps() == [20, 1000]


def test_query_steps_are_those_with_student_rows():
    run = Run.create("queries", {})
    assert run.query_steps("val") == []
    for step in (-1, 200, 40):
        folder = run.queries_path("val", step)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    run.queries_path("val", 500).mkdir()  # cut off before its manifest
    assert run.query_steps("val") == [40, 200]
    assert run.query_steps("test") == []


def test_an_update_keeps_what_it_does_not_change():
    run = Run.create("updated", {"seed": 1, "state": "created"})
    before = run.info()
    run.update_info(state="done")
    assert run.info() == before | {"state": "done"}
    assert json.loads(run.info_path.read_text())["state"] == "done"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_while_a_metric_is_written_is_one_message_that_says_how_to_go_on():
    with pytest.raises(RunError, match=r"No space left.*--resume"):
        append_line(Path("/dev/full"), {"step": 1})
