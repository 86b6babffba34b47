"""Training batches. A batch is a pure function of (seed, step), so resuming needs no sampler state.

This module neither reads nor changes torch's global random state.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from workbench.datasets.base import Dataset
from workbench.datasets.batches import Batch, collate, variant_batch
from workbench.datasets.transforms import Op, Transform
from workbench.datasets.variants import Variants
from workbench.errors import RunError, WorkbenchError
from workbench.teacher_cache.cached_outputs import CachedTeacherOutputs

BATCH_SECONDS = 600  # the longest that a worker process may take for a batch
END_SECONDS = 5  # the longest between the last word of a worker process and the signal of its end
LOOK_SECONDS = 5  # between two looks whether the worker processes live
_TIMED_OUT = "DataLoader timed out"
_ORDER, _AUGMENT = 0, 1  # keep the two random streams of a seed apart
ReadTeacher = Callable[[Sequence[int], int, Sequence[list[Op]]], CachedTeacherOutputs]


@dataclass(frozen=True)
class TrainBatch(Batch):
    """A batch of training images, with the teacher's outputs for them when they come from a cache.

    Attributes:
        teacher: The teacher's cached outputs; None if the live teacher is asked or there is no teacher.
    """

    teacher: CachedTeacherOutputs | None = None

    @classmethod
    def of(cls, batch: Batch, teacher: CachedTeacherOutputs | None = None) -> Self:
        """Adds the teacher's outputs to a batch."""
        return cls(batch.images, batch.padding, batch.targets, batch.image_ids, batch.sizes, batch.ops, teacher)

    def to(self, device: torch.device | str) -> Self:
        """Returns the same batch on ``device``, the teacher's outputs included."""
        return replace(super().to(device), teacher=None if self.teacher is None else self.teacher.to(device))

    def part(self, first: int, end: int) -> Self:
        """Returns images ``first`` to ``end - 1``."""
        return replace(super().part(first, end), teacher=None if self.teacher is None else self.teacher[first:end])


class TrainLoader:
    """Endless augmented training batches.

    An epoch is a permutation of the dataset. It is padded with images from its own beginning to a whole number of batches, so every
    image is seen in every epoch. All ranks share the permutation and take disjoint parts of each global batch.

    Args:
        dataset: images to load.
        transform: how to prepare an image.
        batch_size: images per batch of one rank.
        seed: seed of order and augmentation.
        workers: number of processes that prepare batches ahead; with 0 this process prepares them. The batches do not depend on it.
        rank: rank of this process.
        world: number of processes.
        variants: fixed augmented variants to cycle through, in place of ever new augmentations.
        read_teacher: reads the teacher's cached outputs for images (by position) in a variant (by number). It receives the images' ops,
            to check that they are those of the cache.
        positions: positions of the images that are loaded; None loads all. Augmentations, variants and cached outputs of an image do not
            depend on which others are loaded.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: Transform,
        batch_size: int,
        seed: int,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        variants: Variants | None = None,
        read_teacher: ReadTeacher | None = None,
        positions: Sequence[int] | None = None,
    ):
        self._dataset = dataset
        self._transform = transform
        self._batch_size = batch_size
        self._seed = seed
        self._workers = workers
        self._rank = rank
        self._world = world
        self._variants = variants
        self._read_teacher = read_teacher
        self._positions = range(len(dataset)) if positions is None else positions
        self.steps_per_epoch = -(-len(self._positions) // (batch_size * world))

    def batch(self, step: int) -> TrainBatch:
        """Returns the batch of ``step`` (0-based).

        Raises:
            DataError: an image cannot be decoded; the message names the file.
            CacheError: the teacher's cached outputs for an image cannot be read.
        """
        epoch, within = divmod(step, self.steps_per_epoch)
        order = _epoch_order(self._seed, epoch, len(self._positions))
        first = (within * self._world + self._rank) * self._batch_size
        indices = [self._positions[int(order[place % len(order)])] for place in range(first, first + self._batch_size)]
        if self._variants is not None:
            variant = self._variants.of_epoch(epoch)
            batch = variant_batch(self._variants, indices, [variant] * len(indices))
            return TrainBatch.of(batch, self._read_teacher(indices, variant, batch.ops) if self._read_teacher is not None else None)
        samples = []
        for index in indices:
            record = self._dataset.records[index]
            rng = np.random.Generator(np.random.PCG64((self._seed, _AUGMENT, epoch, index)))
            ops = self._transform.draw(rng, record.width, record.height)
            samples.append(self._transform.apply(self._dataset.image(index), record, ops))
        return TrainBatch.of(collate(self._dataset, indices, samples, self._transform.config))

    def iterate(self, start: int) -> Iterator[TrainBatch]:
        """Yields the batches of ``start``, ``start + 1``, ... without end.

        Raises:
            DataError: see ``batch``.
        """
        if self._workers == 0:
            yield from map(self.batch, itertools.count(start))
            return
        # A separate generator keeps DataLoader from drawing from torch's global one.
        steps: Any = itertools.count(start)
        loader = DataLoader(
            _Steps(self), batch_size=None, sampler=steps, num_workers=self._workers, collate_fn=_unchanged, generator=torch.Generator(),
            timeout=LOOK_SECONDS,
        )  # fmt: skip
        batches = iter(loader)
        while True:
            batch = _next(batches)
            if isinstance(batch, WorkbenchError):
                raise batch
            yield batch


def worker_lost(error: RuntimeError, step: int) -> RunError | None:
    """Returns the message about a worker process that has ended or hangs; None if torch says something else.

    Torch raises its error wherever the training process happens to be, so whoever trains asks this.

    Args:
        error: what was raised.
        step: last step that was done.
    """
    said = str(error)
    if not said.startswith("DataLoader"):
        return None
    why = f"has made no batch for {BATCH_SECONDS} s" if _TIMED_OUT in said else f"has ended: {said.splitlines()[0]}"
    return RunError(
        f"after step {step} a process that loads data {why}. The system ends processes where memory is short. Resume the run, or start one "
        "with fewer train.workers."
    )


def _next(batches: Iterator[Any]) -> Any:
    """Returns the next batch of worker processes.

    Torch raises the error about a process that has ended once, in the signal of its end. That may come while code runs whose errors nobody
    sees, such as a destructor. So torch waits for short times here: after each it looks at the processes themselves.

    Raises:
        RuntimeError: a worker process has ended, or has made no batch for ``BATCH_SECONDS``; torch's error, which ``worker_lost`` reads.
    """
    began = time.monotonic()
    while True:
        try:
            return next(batches)
        except (ConnectionError, EOFError) as error:
            # A process that is killed closes its sockets before the signal of its end arrives, in which torch raises an error that says
            # more.
            time.sleep(END_SECONDS)
            raise RuntimeError(f"DataLoader's worker process closed its connection: {error}") from error
        except RuntimeError as error:
            if _TIMED_OUT not in str(error) or time.monotonic() - began > BATCH_SECONDS:
                raise


class _Steps(TorchDataset):
    """Maps a step to its batch, as a dataset for torch's worker processes."""

    def __init__(self, loader: TrainLoader):
        self._loader = loader

    def __getitem__(self, step: int) -> TrainBatch | WorkbenchError:
        try:
            return self._loader.batch(step)
        except WorkbenchError as error:  # returned, because torch would put a traceback into the message
            return error


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64((seed, _ORDER, epoch))).permutation(count)


def _unchanged(batch: Any) -> Any:
    return batch
