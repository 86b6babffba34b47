"""Selection masks as they are kept: a byte a cell, with a scale and an offset for each mask."""

import numpy as np


def quantise(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks ``[..., H, W]`` as uint8, and the scale and offset ``[...]`` float64 of each: ``value = offset + scale * stored``.

    What ``restore`` gives is off by half a 255th of a mask's range at most. NaN and infinity are the caller's to find: in the masks, or
    in scale and offset.
    """
    values = np.asarray(masks, np.float64)
    with np.errstate(invalid="ignore"):
        low, high = values.min((-2, -1)), values.max((-2, -1))
        scale = (high - low) / 255
        steps = (values - low[..., None, None]) / np.where(scale > 0, scale, 1.0)[..., None, None]
        return np.rint(steps).astype(np.uint8, order="C"), scale, low


def restore(stored: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """``[..., H, W]`` float32 of what ``quantise`` gave."""
    return np.asarray(offset, np.float32)[..., None, None] + np.asarray(scale, np.float32)[..., None, None] * stored
