"""Measures how long training and evaluating a recipe take on this machine, on a few batches of its own data."""

import time
from dataclasses import dataclass

import torch

from workbench.recipe.schema import Recipe
from workbench.recipe.setup import build
from workbench.teacher_cache.read import open_cache
from workbench.training.learner import Learner
from workbench.training.processes import init_processes

WARM, LEAST, ENOUGH_SECONDS = 2, 4, 3.0


@dataclass(frozen=True)
class Pace:
    """How fast a recipe is.

    Attributes:
        step: Seconds of an optimiser step.
        image: Seconds of evaluating one image.
        evaluated: Number of validation images.
        tested: Number of test images.
        epoch: Steps of an epoch.
    """

    step: float
    image: float
    evaluated: int
    tested: int
    epoch: int


class _Timed(Learner):
    """Takes a few steps."""

    def seconds_per_step(self) -> float:
        self.term_weights = self._balance()
        batches = self.loader.iterate(0)
        taken, start = 0, 0.0
        for number in range(WARM + 1000):
            if number == WARM:
                start = time.perf_counter()
            self._train_step(next(batches).to(self.accelerator.device), number, False)
            taken = number + 1 - WARM
            if taken >= LEAST and time.perf_counter() - start > ENOUGH_SECONDS:
                break
        return (time.perf_counter() - start) / taken


def measure(recipe: Recipe, device: str, teacher: str | None = None) -> Pace:
    """Trains a recipe for a few steps; nothing is kept.

    Args:
        recipe: a validated recipe whose data is there.
        device: see ``Launch``.
        teacher: the detector that teaches, out of the cache if the recipe has one; None leaves the methods out.

    Raises:
        WorkbenchError: a problem that would stop the run at its start.
    """
    if str(init_processes(device).device) == "cpu":
        torch.set_num_threads(1)  # as a run does
    if teacher is None:
        recipe = recipe.model_copy(update={"methods": (), "teacher": None, "cache": None})
    setup = build(recipe, teacher, record_teacher=False)
    step = _Timed(setup, device, open_cache(setup) if teacher is not None else None).seconds_per_step()
    # a forward pass is about a third of a step; reading detections and tables out takes about as long again
    image = 0.7 * step / recipe.train.batch_size
    return Pace(step, image, len(setup.val), len(setup.test or ()), -(-len(setup.train) // recipe.train.batch_size))
