"""Makes a fixed number of augmentations of every image, so that a teacher's output for each can be stored."""

from functools import cached_property

import numpy as np

from workbench.datasets.base import Dataset
from workbench.datasets.transforms import Op, Transform, fixed_size, size_after

_VARIANTS = 2  # keeps this random stream separate from those of the loader


class Variants:
    """K augmentations of every image, drawn from (image, variant) alone, so that runs of every seed and arm see the same images.

    All are padded to one size, because padding changes a teacher's logits. Any of them can therefore share a batch with any other and still
    be the image that the teacher's output belongs to.

    Args:
        dataset: the images.
        transform: transform that draws the operations.
        count: K, number of variants per image.
    """

    def __init__(self, dataset: Dataset, transform: Transform, count: int):
        self.dataset = dataset
        self.transform = transform
        self.count = count

    def ops(self, index: int, variant: int) -> list[Op]:
        """Returns the operations of variant ``variant`` of image ``index``, both counted from 0."""
        record = self.dataset.records[index]
        rng = np.random.Generator(np.random.PCG64((_VARIANTS, index, variant)))
        return self.transform.draw(rng, record.width, record.height)

    def of_epoch(self, epoch: int) -> int:
        """Returns the variant of every image that an epoch uses. Epochs take the variants in turn."""
        return epoch % self.count

    @cached_property
    def canvas(self) -> tuple[int, int]:
        """Returns (height, width) that every variant is padded to, the largest of all."""
        records = self.dataset.records
        fixed = fixed_size(self.transform.config, ((record.width, record.height) for record in records), training=True)
        if fixed is not None:
            return fixed[1], fixed[0]
        width, height = 1, 1
        for index in range(len(records)):
            for variant in range(self.count):
                size = records[index].width, records[index].height
                for op in self.ops(index, variant):
                    size = size_after(op, *size)
                width, height = max(width, size[0]), max(height, size[1])
        return height, width
