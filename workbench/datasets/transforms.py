"""Augments images repeatably: ``draw`` chooses numbers, ``apply`` only computes, and equal numbers give equal bytes.

The numbers are values and not a seed, so that a run can store them and another program can show the same image. Pixels stay uint8
throughout. Boxes are continuous pixel coordinates: a flip maps x to W - x.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from workbench.datasets.base import Record
from workbench.datasets.object_masks import Masks

Op = dict[str, Any]
_FRACTION = Annotated[float, Field(gt=0, le=1)]
_STRENGTH = Annotated[float, Field(ge=0, lt=1)]
_SIDE = Annotated[int, Field(ge=1, le=8192)]
_ONE = 1024  # colour factors are fixed-point numbers of 10 bits, so that no rounding differs between machines


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Flip(_Strict):
    """Flips the image left to right with probability one half."""

    op: Literal["flip"] = "flip"
    """Selects the left-right flip."""


class Dihedral(_Strict):
    """Applies one of the eight flips and quarter turns, each equally likely: move & 1 flips left-right, & 2 top-bottom, & 4 transposes."""

    op: Literal["dihedral"] = "dihedral"
    """Selects the eight flips and quarter turns."""


class Crop(_Strict):
    """Cuts out a random window whose width and height are drawn independently.

    The defaults correspond to DETR's crop of 384..600 pixels out of a side of 400..600 pixels.
    """

    op: Literal["crop"] = "crop"
    """Selects the random crop."""
    probability: _FRACTION = 0.5
    """Probability that an image is cropped at all."""
    min: _FRACTION = 0.64
    """Smallest window side, as a share of the image's side."""
    max: _FRACTION = 1.0
    """Largest window side, as a share of the image's side."""

    @model_validator(mode="after")
    def _ordered(self) -> "Crop":
        if self.min > self.max:
            raise ValueError("crop: min must not be above max")
        return self


class Color(_Strict):
    """Changes brightness, contrast and saturation, each by a random factor between 1 - strength and 1 + strength."""

    op: Literal["color"] = "color"
    """Selects the random change of colours."""
    brightness: _STRENGTH = 0.2
    """Strength of the change in brightness; 0 leaves it unchanged."""
    contrast: _STRENGTH = 0.2
    """Strength of the change in contrast; 0 leaves it unchanged."""
    saturation: _STRENGTH = 0.2
    """Strength of the change in saturation; 0 leaves it unchanged."""


class FixedSize(_Strict):
    """Resizes every image to one size, whatever its aspect ratio."""

    height: _SIDE
    """Height of the resized image in pixels."""
    width: _SIDE
    """Width of the resized image in pixels."""


class ShortestSide(_Strict):
    """Resizes and keeps the aspect ratio: the shorter side becomes one of ``shortest``, unless the longer one would exceed ``longest``."""

    shortest: Annotated[tuple[_SIDE, ...], Field(min_length=1)]
    """Lengths of the shorter side in pixels. Training draws one of them for each image; evaluation takes the largest."""
    longest: _SIDE
    """Limit of the longer side in pixels. An image that would exceed it is made smaller."""


def _named(value: Any) -> Any:
    return {"op": value} if isinstance(value, str) else value


Augmentation = Annotated[Annotated[Flip | Dihedral | Crop | Color, Field(discriminator="op")], BeforeValidator(_named)]


