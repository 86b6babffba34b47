"""Measures how long training and evaluating a recipe take on this machine, on a few batches of its own data."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from workbench.recipe.schema import Recipe
from workbench.recipe.setup import build
from workbench.teacher_cache.read import open_cache
from workbench.training.launch import checkpoint_bytes
from workbench.training.learner import Learner
from workbench.training.processes import init_processes

COLD = 2  # steps that are not counted: the first ones allocate memory, and choose algorithms on a GPU
LEAST, ENOUGH_SECONDS = 4, 3.0
MOST_SECONDS = 20.0  # after that one warm step must do
BUSY = 1.5  # wall time over processor time, above which something else slows the machine

Clock = Callable[[], tuple[float, float]]


@dataclass(frozen=True)
class Pace:
    """How fast a recipe is.

    Attributes:
        step: Wall seconds of an optimiser step; a budget is wall time.
        image: Wall seconds of evaluating one image.
        evaluated: Number of validation images.
        tested: Number of test images.
        epoch: Steps of an epoch.
        processor: Process seconds of an optimiser step, which other work on the machine hardly changes; 0 if it runs on a GPU.
        checkpoints: Bytes that the checkpoints of a run take.
    """

    step: float
    image: float
    evaluated: int
    tested: int
    epoch: int
    processor: float = 0.0
    checkpoints: int = 0

    @property
    def work(self) -> float:
        """Seconds of a step that two recipes are compared by: process seconds if they are known, else wall seconds."""
        return self.processor or self.step

    @property
    def waits(self) -> bool:
        """True if most of a step's time is not its own work."""
        return self.step > BUSY * self.processor > 0

    def __str__(self) -> str:
        return f"{self.step:.3g} s a step" + (f" ({self.processor:.3g} s on the processor)" if self.waits else "")


class _Timed(Learner):
    """Takes a few steps."""

    def seconds_per_step(self) -> tuple[float, float]:
        """Returns wall and process seconds of a warm step."""
        self.term_weights = self._balance()
        device, batches = self.accelerator.device, enumerate(self.loader.iterate(0))

        def step() -> None:
            number, batch = next(batches)
            self._train_step(batch.to(device), number, False)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        wall, processor = warm_seconds(step)
        return wall, 0.0 if device.type == "cuda" else processor


def warm_seconds(step: Callable[[], None], clock: Clock = lambda: (time.perf_counter(), time.process_time())) -> tuple[float, float]:
    """Returns the median seconds of steps that follow the first ones, by each of two clocks.

    It takes ``LEAST`` warm steps or more, for ``ENOUGH_SECONDS``. Where steps are slow it takes fewer: after ``MOST_SECONDS`` in all one
    warm step is enough.

    Args:
        step: takes one step.
        clock: returns wall seconds and process seconds.
    """
    start = clock()
    for _ in range(COLD):
        step()
        if clock()[0] - start[0] > MOST_SECONDS:
            break
    warm: list[tuple[float, float]] = []
    began = last = clock()
    while True:
        step()
        now = clock()
        warm.append((now[0] - last[0], now[1] - last[1]))
        last = now
        if now[0] - start[0] > MOST_SECONDS or (len(warm) >= LEAST and now[0] - began[0] > ENOUGH_SECONDS):
            return statistics.median(wall for wall, _ in warm), statistics.median(process for _, process in warm)


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
    step, processor = _Timed(setup, device, open_cache(setup) if teacher is not None else None).seconds_per_step()
    # a forward pass is about a third of a step; reading detections and tables out takes about as long again
    image = 0.7 * step / recipe.train.batch_size
    epoch = -(-len(setup.train) // recipe.train.batch_size)
    return Pace(step, image, len(setup.val), len(setup.test or ()), epoch, processor, checkpoint_bytes(setup))
