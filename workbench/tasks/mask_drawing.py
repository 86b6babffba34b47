"""Draws masks over an image: a light fill under a thin outline, so that what lies below stays visible."""

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageColor

_FILL = 0.28  # share of the colour in a filled pixel


def with_masks(image: np.ndarray, masks: Iterable[tuple[np.ndarray, str]]) -> np.ndarray:
    """Returns an image with masks drawn over it, the first at the bottom.

    Args:
        image: ``[H, W, 3]`` uint8, which stays as it is.
        masks: pixels ``[H, W]`` bool or of a smaller image that this one enlarges, and colour of each, as ``#RRGGBB``.
    """
    height, width = image.shape[:2]
    drawn = image.copy()
    for pixels, name in masks:
        colour = np.array(ImageColor.getrgb(name), np.float32)
        if pixels.shape != (height, width):
            pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST))
        drawn[pixels] = (drawn[pixels] * (1 - _FILL) + colour * _FILL).astype(np.uint8)
        drawn[outline(pixels, max(1, max(height, width) // 400))] = colour.astype(np.uint8)
    return drawn


def outline(pixels: np.ndarray, line: int = 1) -> np.ndarray:
    """Returns the pixels ``[H, W]`` bool of a mask from which ``line`` steps up, down, left or right lead out of it, or of the image."""
    inner = pixels
    for _ in range(line):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return pixels & ~inner
