"""Puts predicted masks into the image: each is resized to its box, cut at one half, and kept compressed."""

from collections.abc import Iterator

import numpy as np
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from workbench.datasets.object_masks import encoded

CUT = 0.5  # probability above which a pixel belongs to the mask
_PIXELS = 1 << 24  # that are pasted at a time, 64 MiB of float32, because the masks of a large image together take gigabytes


def pasted(masks: Tensor, boxes: Tensor, height: int, width: int) -> tuple[bytes, ...]:
    """Returns COCO's compressed RLE of masks in an image.

    Args:
        masks: ``[K, M, M]`` probabilities in the box.
        boxes: ``[K, 4]`` xyxy in pixels of the image, inside it.
        height: height of the image.
        width: width of the image.
    """
    return tuple(counts for pixels in _pieces(masks, boxes, height, width) for counts in encoded(pixels))


def _pieces(masks: Tensor, boxes: Tensor, height: int, width: int) -> Iterator[np.ndarray]:
    """Yields ``[K, H, W]`` bool for some of the masks at a time."""
    at_once = max(1, _PIXELS // (height * width))
    for first in range(0, len(masks), at_once):
        part = slice(first, first + at_once)
        yield (paste_masks_in_image(masks[part, None], boxes[part], (height, width))[:, 0] > CUT).numpy()
