"""Stores selection masks with one byte per cell, and a scale and an offset per mask."""

import numpy as np


def quantise(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns masks ``[..., H, W]`` as uint8, and float64 scale and offset ``[...]`` of each: ``value = offset + scale * stored``.

    The error of ``restore`` is at most half a 255th of a mask's range. The caller must look for NaN and infinity, in the masks or in scale
    and offset.
    """
    values = np.asarray(masks, np.float64)
    with np.errstate(invalid="ignore"):
        low, high = values.min((-2, -1)), values.max((-2, -1))
        scale = (high - low) / 255
        steps = (values - low[..., None, None]) / np.where(scale > 0, scale, 1.0)[..., None, None]
        return np.rint(steps).astype(np.uint8, order="C"), scale, low


def restore(stored: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Returns the float32 ``[..., H, W]`` masks that ``quantise`` stored."""
    return np.asarray(offset, np.float32)[..., None, None] + np.asarray(scale, np.float32)[..., None, None] * stored
