"""Generates the built-in dataset: overlapping shapes on textured ground, made from a seed, the same bytes on every machine.

All arithmetic is on integers, and all randomness is the raw output of PCG64 seeded by (seed, split, index). numpy keeps
both stable between versions, and an image does not depend on how many are made. Lengths are in half pixels if a name
ends in ``2``, because shapes are drawn on a grid of 2x2 samples per pixel.
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from workbench.datasets.base import Dataset, Record
from workbench.datasets.object_masks import masks_of
from workbench.errors import DataError

SPLITS = ("train", "val", "test")
ShapeName = Literal["circle", "square", "triangle", "cross", "ring", "bar"]
_UNIT = 1024  # fixed-point one of rotations and stretches (shifts by 10 bits)
_ATTEMPTS = 12
_NOISE = 40  # half-width of the triangular pixel noise, in grey levels
_CONTRAST = 72  # least sum over channels of |shape colour - ground colour under it|
_VISIBLE = (3, 10)  # least visible share of a shape: 3/10


class ShapesConfig(BaseModel):
    """Says what the embedded generator draws."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    size: Annotated[int, Field(ge=16, le=1024)] = 96
    """Side of the square images in pixels."""
    classes: Annotated[tuple[ShapeName, ...], Field(min_length=1)] = ("circle", "square", "triangle", "cross")
    """Shapes that are drawn, in the order of their labels. Category ids are 1, 2 and so on."""
    min_objects: Annotated[int, Field(ge=0)] = 1
    """Smallest number of objects that the generator tries to place in an image. Fewer are drawn where there is no room."""
    max_objects: Annotated[int, Field(ge=0, le=100)] = 6
    """Largest number of objects that the generator tries to place in an image."""
    min_size: Annotated[int, Field(ge=4)] = 10
    """Smallest length of a shape's longer side before rotation, in pixels."""
    max_size: int = 40
    """Largest length of a shape's longer side before rotation, in pixels."""
    train: Annotated[int, Field(ge=0)] = 2000
    """Number of images in the training split."""
    val: Annotated[int, Field(ge=0)] = 300
    """Number of images in the validation split."""
    test: Annotated[int, Field(ge=0)] = 500
    """Number of images in the test split."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the images. Another seed draws other images."""

    @model_validator(mode="after")
    def _ordered(self) -> "ShapesConfig":
        if not self.min_objects <= self.max_objects:
            raise ValueError("min_objects must not be above max_objects")
        if not self.min_size <= self.max_size <= self.size:
            raise ValueError("sizes must hold min_size <= max_size <= size")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must differ")
        return self


def generate_shapes(config: ShapesConfig, split: str, masks: bool = False) -> Dataset:
    """Draws one split. Boxes are tight around the part of a shape that lies in the image, including what other shapes hide.

    A shape is redrawn elsewhere if less than 30 % of it would be visible, or if it would leave less than 30 % of an earlier one
    visible. After twelve attempts it is left out. With ``masks`` the records hold the pixels of each shape that can be seen: those of
    which it covers at least half, without what later shapes hide.

    Raises:
        DataError: the split is not train, val or test, or has no images.
    """
    if split not in SPLITS:
        raise DataError(f"shapes has no split '{split}'. Choose {', '.join(SPLITS)}.")
    records: list[Record] = []
    images: list[np.ndarray] = []
    first_id = 1
    for index in range(getattr(config, split)):
        image, boxes, labels, owner = _drawn(config, split, index)
        count = len(boxes)
        seen = masks_of(owner == np.arange(count)[:, None, None]) if masks else None
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        ids = np.arange(first_id, first_id + count, dtype=np.int64)
        none = np.zeros(count, bool)
        name = f"{index:06d}.png"
        records.append(Record(index + 1, name, config.size, config.size, boxes, labels, none, none, ids, areas, masks=seen))
        images.append(image)
        first_id += count
    return Dataset("shapes", split, config.classes, range(1, len(config.classes) + 1), records, images)