class TransformConfig(_Strict):
    """Describes how images are prepared."""

    resize: FixedSize | ShortestSide | None = None
    """Size that images are brought to: a fixed height and width, or a length of the shorter side. Null leaves the size as it is."""
    augment: tuple[Augmentation, ...] = ()
    """Random changes to training images, applied in this order before resizing. A bare name such as ``flip`` stands for the change with its
    defaults.
    """
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the red, green and blue channel in 0..1, which is subtracted. The default is ImageNet's."""
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.229, 0.224, 0.225)
    """Standard deviation of the red, green and blue channel in 0..1, by which pixels are divided. The default is ImageNet's."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One prepared image.

    Attributes:
        image: ``[H, W, 3]`` uint8; may be a view with any strides.
        boxes: ``[G, 4]`` float32 cxcywh in 0..1 of this image.
        labels: ``[G]`` int64.
        valid: ``[G]`` bool, True for targets that may be matched (not crowd, not ignore, not cropped away).
        ops: Operations that were applied. ``Transform.apply`` gives this sample again for them.
        masks: ``[G, H, W]`` bool, the pixels of each target in this image; None if the dataset was opened without masks.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    valid: np.ndarray
    ops: list[Op]
    masks: np.ndarray | None = None


class Transform:
    """Draws and applies the operations of a ``TransformConfig``."""

    def __init__(self, config: TransformConfig | None = None):
        self.config = config or TransformConfig()

    def draw(self, rng: np.random.Generator, width: int, height: int) -> list[Op]:
        """Chooses the operations for one training image of ``width`` x ``height`` pixels, as JSON-compatible dicts."""
        ops: list[Op] = []
        for augmentation in self.config.augment:
            op = _draw(augmentation, rng, width, height)
            if op is not None:
                ops.append(op)
                width, height = size_after(op, width, height)
        choice = int(rng.integers(len(self.config.resize.shortest))) if isinstance(self.config.resize, ShortestSide) else 0
        return ops + self._resize(width, height, choice)

    def evaluation_ops(self, width: int, height: int) -> list[Op]:
        """Returns the operations for evaluation, which only resize."""
        resize = self.config.resize
        return self._resize(width, height, resize.shortest.index(max(resize.shortest)) if isinstance(resize, ShortestSide) else 0)

    def apply(self, image: np.ndarray, record: Record, ops: list[Op]) -> Sample:
        """Applies ``ops``.

        Every target keeps its index. A target of which a crop leaves less than one pixel in width or height is marked as
        absent; its box is meaningless but finite.

        Args:
            image: ``[H, W, 3]`` uint8 of ``record``.
            record: record with the image's targets.
            ops: result of ``draw`` or ``evaluation_ops``.
        """
        for op in ops:
            image = _apply_to_image(op, image)
        boxes, valid, _ = targets_after(record, ops)
        masks = None if record.masks is None else masks_after(record.masks, ops)
        return Sample(image, boxes, record.labels, valid, ops, masks)

    def _resize(self, width: int, height: int, choice: int) -> list[Op]:
        resize = self.config.resize
        if resize is None:
            return []
        if isinstance(resize, FixedSize):
            target = (resize.width, resize.height)
        else:
            short, long = min(width, height), max(width, height)
            scale = min(resize.shortest[choice] / short, resize.longest / long)
            target = (max(1, round(width * scale)), max(1, round(height * scale)))
        return [] if target == (width, height) else [{"op": "resize", "width": target[0], "height": target[1]}]


def fixed_size(config: TransformConfig, sizes: Iterable[tuple[int, int]], training: bool) -> tuple[int, int] | None:
    """Returns (width, height) of every prepared image, or None if it can differ between images, so that batches are padded.

    Args:
        config: configuration of the transform.
        sizes: (width, height) of the images before it.
        training: True if the transform augments and draws a size.
    """
    if isinstance(config.resize, FixedSize):
        return config.resize.width, config.resize.height
    known = set(sizes)
    if len(known) != 1:
        return None
    width, height = known.pop()
    turned = width != height and any(isinstance(augmentation, Dihedral) for augmentation in config.augment)
    cropped = any(isinstance(augmentation, Crop) for augmentation in config.augment)
    drawn = config.resize is not None and len(set(config.resize.shortest)) > 1
    if training and (turned or cropped or drawn):
        return None
    ops = Transform(config).evaluation_ops(width, height)
    return (ops[0]["width"], ops[0]["height"]) if ops else (width, height)


def _draw(config: Flip | Dihedral | Crop | Color, rng: np.random.Generator, width: int, height: int) -> Op | None:
    if isinstance(config, Flip):
        return {"op": "flip"} if rng.integers(2) else None
    if isinstance(config, Dihedral):
        move = int(rng.integers(8))
        return {"op": "dihedral", "move": move} if move else None
    if isinstance(config, Color):
        factors = {}
        for name in ("brightness", "contrast", "saturation"):
            reach = round(getattr(config, name) * _ONE)
            factors[name] = int(rng.integers(_ONE - reach, _ONE + reach + 1))
        return {"op": "color", **factors}
    if rng.random() >= config.probability:
        return None
    sides = []
    for side in (width, height):
        low = max(1, round(config.min * side))
        sides.append(int(rng.integers(low, max(low, round(config.max * side)) + 1)))
    x, y = int(rng.integers(width - sides[0] + 1)), int(rng.integers(height - sides[1] + 1))
    return {"op": "crop", "x": x, "y": y, "width": sides[0], "height": sides[1]}


def targets_after(record: Record, ops: list[Op]) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Returns boxes and validity of an image's targets after ``ops``, as ``Sample`` holds them, and width and height of the image.

    The image itself need not be read.
    """
    boxes, valid = record.boxes.copy(), record.trainable
    width, height = record.width, record.height
    for op in ops:
        boxes = _apply_to_boxes(op, boxes, width, height)
        width, height = size_after(op, width, height)
        if op["op"] == "crop":
            np.clip(boxes, 0, [width, height] * 2, out=boxes)
            valid = valid & ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)
    boxes = np.clip(boxes / np.array([width, height, width, height], np.float64), 0, 1)
    centred = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float32)
    return centred, valid, (width, height)


