"""A pace is that of warm steps, in wall time and in process time, and measuring it ends soon even where a step is slow."""

import dataclasses
from pathlib import Path

import pytest

from tests.flows import DISTILLED, write_recipe
from workbench.recipe.loading import load_recipe
from workbench.tasks.distill.pace import COLD, ENOUGH_SECONDS, LEAST, MOST_SECONDS, Pace, measure, warm_seconds


class Steps:
    """Steps that take given wall seconds, a third of them on the processor; the last one is repeated for ever."""

    def __init__(self, *wall: float):
        self.wall, self.now, self.taken = wall, 0.0, 0

    def __call__(self) -> None:
        self.now += self.wall[min(self.taken, len(self.wall) - 1)]
        self.taken += 1

    def clock(self) -> tuple[float, float]:
        return self.now, self.now / 3


def test_cold_steps_do_not_count():
    steps = Steps(9.0, 4.0, 0.5)
    assert warm_seconds(steps, steps.clock) == pytest.approx((0.5, 0.5 / 3))


def test_a_hiccup_does_not_count():
    steps = Steps(0.1, 0.1, 0.2, 2.5, 0.2, 0.2, 0.2)
    assert warm_seconds(steps, steps.clock)[0] == pytest.approx(0.2)


def test_quick_steps_are_taken_for_a_while_and_slow_ones_few_times():
    quick, slow = Steps(0.01), Steps(2.0)
    warm_seconds(quick, quick.clock)
    assert quick.now == pytest.approx(ENOUGH_SECONDS + 0.01 * COLD, abs=0.05)
    warm_seconds(slow, slow.clock)
    assert slow.taken == COLD + LEAST


def test_one_warm_step_is_enough_where_a_step_takes_more_than_a_minute():
    steps = Steps(72.0)
    assert warm_seconds(steps, steps.clock)[0] == 72.0
    assert steps.taken == 2


@pytest.mark.parametrize("step", [1.0, 3.0, 5.0, 8.0, 19.0, 30.0])
def test_measuring_ends_at_most_two_steps_after_its_limit(step: float):
    steps = Steps(step)
    warm_seconds(steps, steps.clock)
    assert steps.now <= MOST_SECONDS + 2 * step


def test_a_busy_machine_is_said():
    pace = Pace(0.3, 0.01, 10, 10, 10, processor=0.1)
    assert str(pace) == "0.3 s a step (0.1 s on the processor)"
    assert str(dataclasses.replace(pace, processor=0.28)) == "0.3 s a step"
    assert str(dataclasses.replace(pace, processor=0.0)) == "0.3 s a step", "a GPU's steps have no process time"


def test_recipes_are_compared_by_process_time_where_it_is_known():
    assert Pace(0.3, 0.01, 10, 10, 10, processor=0.1).work == 0.1 and Pace(0.3, 0.01, 10, 10, 10).work == 0.3


def test_a_real_recipe_has_a_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("workbench.tasks.distill.pace.ENOUGH_SECONDS", 0.0)
    pace = measure(load_recipe(write_recipe(tmp_path, DISTILLED)), "cpu")
    assert 0 < pace.step < MOST_SECONDS and 0 < pace.processor < MOST_SECONDS
    assert (pace.evaluated, pace.tested, pace.epoch) == (8, 8, 4)
