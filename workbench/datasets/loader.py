"""Batches. A training batch is a pure function of (seed, step), so resuming needs no sampler state.

Nothing here reads or changes torch's global random state.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from workbench.datasets.base import Dataset
from workbench.datasets.transforms import Op, Sample, Transform, TransformConfig
from workbench.datasets.variants import Variants
from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    # imported for real it would close a circle: the cache is made from batches
    from workbench.cache.teacher.answers import Answers

_ORDER, _AUGMENT = 0, 1  # keep the two random streams of a seed apart


@dataclass(frozen=True)
class Targets:
    """The G targets of one image after the transform, in file order.

    Attributes:
        boxes: ``[G, 4]`` float32 cxcywh in 0..1 of the un-padded image.
        labels: ``[G]`` int64; -1 where an ignore region has no class.
        valid: ``[G]`` bool: may be matched (not crowd, not ignore, not cropped away).
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Batch:
    """B images and their targets.

    Attributes:
        images: ``[B, 3, H, W]`` float32, normalised; 0 where there is padding, which is at the right and bottom.
        padding: ``[B, H, W]`` bool, True = padding.
        targets: one per image.
        image_ids: of the dataset's records.
        sizes: ``[B, 2]`` int64, height and width in pixels before any transform; always on the CPU.
        ops: what the transform did to each image.
        answers: of the teacher to these pictures, where they come from a cache.
    """

    images: Tensor
    padding: Tensor
    targets: tuple[Targets, ...]
    image_ids: tuple[int, ...]
    sizes: Tensor
    ops: tuple[list[Op], ...]
    answers: "Answers | None" = None

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with images, padding, targets and answers on ``device``."""
        targets = tuple(Targets(t.boxes.to(device), t.labels.to(device), t.valid.to(device)) for t in self.targets)
        answers = self.answers.to(device) if self.answers is not None else None
        return Batch(self.images.to(device), self.padding.to(device), targets, self.image_ids, self.sizes, self.ops, answers)

    def part(self, first: int, end: int) -> "Batch":
        """Images ``first`` to ``end - 1``."""
        cut = slice(first, end)
        return Batch(self.images[cut], self.padding[cut], self.targets[cut], self.image_ids[cut], self.sizes[cut], self.ops[cut],
                     self.answers[cut] if self.answers is not None else None)  # fmt: skip


class TrainLoader:
    """Endless augmented training batches.

    An epoch is a permutation of the dataset, filled up from its own beginning to a whole number of batches, so every
    image is seen in every epoch. All ranks share the permutation and take disjoint parts of each global batch.

    Args:
        dataset: what to load.
        transform: how to prepare it.
        batch_size: images per batch of one rank.
        seed: of order and augmentation.
        workers: processes that prepare batches ahead; 0 prepares them in this one. The batches do not depend on it.
        rank: of this process.
        world: number of processes.
        variants: draw these in their turn, in place of ever new augmentations.
        answers: gives what a teacher said of images (by position) in a variant (by number), whose ops it is told to make sure.
    """

    def __init__(self, dataset: Dataset, transform: Transform, batch_size: int, seed: int, workers: int = 0, rank: int = 0,
                 world: int = 1, variants: Variants | None = None,
                 answers: "Callable[[Sequence[int], int, Sequence[list[Op]]], Answers] | None" = None):
        self._dataset = dataset
        self._transform = transform
        self._batch_size = batch_size
        self._seed = seed
        self._workers = workers
        self._rank = rank
        self._world = world
        self._variants = variants
        self._answers = answers
        self.steps_per_epoch = -(-len(dataset) // (batch_size * world))

    def batch(self, step: int) -> Batch:
        """The batch of ``step`` (0-based).

        Raises:
            DataError: an image cannot be decoded; the message names the file.
            CacheError: the teacher's answer to an image cannot be read.
        """
        epoch, within = divmod(step, self.steps_per_epoch)
        order = _epoch_order(self._seed, epoch, len(self._dataset))
        first = (within * self._world + self._rank) * self._batch_size
        indices = [int(order[position % len(order)]) for position in range(first, first + self._batch_size)]
        if self._variants is not None:
            variant = self._variants.of_epoch(epoch)
            batch = variant_batch(self._variants, indices, [variant] * len(indices))
            return replace(batch, answers=self._answers(indices, variant, batch.ops)) if self._answers is not None else batch
        samples = []
        for index in indices:
            record = self._dataset.records[index]
            rng = np.random.Generator(np.random.PCG64((self._seed, _AUGMENT, epoch, index)))
            ops = self._transform.draw(rng, record.width, record.height)
            samples.append(self._transform.apply(self._dataset.image(index), record, ops))
        return _collate(self._dataset, indices, samples, self._transform.config)

    def iterate(self, start: int) -> Iterator[Batch]:
        """Batches of ``start``, ``start + 1``, ... without end.

        Raises:
            DataError: as ``batch``.
        """
        if self._workers == 0:
            yield from map(self.batch, itertools.count(start))
            return
        # A generator of its own keeps DataLoader from drawing from torch's global one.
        steps: Any = itertools.count(start)
        loader = DataLoader(_Steps(self), batch_size=None, sampler=steps, num_workers=self._workers, collate_fn=_unchanged,
                            generator=torch.Generator())
        for batch in loader:
            if isinstance(batch, WorkbenchError):
                raise batch
            yield batch


class _Steps(TorchDataset):
    """Step -> batch, as torch's worker processes want it."""

    def __init__(self, loader: TrainLoader):
        self._loader = loader

    def __getitem__(self, step: int) -> Batch | WorkbenchError:
        try:
            return self._loader.batch(step)
        except WorkbenchError as error:  # handed over, because torch would put a traceback into the message
            return error


