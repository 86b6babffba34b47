"""A run that is too short to be judged says how many steps would do, and that number is where the checks begin to judge."""

from pathlib import Path
from typing import Any

import pytest

from workbench.analysis.diagnosis.length import too_short
from workbench.analysis.diagnosis.statistics import LEAST_VALUES, median_interval
from workbench.recipe.schema import TrainConfig
from workbench.store.run import GRADIENT_EVERY, Run


def run_of(root: Path, methods: int = 1, **train: Any) -> Run:
    recipe = {"methods": [{"method": "pkd"}] * methods, "train": {"log_every": 10, "evaluate_every": 100} | train}
    return Run.create("one", {"recipe": recipe}, root)


@pytest.mark.parametrize(
    ("train", "needed"),
    [
        ({"steps": 599}, 600),  # six measurements of gradients, one every 100 steps
        ({"steps": 40, "log_every": 1, "evaluate_every": 5}, 60),
        ({"steps": 999, "evaluate_every": 250}, 1000),  # four evaluations
    ],
)
def test_a_run_that_is_too_short_says_how_many_steps_would_do(tmp_path: Path, train: dict[str, Any], needed: int):
    assert f"one has {train['steps']} of the {needed} steps" in too_short(run_of(tmp_path, **train))


@pytest.mark.parametrize(("methods", "steps"), [(1, 600), (1, 10_000), (0, 10)])
def test_a_run_that_is_long_enough_or_not_distilled_says_nothing(tmp_path: Path, methods: int, steps: int):
    assert too_short(run_of(tmp_path, methods, steps=steps)) == ""


def test_the_least_number_of_values_is_that_of_the_interval():
    assert median_interval([1.0] * LEAST_VALUES) is not None and median_interval([1.0] * (LEAST_VALUES - 1)) is None


def test_gradients_are_measured_as_often_as_is_said():
    assert GRADIENT_EVERY * TrainConfig.model_fields["log_every"].default == 100
