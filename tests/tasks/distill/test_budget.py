"""A budget of time becomes steps: all of it is used, none of it twice, and one that is too small is refused."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import ConfigError
from workbench.tasks.distill.budget import LEAST_STEPS, MOST_STEPS, divide, refuse_hopeless, seconds_of
from workbench.tasks.distill.pace import Pace

TEACHER, STUDENT = Pace(0.2, 0.01, 100, 100, 1000), Pace(0.1, 0.005, 100, 100, 1000)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("8 h", 28800)])
def test_a_time_is_read(text: str, seconds: float):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "h", "0m", "-5m", "1d", "ten minutes"])
def test_what_is_no_time_is_refused_with_an_example(text: str):
    with pytest.raises(ConfigError, match=r"90s, 10m or 1\.5h"):
        seconds_of(text)


@given(st.floats(400, 40_000), st.integers(1, 5), st.integers(1, 4), st.floats(1.0, 2.0))
def test_the_stages_fill_the_budget_and_never_pass_it_by_a_fifth(budget: float, seeds: int, jobs: int, distilled: float):
    try:
        found = divide(budget, TEACHER, STUDENT, 30.0, seeds, jobs, distilled)
    except ConfigError:
        return
    assert found.seconds <= 1.2 * budget
    if LEAST_STEPS < found.student_steps < MOST_STEPS and LEAST_STEPS < found.teacher_steps < MOST_STEPS:
        # steps come in tens
        assert found.seconds >= budget - 10 * (TEACHER.step + STUDENT.step * 1.15 * seeds * (2 + distilled)) - 1


def test_steps_follow_from_the_pace_by_hand():
    # one job: nothing runs side by side; 1,000 s - 30 s answer - 70 s cache = 900 s, of which 60 % are 540 s for the teacher
    found = divide(1000, TEACHER, STUDENT, 70.0, 1, 1)
    # 540 - 12 s start - 0.01 s x (8 x 100 + 100) images = 519 s at 0.2 s a step, in tens
    assert found.teacher_steps == 2590 and found.teacher == pytest.approx(12 + 9 + 518)
    # 361 s - 3 runs x (12 + 4.5) s = 311.5 s for 0.1 s x (1 + 1.25 + 1) a step
    assert found.student_steps == 950 and found.students == pytest.approx(3 * 16.5 + 950 * 0.325)


def test_without_a_teacher_to_train_everything_goes_to_the_students():
    found = divide(1000, None, STUDENT, 0.0, 1, 1)
    assert found.teacher_steps == 0 and found.teacher == 0.0
    assert found.student_steps == int((970 - 49.5) / 0.325) // 10 * 10


def test_a_slower_machine_than_measured_takes_fewer_steps():
    steps = [divide(1000, None, STUDENT, 0.0, 1, 1, slowness=slowness).student_steps for slowness in (1.0, 2.0)]
    assert steps[1] == pytest.approx(steps[0] / 2, abs=10)


def test_few_images_are_not_shown_more_than_four_hundred_times():
    found = divide(36_000, replace(TEACHER, epoch=2), replace(STUDENT, epoch=3), 0.0, 1, 1)
    assert (found.teacher_steps, found.student_steps) == (800, 1200)


def test_a_hopeless_budget_is_refused_before_anything_is_measured():
    # 30 s answer and three starts of 12 s; a fifth over is allowed
    with pytest.raises(ConfigError, match=r"20 s is too small: starting 3 students .* about 66 s"):
        refuse_hopeless(20, 1, 1)
    with pytest.raises(ConfigError):
        refuse_hopeless(54.9, 1, 1)
    refuse_hopeless(55.1, 1, 1)
    refuse_hopeless(40, 1, 3)


def test_a_budget_that_is_too_small_says_what_would_do():
    with pytest.raises(ConfigError, match=r"60 s is too small.*about \d+ (s|min).*--budget"):
        divide(60, TEACHER, STUDENT, 30.0, 1, 1)
