"""Makes batches of images and targets: collated from samples, in order for evaluation, or in given variants."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from workbench.datasets.base import Dataset
from workbench.datasets.targets import TargetBatch, Targets, copied
from workbench.datasets.transforms import Op, Sample, Transform, TransformConfig
from workbench.datasets.variants import Variants


@dataclass(frozen=True)
class Batch:
    """A batch of B images and their targets.

    Attributes:
        images: ``[B, 3, H, W]`` float32, normalised; 0 in the padding at the right and bottom.
        padding: ``[B, H, W]`` bool, True for padding.
        targets: Targets of all images, padded to the largest number.
        image_ids: Ids of the dataset's records.
        sizes: ``[B, 2]`` int64, height and width in pixels before any transform; always on the CPU.
        ops: Operations that the transform applied to each image.
    """

    images: Tensor
    padding: Tensor
    targets: TargetBatch
    image_ids: tuple[int, ...]
    sizes: Tensor
    ops: tuple[list[Op], ...]

    def to(self, device: torch.device | str) -> Self:
        """Returns the same batch with images, padding and targets on ``device``. A copy to a GPU runs beside what the host does next."""
        return replace(self, images=copied(self.images, device), padding=copied(self.padding, device), targets=self.targets.to(device))

    def part(self, first: int, end: int) -> Self:
        """Returns images ``first`` to ``end - 1``."""
        cut = slice(first, end)
        return replace(
            self,
            images=self.images[cut],
            padding=self.padding[cut],
            targets=self.targets[cut],
            image_ids=self.image_ids[cut],
            sizes=self.sizes[cut],
            ops=self.ops[cut],
        )


def variant_batch(variants: Variants, indices: Sequence[int], numbers: Sequence[int]) -> Batch:
    """Makes a batch of images in given variants, padded to the size that all variants share.

    Args:
        variants: variants of a dataset.
        indices: positions of the images.
        numbers: variant of each image.

    Raises:
        DataError: an image cannot be decoded; the message names the file.
    """
    dataset, transform = variants.dataset, variants.transform
    samples = [
        transform.apply(dataset.image(index), dataset.records[index], variants.ops(index, number))
        for index, number in zip(indices, numbers, strict=True)
    ]
    return collate(dataset, indices, samples, transform.config, variants.canvas)


def evaluation_batches(dataset: Dataset, transform: Transform, batch_size: int, indices: Sequence[int] | None = None) -> Iterator[Batch]:
    """Yields batches without augmentation, in order. The last one may be smaller.

    Args:
        dataset: dataset to load.
        transform: transform of which only the resizing is used.
        batch_size: images per batch.
        indices: positions of the records; None takes all.

    Raises:
        DataError: an image cannot be decoded; the message names the file.
    """
    chosen = range(len(dataset)) if indices is None else indices
    for first in range(0, len(chosen), batch_size):
        part = list(chosen[first : first + batch_size])
        samples = []
        for index in part:
            record = dataset.records[index]
            samples.append(transform.apply(dataset.image(index), record, transform.evaluation_ops(record.width, record.height)))
        yield collate(dataset, part, samples, transform.config)


def collate(
    dataset: Dataset, indices: Sequence[int], samples: Sequence[Sample], config: TransformConfig, canvas: tuple[int, int] | None = None
) -> Batch:
    """Puts transformed images into one batch, padded at the right and bottom, and normalises them.

    Args:
        dataset: dataset that the images belong to.
        indices: positions of its records, one per sample.
        samples: results of the transform.
        config: configuration of the transform, with mean and std.
        canvas: (height, width) to pad to; None takes those of the largest image.
    """
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
    targets = TargetBatch.of([_targets(sample) for sample in samples])
    return Batch(
        images,
        padding,
        targets,
        tuple(r.image_id for r in records),
        torch.tensor([[r.height, r.width] for r in records], dtype=torch.int64),
        tuple(s.ops for s in samples),
    )


def _targets(sample: Sample) -> Targets:
    masks = None if sample.masks is None else torch.from_numpy(sample.masks)
    return Targets(torch.from_numpy(sample.boxes), torch.tensor(sample.labels), torch.tensor(sample.valid), masks)
