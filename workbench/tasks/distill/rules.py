"""Chooses the settings that depend on the data, each by a rule that is printed with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.datasets.base import Dataset
from workbench.errors import DataError

LEAST_SIDE = 24  # pixels of a box's shorter side: three cells of the finest level
MULTIPLE = 32  # the coarsest stride that every choice below has
LARGEST, SMALLEST = 512, 96
FEW_IMAGES = 400
DIRECTIONS = ("left", "right", "arrow")  # a mirrored object of such a class belongs to another one
MOST_LEVELS = 4


@dataclass(frozen=True)
class Facts:
    """What the choices depend on.

    Attributes:
        images: Number of training images.
        width: Median width in pixels.
        height: Median height in pixels.
        classes: Names of the classes.
        shorter: ``[G]`` shorter side of every trainable box as a share of its image's longer side.
        longer: ``[G]`` longer side of every trainable box, likewise.
        most: Largest number of trainable boxes in an image.
    """

    images: int
    width: float
    height: float
    classes: tuple[str, ...]
    shorter: np.ndarray
    longer: np.ndarray
    most: int


@dataclass(frozen=True)
class Choice:
    """One setting that was chosen.

    Attributes:
        key: Key of the recipe, such as ``train.batch_size``.
        value: Its value.
        rule: The rule that chose it, in words, with the numbers it was applied to.
    """

    key: str
    value: Any
    rule: str


def facts_of(train: Dataset) -> Facts:
    """Reads the facts from the training split.

    Raises:
        DataError: it has no box that can be trained on.
    """
    boxes = [record.boxes[record.trainable] / max(record.width, record.height) for record in train.records]
    sides = np.concatenate([np.zeros((0, 2)), *(part[:, 2:] - part[:, :2] for part in boxes)])
    if not len(sides):
        raise DataError(f"{train.name}, split '{train.split}', has no box to train on. 'workbench data check' says what is in it.")
    return Facts(
        len(train),
        float(np.median([record.width for record in train.records])),
        float(np.median([record.height for record in train.records])),
        train.classes,
        sides.min(1),
        sides.max(1),
        max(len(part) for part in boxes),
    )


def choose(facts: Facts, student: dict[str, Any]) -> list[Choice]:
    """Returns the choices for a student.

    Args:
        facts: facts about the training split.
        student: the recipe's ``student:`` as it is written, which says which of the choices its family has.
    """
    size = _size(facts)
    longest = max(size.value.values())
    return [size, _augmentation(facts.classes), *_levels(facts, student, longest), *_queries(facts, student), _batch(facts)]


def _size(facts: Facts) -> Choice:
    small = float(np.quantile(facts.shorter, 0.1))
    limit = min(max(facts.width, facts.height), LARGEST)
    side = max(min(_rounded(LEAST_SIDE / small, up=True), _rounded(limit, up=False)), SMALLEST)
    scale = side / max(facts.width, facts.height)
    value = {"height": max(_rounded(facts.height * scale), MULTIPLE), "width": max(_rounded(facts.width * scale), MULTIPLE)}
    return Choice(
        "data.transform.resize",
        value,
        f"nine of ten boxes keep a shorter side of {LEAST_SIDE} pixels or more if the image's longer side has {LEAST_SIDE / small:.0f}; "
        f"never more than the images have ({facts.width:.0f}x{facts.height:.0f}) or {LARGEST}, in multiples of {MULTIPLE}",
    )


def _rounded(pixels: float, up: bool | None = None) -> int:
    """Returns the nearest multiple of ``MULTIPLE``, or the next one up or down."""
    count = pixels / MULTIPLE
    return MULTIPLE * int(round(count) if up is None else np.ceil(count) if up else np.floor(count))


def _augmentation(classes: Sequence[str]) -> Choice:
    directed = [name for name in classes if any(word in name.lower() for word in DIRECTIONS)]
    if directed:
        return Choice("data.transform.augment", [], f"none, because a mirrored {directed[0]} would be of another class")
    return Choice("data.transform.augment", ["flip"], "images are mirrored; set [dihedral] if they have no upright direction")


def _levels(facts: Facts, student: dict[str, Any], longest: int) -> list[Choice]:
    if "extra_levels" not in student:
        return []
    large = float(np.quantile(facts.longer, 0.9)) * longest
    stride = 2 ** (max(student["backbone"]["levels"]) + 1)
    scale = float(student.get("anchor_scale", 8.0))
    wanted = int(np.ceil(np.log2(max(large / (1.5 * scale * stride), 1.0))))
    value = min(max(wanted, 1), MOST_LEVELS)
    last = scale * stride * 2**value
    return [Choice(
        "student.extra_levels", value,
        f"nine of ten boxes are at most {large:.0f} pixels long, and the anchors of the last level have {last:.0f}",
    )]  # fmt: skip


def _queries(facts: Facts, student: dict[str, Any]) -> list[Choice]:
    if "queries" not in student:
        return []
    value = max(10 * int(np.ceil(1.5 * facts.most / 10)), 20)
    return [Choice("student.queries", value, f"half as many again as the most boxes in one image ({facts.most})")]


def _batch(facts: Facts) -> Choice:
    value = 8 if facts.images < FEW_IMAGES else 16
    return Choice("train.batch_size", value, f"8 below {FEW_IMAGES} training images, otherwise 16; there are {facts.images}")
