"""Divides a budget of wall time between teacher and students: how many steps fit."""

import re
from dataclasses import dataclass

from workbench.duration import duration
from workbench.errors import ConfigError
from workbench.tasks.distill.pace import Pace

START_SECONDS = 12.0  # a process: imports, data, checks, the first table of queries
ANSWER_SECONDS = 30.0  # table, diagnosis, report and exports
EVALUATIONS = 8
TEACHER_SHARE = 0.6
DISTILLED = 1.25  # a step with the teacher's answers from the cache, relative to one without
SLOWER_TOGETHER = 1.15  # several processes share caches and memory
LEAST_STEPS, MOST_STEPS = 100, 20_000
MOST_EPOCHS = 400  # of few images; the rest of the budget is not spent
_UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds_of(text: str) -> float:
    """Returns the seconds of a budget such as ``90s``, ``10m`` or ``1.5h``.

    Raises:
        ConfigError: it is not a number with one of these units.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip())
    if found is None or float(found[1]) == 0:
        raise ConfigError(f"--budget {text!r} is no time. Write a number and s, m or h, such as 90s, 10m or 1.5h.")
    return float(found[1]) * _UNITS[found[2]]


def refuse_hopeless(budget: float, seeds: int, jobs: int) -> None:
    """Refuses a budget that is too small whatever the pace, before anything is measured.

    Raises:
        ConfigError: starting the students and writing the answer take longer.
    """
    least = ANSWER_SECONDS + START_SECONDS * max(3 * seeds / jobs, 1)
    if least > 1.2 * budget:
        raise ConfigError(
            f"a budget of {duration(budget)} is too small: starting {3 * seeds} students and writing the answer alone take about "
            f"{duration(least)}. Raise --budget, or lower --seeds."
        )


@dataclass(frozen=True)
class Division:
    """Steps that fit into a budget, and the wall seconds that each stage is expected to take.

    Attributes:
        teacher_steps: Steps of the teacher; 0 if it is there already.
        student_steps: Steps of each student at equal steps.
        teacher: Seconds of training the teacher.
        cache: Seconds of building the teacher cache.
        students: Seconds of training all students, side by side.
        answer: Seconds of table, report and exports.
    """

    teacher_steps: int
    student_steps: int
    teacher: float
    cache: float
    students: float
    answer: float = ANSWER_SECONDS

    @property
    def seconds(self) -> float:
        """Seconds of everything."""
        return self.teacher + self.cache + self.students + self.answer


def divide(
    budget: float,
    teacher: Pace | None,
    student: Pace,
    cached: float,
    seeds: int,
    jobs: int,
    distilled: float = DISTILLED,
    slowness: float = 1.0,
) -> Division:
    """Divides a budget.

    Args:
        budget: wall seconds for everything that is left to do.
        teacher: pace of the teacher; None if it is trained already.
        student: pace of the undistilled student.
        cached: seconds of building the teacher cache; 0 if it is there.
        seeds: number of seeds of each student.
        jobs: number of runs at a time.
        distilled: time of a distilled step relative to an undistilled one.
        slowness: how much longer than measured a step was found to take.

    Raises:
        ConfigError: not even the shortest schedules fit; the message says what would.
    """
    free = budget - ANSWER_SECONDS - cached
    taught = Division(0, LEAST_STEPS, 0.0, cached, 0.0)
    if teacher is not None:
        steps = _steps(TEACHER_SHARE * free - START_SECONDS - _evaluating(teacher), teacher.step * slowness, teacher.epoch)
        taught = Division(steps, 0, START_SECONDS + _evaluating(teacher) + steps * teacher.step * slowness, cached, 0.0)
    left = free - taught.teacher
    step = student.step * slowness * (SLOWER_TOGETHER if jobs > 1 else 1.0)
    # undistilled, distilled, and distilled once more in the undistilled run's time
    runs, rounds = 3 * seeds, seeds * (2 + distilled) / min(jobs, 3 * seeds)
    fixed = (START_SECONDS + _evaluating(student)) * max(runs / jobs, 1)
    steps = _steps(left - fixed, step * rounds, student.epoch)
    found = Division(taught.teacher_steps, steps, taught.teacher, cached, fixed + steps * step * rounds)
    if found.seconds > 1.2 * budget:
        raise ConfigError(
            f"a budget of {duration(budget)} is too small: the shortest schedules ({LEAST_STEPS} steps) with their evaluations take about "
            f"{duration(found.seconds)} here. Raise --budget, or lower --seeds."
        )
    return found


def _evaluating(pace: Pace) -> float:
    return pace.image * (EVALUATIONS * pace.evaluated + pace.tested)


def _steps(seconds: float, step: float, epoch: int) -> int:
    count = int(max(seconds, 0.0) / step)
    return max(min(count - count % 10, MOST_STEPS, MOST_EPOCHS * epoch), LEAST_STEPS)
