"""Jobs of ``workbench distill``: what their files say, and who works on them."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from workbench.errors import RunError
from workbench.files import read_json, write_json
from workbench.store.jobs import enter_stage, read_jobs, working


def make_job(root: Path, name: str, **changes: Any) -> Path:
    values = {
        "format": 1, "stage": "students", "stage_began": 1000.0, "planned": 400.0,
        "expected": {"teacher_steps": 10, "student_steps": 10, "teacher": 200.0, "cache": 20.0, "students": 100.0, "answer": 30.0},
        "runs": {"teacher": "t", "students": ["a", "b"]},
    }  # fmt: skip
    (root / name).mkdir(parents=True)
    write_json(root / name / "plan.json", values | changes)
    return root / name


def test_a_job_says_its_stage_and_what_was_expected(tmp_path: Path):
    make_job(tmp_path, "one")
    (job,) = read_jobs(tmp_path)
    assert (job.name, job.state, job.stage, job.began, job.planned) == ("one", "stopped", "students", 1000.0, 400.0)
    assert job.expected == {"teacher": 200.0, "cache": 20.0, "students": 100.0, "answer": 30.0}
    assert (job.teacher, job.students) == ("t", ("a", "b"))


def test_a_job_is_running_while_a_process_works_on_it(tmp_path: Path):
    folder = make_job(tmp_path, "one")
    with working(folder):
        assert [job.state for job in read_jobs(tmp_path)] == ["running"]
    assert [job.state for job in read_jobs(tmp_path)] == ["stopped"]
    with working(folder):
        enter_stage(folder, "done")
        assert [job.state for job in read_jobs(tmp_path)] == ["done"]


def test_two_processes_do_not_work_on_one_job(tmp_path: Path):
    program = "import sys; from pathlib import Path; from workbench.store.jobs import working\nwith working(Path(sys.argv[1])): pass"
    folder = make_job(tmp_path, "one")
    with working(folder):
        done = subprocess.run([sys.executable, "-c", program, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "the job 'one' is being worked on by another process" in done.stderr
    subprocess.run([sys.executable, "-c", program, str(folder)], cwd=ROOT, check=True)


def test_entering_a_stage_keeps_the_rest_of_the_plan(tmp_path: Path):
    folder, before = make_job(tmp_path, "one", rules="all of them"), time.time()
    enter_stage(folder, "answer")
    kept = read_json(folder / "plan.json")
    assert kept["rules"] == "all of them" and kept["stage"] == "answer" and before <= kept["stage_began"] <= time.time()


@pytest.mark.parametrize("damage", [{"stage_began": None}, {"expected": {}}, {"runs": None}, {"planned": "soon"}])
def test_a_plan_that_says_less_is_not_a_job_that_can_be_shown(tmp_path: Path, damage: dict[str, Any]):
    make_job(tmp_path, "bad", **damage)
    make_job(tmp_path, "good")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "plan.json").write_text("{")
    assert [job.name for job in read_jobs(tmp_path)] == ["good"]


def test_where_there_is_no_job_there_is_none(tmp_path: Path):
    assert read_jobs(tmp_path / "nowhere") == []


def test_a_lock_that_cannot_be_had_is_an_error_of_the_workbench(tmp_path: Path):
    folder = make_job(tmp_path, "one")
    with working(folder), pytest.raises(RunError), working(folder):
        pass