def masks_after(masks: Masks, ops: list[Op]) -> np.ndarray:
    """Returns the masks of an image's targets after ``ops``, ``[G, H, W]`` bool.

    A mask moves as the pixels of the image do. A resized pixel belongs to it if the mask makes up at least half of what the pixel is
    averaged from.
    """
    planes = masks.arrays().transpose(1, 2, 0).astype(np.uint8) * 255
    for op in ops:
        if op["op"] == "resize":
            height, width = op["height"], op["width"]
            resized = [_apply_to_image(op, plane) >= 128 for plane in planes.transpose(2, 0, 1)]
            planes = np.array(resized, np.uint8).reshape(-1, height, width).transpose(1, 2, 0) * 255
        elif op["op"] != "color":
            planes = _apply_to_image(op, planes)
    return np.ascontiguousarray(planes.transpose(2, 0, 1) >= 128)


def size_after(op: Op, width: int, height: int) -> tuple[int, int]:
    """Returns (width, height) after ``op`` of an image of this size."""
    if op["op"] in ("crop", "resize"):
        return op["width"], op["height"]
    return (height, width) if op["op"] == "dihedral" and op["move"] & 4 else (width, height)


def _apply_to_image(op: Op, image: np.ndarray) -> np.ndarray:
    match op["op"]:
        case "flip":
            return image[:, ::-1]
        case "dihedral":
            move = op["move"]
            image = image[:, ::-1] if move & 1 else image
            image = image[::-1] if move & 2 else image
            return image.transpose(1, 0, 2) if move & 4 else image
        case "crop":
            return image[op["y"] : op["y"] + op["height"], op["x"] : op["x"] + op["width"]]
        case "resize":
            # Pillow's resampling is integer arithmetic, which gives the same bytes on every machine. It widens the filter when shrinking.
            picture = Image.fromarray(np.ascontiguousarray(image))
            return np.asarray(picture.resize((op["width"], op["height"]), Image.Resampling.BILINEAR))
        case "color":
            return _recolour(image, op["brightness"], op["contrast"], op["saturation"])
        case name:
            raise ValueError(f"unknown operation '{name}'")


def _apply_to_boxes(op: Op, boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    match op["op"]:
        case "flip":
            return _mirrored(boxes, 0, width)
        case "dihedral":
            move = op["move"]
            boxes = _mirrored(boxes, 0, width) if move & 1 else boxes
            boxes = _mirrored(boxes, 1, height) if move & 2 else boxes
            return boxes[:, [1, 0, 3, 2]] if move & 4 else boxes
        case "crop":
            return boxes - np.array([op["x"], op["y"]] * 2, np.float64)
        case "resize":
            return boxes * np.array([op["width"] / width, op["height"] / height] * 2, np.float64)
        case _:
            return boxes


def _mirrored(boxes: np.ndarray, axis: int, extent: int) -> np.ndarray:
    mirrored = boxes.copy()
    mirrored[:, axis], mirrored[:, axis + 2] = extent - boxes[:, axis + 2], extent - boxes[:, axis]
    return mirrored


def _recolour(image: np.ndarray, brightness: int, contrast: int, saturation: int) -> np.ndarray:
    """Scales around 0, around the image's mean grey, and around each pixel's grey; factors in 1/1024."""
    mean = int(image.mean(dtype=np.float64)) * brightness >> 10
    levels = np.arange(256, dtype=np.int32)
    table = np.clip((((levels * brightness >> 10) - mean) * contrast >> 10) + mean, 0, 255).astype(np.uint8)
    image = table[image]
    if saturation == _ONE:
        return image
    wide = image.astype(np.int32)
    grey = (77 * wide[..., 0] + 150 * wide[..., 1] + 29 * wide[..., 2] >> 8)[..., None]
    return np.clip(grey + ((wide - grey) * saturation >> 10), 0, 255).astype(np.uint8)
