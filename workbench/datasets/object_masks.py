"""Holds the masks of an image's targets as COCO's compressed RLE, and makes them of polygons, of COCO's RLE and of images of objects.

What a file says is checked before pycocotools sees it, because its C code believes sizes and allocates what an outline asks for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from PIL import Image

from workbench.errors import DataError
from workbench.files import time_of

_coco: Any = pycocotools.mask  # its hints know one RLE where it takes lists of them

MOST_POINTS = 20_000  # of all polygons of one target; COCO's longest outlines have a few thousand
MOST_OUTLINE = 1_000_000  # pixels of outline of one target, because drawing one takes memory for each of them
_LONGEST_VALUE = 7  # characters of one run: five bits each, 32 together


class BrokenMaskError(DataError):
    """A mask cannot be read; the message says why."""


@dataclass(frozen=True)
class ObjectNumber:
    """A mask that is the pixels of one value in an image of object numbers, as Pascal VOC keeps them.

    Attributes:
        path: The image.
        number: The value, counted from 1.
    """

    path: Path
    number: int


@dataclass(frozen=True, eq=False)
class Masks:
    """The masks of the G targets of one image, compressed.

    Attributes:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        counts: COCO's compressed RLE of each target; None for a target without a mask.
        areas: ``[G]`` float64 square pixels: the file's own area if it has one, else the number of the mask's pixels.
    """

    height: int
    width: int
    counts: tuple[bytes | None, ...]
    areas: np.ndarray

    @property
    def has_any(self) -> bool:
        """Returns True if a target has a mask."""
        return any(counts is not None for counts in self.counts)

    def rle(self, target: int) -> dict[str, Any] | None:
        """Returns a target's mask as COCO's JSON holds it, ``{"size": [height, width], "counts": text}``; None without a mask."""
        counts = self.counts[target]
        return None if counts is None else {"size": [self.height, self.width], "counts": counts.decode("ascii")}

    def arrays(self) -> np.ndarray:
        """Returns the pixels ``[G, H, W]`` bool; nothing is set for a target without a mask."""
        pixels = np.zeros((len(self.counts), self.height, self.width), bool)
        for target, counts in enumerate(self.counts):
            if counts is not None:
                pixels[target] = decoded(counts, self.height, self.width)
        return pixels

    def boxes(self) -> np.ndarray:
        """Returns the boxes around the pixels ``[G, 4]`` float64 xyxy; 0 for a mask without a pixel and for a target without one."""
        boxes = np.zeros((len(self.counts), 4))
        for target, counts in enumerate(self.counts):
            if counts is not None:
                boxes[target] = _coco.toBbox({"size": [self.height, self.width], "counts": counts})
        return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def encoded(pixels: np.ndarray) -> tuple[bytes, ...]:
    """Returns the compressed RLE of masks ``[G, H, W]`` of bool."""
    if not len(pixels):
        return ()
    return tuple(rle["counts"] for rle in _coco.encode(np.asfortranarray(pixels.transpose(1, 2, 0).astype(np.uint8))))


def decoded(counts: bytes, height: int, width: int) -> np.ndarray:
    """Returns the pixels ``[H, W]`` bool of an RLE that ``encoded`` or ``read_mask`` returned."""
    return _coco.decode({"size": [height, width], "counts": counts}).astype(bool)


def area_of(counts: bytes | str, height: int, width: int) -> float:
    """Returns the number of a mask's pixels. pycocotools would take lists, but refuses those of more than 255 masks."""
    return float(_coco.area({"size": [height, width], "counts": counts}))


def masks_of(pixels: np.ndarray) -> Masks:
    """Returns masks ``[G, H, W]`` of bool, compressed."""
    areas = pixels.sum((1, 2)).astype(np.float64)
    return Masks(pixels.shape[1], pixels.shape[2], encoded(pixels), areas)


def read_masks(sources: Sequence[Any], own_areas: np.ndarray, height: int, width: int) -> tuple[Masks, list[tuple[int, str]]]:
    """Reads the masks of an image.

    Args:
        sources: what the file says of each target's mask, as ``read_mask`` takes it.
        own_areas: ``[G]`` the file's own areas, NaN where it has none.
        height: height of the image in pixels.
        width: width of the image in pixels.

    Returns:
        The masks, and number and reason of each that cannot be read and is left out.
    """
    counts: list[bytes | None] = []
    broken: list[tuple[int, str]] = []
    for target, source in enumerate(sources):
        try:
            counts.append(read_mask(source, height, width))
        except BrokenMaskError as error:
            counts.append(None)
            broken.append((target, str(error)))
    pixels = np.array([0.0 if one is None else area_of(one, height, width) for one in counts])
    areas = np.where(np.isfinite(own_areas) & (own_areas > 0), own_areas, pixels)
    return Masks(height, width, tuple(counts), areas), broken


