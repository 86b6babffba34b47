"""Real runs of seconds with one thing wrong in each: the project's own loop on the embedded data and teacher."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.app.example_runs import runs_in
from tests.flows import DISTILLED, Silent, tiny_recipe
from workbench.recipe.schema import CheckpointConfig
from workbench.recipe.setup import Setup, build
from workbench.store.run import Run
from workbench.training import launch

# gradients are measured every ten steps, queries are kept every ten: six measurements and six moments
SMALL: dict[str, Any] = {
    "data": {"options": {"train": 32, "val": 16, "test": 2}},
    "train": {"steps": 60, "batch_size": 2, "learning_rate": 4e-3, "warmup": 5, "clip_norm": 1.0, "evaluate_every": 10,
              "checkpoint_every": 60, "class_weight": 2.5},
}  # fmt: skip
# what the teacher says of the data is known after the first evaluation
TEACHER_ONLY: dict[str, Any] = {"train": {"steps": 1}}


def small_run(
    root: Path,
    name: str,
    *changes: dict[str, Any],
    spoil: Callable[[Setup], None] | None = None,
    guarded: bool = True,
    student: str | None = None,
) -> Run:
    """Trains for 60 steps unless told otherwise.

    Args:
        root: folder of runs.
        name: of the run.
        changes: merged into the recipe, which distils.
        spoil: called on what the recipe builds, before training.
        guarded: False: the teacher is not tried before training, which refuses one that teaches nothing.
        student: checkpoint that the student starts from.
    """

    def spoiled(*arguments: Any) -> Setup:
        setup = build(*arguments)
        if spoil is not None:
            spoil(setup)
        return setup

    with runs_in(root), pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "build", spoiled)
        if not guarded:
            patch.setattr(launch, "check_teacher", lambda setup: 0.0)
        recipe = tiny_recipe(DISTILLED, SMALL, *changes)
        if student is not None:
            recipe = recipe.model_copy(update={"student": CheckpointConfig(checkpoint=student)})
        return launch.start(recipe, launch.Launch(name, device="cpu"), Silent())
