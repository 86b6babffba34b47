"""How far a job is: by the steps of its runs where it trains, else by the clock."""

from pathlib import Path

import pytest

from tests.views.test_catalog import make
from workbench.store.jobs import Job
from workbench.store.run import append_line
from workbench.views.job_progress import progress_of

EXPECTED = {"teacher": 200.0, "cache": 20.0, "students": 100.0, "answer": 30.0}


def job(stage: str, state: str = "running", began: float = 1000.0) -> Job:
    return Job("one", state, stage, began, EXPECTED, 350.0, "t", ("a", "b"))


def test_a_teacher_is_as_far_as_its_steps(tmp_path: Path):
    found = progress_of(job("teacher"), tmp_path, 1e9)
    assert (found.left, found.share) == (350.0, 0.0), "its run has not begun, whatever the clock says"
    run = make(tmp_path, "t", state="running")
    steps = run.info()["recipe"]["train"]["steps"]
    append_line(run.timings_path, {"step": steps // 4, "wall": 1.0, "cpu": 1.0})
    found = progress_of(job("teacher"), tmp_path, 1e9)
    over = (steps // 4) / steps
    assert found.left == pytest.approx((1 - over) * 200 + 150) and found.share == pytest.approx(over * 200 / 350)
    assert found.text.startswith(f"teacher {100 * over:.0f} %, cache and students and answer to come; about")


def test_students_are_as_far_as_all_of_them(tmp_path: Path):
    make(tmp_path, "a", state="done")
    found = progress_of(job("students"), tmp_path, 1e9)
    assert found.left == pytest.approx(0.5 * 100 + 30)
    assert found.text == "teacher and cache done, students 50 %, answer to come; about 80 s left"


def test_a_cache_and_an_answer_are_as_far_as_the_clock_and_never_beyond_their_end(tmp_path: Path):
    assert progress_of(job("cache"), tmp_path, 1005.0).left == pytest.approx(15 + 130)
    found = progress_of(job("answer"), tmp_path, 5000.0)
    assert found.left == 0.0 and found.share == 1.0 and found.text.startswith("teacher and cache and students done, answer 100 %")


def test_the_clock_of_a_stopped_job_stands_still(tmp_path: Path):
    assert progress_of(job("cache", "stopped"), tmp_path, 5000.0).left == pytest.approx(150)


def test_a_finished_job_has_nothing_left(tmp_path: Path):
    found = progress_of(job("done", "done"), tmp_path, 5000.0)
    assert (found.left, found.share, found.text) == (0.0, 1.0, "done")