def read_mask(source: Any, height: int, width: int) -> bytes | None:
    """Returns the compressed RLE of a mask; None if the file says nothing about it.

    Args:
        source: polygons in pixels (lists of x, y, x, y, ...), COCO's RLE with counts as a list or as text, or an ``ObjectNumber``.
        height: height of the image in pixels.
        width: width of the image in pixels.

    Raises:
        BrokenMaskError: it is none of these, lies about its size, or is beyond ``MOST_POINTS`` or ``MOST_OUTLINE``.
    """
    if source is None or (isinstance(source, list) and not source):
        return None
    if isinstance(source, ObjectNumber):
        if not source.path.is_file():
            return None
        numbers = _object_image(source.path, time_of(source.path))
        if numbers.shape != (height, width):
            raise BrokenMaskError(f"{source.path.name} is {numbers.shape[1]}x{numbers.shape[0]}, its image is {width}x{height}")
        return encoded((numbers == source.number)[None])[0]
    if isinstance(source, dict):
        return _of_rle(source, height, width)
    polygons = list(polygons_of(source))
    _check_outline(polygons)
    rles = _coco.frPyObjects([polygon.ravel().tolist() for polygon in polygons], height, width)
    return _coco.merge(rles)["counts"]


def in_pixels(source: Any, width: int, height: int) -> Any:
    """Returns polygons of shares of the image's width and height as polygons of pixels; another source stays as it is."""
    if not isinstance(source, list):
        return source
    return [(np.array(part, np.float64).reshape(-1, 2) * (width, height)).ravel().tolist() for part in source]


def polygons_of(source: Any) -> Iterator[np.ndarray]:
    """Yields the polygons of a source as ``[P, 2]`` float64 x and y.

    Raises:
        BrokenMaskError: it is no list of polygons with at least three points each, or has more than ``MOST_POINTS`` points.
    """
    if not isinstance(source, list) or not all(isinstance(part, list) for part in source):
        raise BrokenMaskError("it is neither a list of polygons nor an RLE with size and counts")
    if sum(len(part) for part in source) > 2 * MOST_POINTS:
        raise BrokenMaskError(f"its polygons have more than {MOST_POINTS:,} points")
    for part in source:
        if len(part) < 6 or len(part) % 2:
            raise BrokenMaskError(f"a polygon has {len(part)} numbers, which are not x and y of three points or more")
        try:
            points = np.array(part, np.float64).reshape(-1, 2)
        except (TypeError, ValueError, OverflowError) as error:
            raise BrokenMaskError("a polygon holds something that is not a number") from error
        if not np.isfinite(points).all():
            raise BrokenMaskError("a polygon holds NaN or infinity")
        yield points


def _check_outline(polygons: Sequence[np.ndarray]) -> None:
    length = sum(float(abs(points - np.roll(points, 1, axis=0)).max(1).sum()) for points in polygons)
    if length > MOST_OUTLINE:
        raise BrokenMaskError(f"its outline is {length:,.0f} pixels long; at most {MOST_OUTLINE:,} are drawn")
    if any(abs(points).max() > MOST_OUTLINE for points in polygons):  # the C code counts in fifths of pixels, with 32 bits
        raise BrokenMaskError(f"a polygon lies more than {MOST_OUTLINE:,} pixels away")


def _of_rle(source: dict[str, Any], height: int, width: int) -> bytes:
    if source.get("size") != [height, width]:
        raise BrokenMaskError(f"its RLE says size {str(source.get('size'))[:40]}, its image is {[height, width]} (height, width)")
    counts = source.get("counts")
    if isinstance(counts, list):
        if not all(isinstance(run, int) and not isinstance(run, bool) and run >= 0 for run in counts):
            raise BrokenMaskError("its RLE holds a run that is not a whole number from 0 on")
        _check_runs(counts, height, width)
        return _coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
    text = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    if not isinstance(text, bytes):
        raise BrokenMaskError("its RLE has no counts")
    if len(text) > _LONGEST_VALUE * (height * width + 1):
        raise BrokenMaskError("its RLE has more runs than the image has pixels")
    _check_runs(_runs(text), height, width)
    return text


def _check_runs(runs: Sequence[int], height: int, width: int) -> None:
    if len(runs) > height * width + 1:
        raise BrokenMaskError("its RLE has more runs than the image has pixels")
    if (total := sum(runs)) != height * width:
        raise BrokenMaskError(f"its RLE fills {total:,} of the image's {height * width:,} pixels")


def _runs(text: bytes) -> list[int]:
    """Returns the lengths that COCO's compressed text stands for: five bits a character, and from the fourth run on the difference to the
    one before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        piece = character - 48
        if not 0 <= piece < 64 or shift > 5 * (_LONGEST_VALUE - 1):
            raise BrokenMaskError("its RLE is not COCO's compressed text")
        value |= (piece & 31) << shift
        shift += 5
        if piece & 32:
            continue
        if piece & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            raise BrokenMaskError("its RLE holds a run of negative length")
        runs.append(value)
        value = shift = 0
    if shift:
        raise BrokenMaskError("its RLE ends within a run")
    return runs


@lru_cache(maxsize=4)
def _object_image(path: Path, stamp: tuple[float, int]) -> np.ndarray:
    """Returns the object numbers ``[H, W]`` of an image with a palette or of grey values; another ``stamp`` means another content."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise BrokenMaskError(f"{path.name} has mode {image.mode}, not a palette or grey values of 8 bits")
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BrokenMaskError(f"{path.name} cannot be read as an image: {error}") from error