def variant_batch(variants: Variants, indices: Sequence[int], numbers: Sequence[int]) -> Batch:
    """Images in given variants, padded to the size that all variants share.

    Args:
        variants: of a dataset.
        indices: images by position.
        numbers: the variant of each.

    Raises:
        DataError: an image cannot be decoded; the message names the file.
    """
    dataset, transform = variants.dataset, variants.transform
    samples = [
        transform.apply(dataset.image(index), dataset.records[index], variants.ops(index, number))
        for index, number in zip(indices, numbers, strict=True)
    ]
    return _collate(dataset, indices, samples, transform.config, variants.canvas)


def evaluation_batches(dataset: Dataset, transform: Transform, batch_size: int, indices: Sequence[int] | None = None) -> Iterator[Batch]:
    """Un-augmented batches in order; the last may be smaller.

    Args:
        dataset: what to load.
        transform: only its resizing is used.
        batch_size: images per batch.
        indices: which records; None means all.

    Raises:
        DataError: an image cannot be decoded; the message names the file.
    """
    chosen = range(len(dataset)) if indices is None else indices
    for first in range(0, len(chosen), batch_size):
        part = list(chosen[first:first + batch_size])
        samples = []
        for index in part:
            record = dataset.records[index]
            samples.append(transform.apply(dataset.image(index), record, transform.evaluation_ops(record.width, record.height)))
        yield _collate(dataset, part, samples, transform.config)


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64((seed, _ORDER, epoch))).permutation(count)


def _collate(
    dataset: Dataset, indices: Sequence[int], samples: Sequence[Sample], config: TransformConfig, canvas: tuple[int, int] | None = None
) -> Batch:
    height, width = canvas or (max(s.image.shape[axis] for s in samples) for axis in (0, 1))
    pixels = np.zeros((len(samples), height, width, 3), np.uint8)
    padding = torch.zeros(len(samples), height, width, dtype=torch.bool)
    for i, sample in enumerate(samples):
        h, w = sample.image.shape[:2]
        pixels[i, :h, :w] = sample.image
        padding[i, h:] = True
        padding[i, :, w:] = True
    mean, std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (config.mean, config.std))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    images.div_(255 * std).sub_(mean / std).masked_fill_(padding[:, None], 0)
    records = [dataset.records[index] for index in indices]
    targets = tuple(Targets(torch.from_numpy(s.boxes), torch.tensor(s.labels), torch.tensor(s.valid)) for s in samples)
    return Batch(images, padding, targets, tuple(r.image_id for r in records),
                 torch.tensor([[r.height, r.width] for r in records], dtype=torch.int64), tuple(s.ops for s in samples))


def _unchanged(batch: Any) -> Any:
    return batch