def draw_image(config: ShapesConfig, split: str, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws one image: ``[S, S, 3]`` uint8, boxes ``[G, 4]`` float64 xyxy in pixels, labels ``[G]`` int64."""
    return _drawn(config, split, index)[:3]


def _drawn(config: ShapesConfig, split: str, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns what ``draw_image`` does, and which target each pixel shows ``[S, S]`` int16, -1 for the ground."""
    random = _Random((config.seed, SPLITS.index(split), index))
    size = config.size
    texture = _texture(random, size, 5, 100) + _texture(random, size, 3, 60)
    canvas = texture + np.array([random.between(60, 195) for _ in range(3)], np.int32)
    owner = np.full((size, size), -1, np.int16)
    boxes: list[np.ndarray] = []
    labels: list[int] = []
    seen: list[int] = []
    whole: list[int] = []
    for _ in range(random.between(config.min_objects, config.max_objects)):
        for _ in range(_ATTEMPTS):
            label = random.between(0, len(config.classes) - 1)
            coverage, x, y = _shape(random, config.classes[label], config.min_size, config.max_size, size)
            full = int(coverage.sum())
            rows, columns = _clip(y, coverage.shape[0], size), _clip(x, coverage.shape[1], size)
            inside = coverage[rows[0] - y : rows[1] - y, columns[0] - x : columns[1] - x]
            window = (slice(*rows), slice(*columns))
            hidden = np.bincount(owner[window][inside >= 2] + 1, minlength=len(boxes) + 1)[1:]
            left = np.array(seen, np.int64) - 4 * hidden
            if not _enough(int(inside.sum()), full) or any(not _enough(a, b) for a, b in zip(left.tolist(), whole, strict=True)):
                continue
            _paint(random, canvas[window], texture[window] >> 1, inside)
            owner[window][inside >= 2] = len(boxes)
            seen = [*left.tolist(), int(inside.sum())]
            whole.append(full)
            boxes.append(_tight_box(inside, columns[0], rows[0]))
            labels.append(label)
            break
    noise = random.bytes(2 * size * size * 3).reshape(2, size, size, 3).astype(np.int32)
    canvas += (noise[0] - noise[1]) * _NOISE >> 8
    image = np.clip(canvas, 0, 255).astype(np.uint8)
    return image, np.array(boxes, np.float64).reshape(-1, 4), np.array(labels, np.int64), owner


class _Random:
    """Random integers from the raw 64-bit output of PCG64, whose stream numpy never changes."""

    def __init__(self, entropy: tuple[int, ...]):
        self._bits = np.random.PCG64(np.random.SeedSequence(entropy))

    def between(self, low: int, high: int) -> int:
        """Returns an integer in low..high, both included. The bias of the multiplication is below 2^-20 here."""
        return low + ((int(self._bits.random_raw()) >> 32) * (high - low + 1) >> 32)

    def bytes(self, count: int) -> np.ndarray:
        """Returns ``[count]`` random uint8."""
        return self._bits.random_raw(-(-count // 8)).astype("<u8").view(np.uint8)[:count]


def _texture(random: _Random, size: int, bits: int, amplitude: int) -> np.ndarray:
    """Returns ``[S, S, 3]`` int32 in -amplitude/2..amplitude/2: random colours on a grid of 2^bits pixels, interpolated."""
    cell = 1 << bits
    knots = size // cell + 2
    grid = random.bytes(knots * knots * 3).reshape(knots, knots, 3).astype(np.int32) - 128
    at = np.arange(size, dtype=np.int32)
    index, weight = at >> bits, at & cell - 1
    rows = grid[index] * (cell - weight)[:, None, None] + grid[index + 1] * weight[:, None, None]
    weight = weight[None, :, None]
    return (rows[:, index] * (cell - weight) + rows[:, index + 1] * weight) * amplitude >> 2 * bits + 8


def _shape(random: _Random, name: str, low: int, high: int, size: int) -> tuple[np.ndarray, int, int]:
    """Returns a rotated shape: coverage ``[h, w]`` of 0..4 samples per pixel, and its window's first pixel (may be negative)."""
    half2 = random.between(low, high)  # half the side in half pixels = the side in pixels
    stretch = random.between(_UNIT, _UNIT * 4 // 3)  # the shape is this much narrower along v
    cosine, sine = _direction(random)
    centre_x2, centre_y2 = random.between(0, 2 * size), random.between(0, 2 * size)
    reach = half2 * 3 // 4 + 2  # in pixels: half the diagonal is 0.71 of the side
    x, y = centre_x2 // 2 - reach, centre_y2 // 2 - reach
    samples = np.arange(4 * reach + 2, dtype=np.int32)
    # twice the sample's distance to the centre, in half pixels, so that sample centres are whole numbers
    dx = (2 * (samples + 2 * x) + 1 - 2 * centre_x2)[None, :]
    dy = (2 * (samples + 2 * y) + 1 - 2 * centre_y2)[:, None]
    u = (cosine * dx + sine * dy) >> 8  # int32 holds their squares up to a size of 1024
    v = ((cosine * stretch >> 10) * dy - (sine * stretch >> 10) * dx) >> 8
    covered = _inside(name, u, v, half2 * (2 * _UNIT >> 8))
    pixels = len(samples) // 2
    return covered.reshape(pixels, 2, pixels, 2).sum((1, 3), dtype=np.int32), x, y


def _direction(random: _Random) -> tuple[int, int]:
    """Returns cosine and sine times ``_UNIT`` of a random angle, from rational points of the circle, without a library sine."""
    k = random.between(0, 63)
    scale = 64 * 64 + k * k
    cosine, sine = _UNIT * (64 * 64 - k * k) // scale, _UNIT * 2 * 64 * k // scale
    for _ in range(random.between(0, 3)):
        cosine, sine = -sine, cosine
    return cosine, sine


def _inside(name: str, u: np.ndarray, v: np.ndarray, r: int) -> np.ndarray:
    """Returns ``[h, w]`` bool: which samples (u, v) lie in the shape whose bounding square is -r..r."""
    if name == "square":
        return (abs(u) <= r) & (abs(v) <= r)
    if name == "circle":
        return u * u + v * v <= r * r
    if name == "ring":
        square = u * u + v * v
        return (square <= r * r) & (4 * square >= r * r)
    if name == "triangle":
        return (v <= r) & (2 * abs(u) <= v + r)
    if name == "bar":
        return (abs(u) <= r) & (3 * abs(v) <= r)
    arm = r * 3 // 8
    return ((abs(u) <= r) & (abs(v) <= arm)) | ((abs(v) <= r) & (abs(u) <= arm))


def _paint(random: _Random, canvas: np.ndarray, texture: np.ndarray, coverage: np.ndarray) -> None:
    """Blends a random colour, distinct from what it covers, into ``canvas`` in place. Texture alone reveals no object."""
    mask = coverage >= 2
    under = canvas[mask].sum(0) // max(1, int(mask.sum()))
    while True:
        colour = np.array([random.between(20, 235) for _ in range(3)], np.int32)
        if int(abs(colour - under).sum()) >= _CONTRAST:
            break
    canvas += (colour + texture - canvas) * coverage[:, :, None] >> 2


def _tight_box(coverage: np.ndarray, x: int, y: int) -> np.ndarray:
    rows, columns = np.flatnonzero(coverage.any(1)), np.flatnonzero(coverage.any(0))
    return np.array([x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1], np.float64)


def _clip(start: int, length: int, size: int) -> tuple[int, int]:
    low = min(max(start, 0), size)
    return low, max(low, min(start + length, size))


def _enough(seen: int, whole: int) -> bool:
    return seen * _VISIBLE[1] >= whole * _VISIBLE[0]
