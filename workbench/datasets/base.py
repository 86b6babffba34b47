"""Defines ``Dataset``, the same for every format on disk: images, targets in file order, classes with their original ids."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from workbench.datasets.issues import Issues
from workbench.datasets.object_masks import Masks
from workbench.errors import DataError


@dataclass(frozen=True, eq=False)
class Record:
    """One image and its G targets, in file order and never re-ordered.

    Boxes are continuous pixel coordinates: an object that covers the whole image is (0, 0, width, height).

    Attributes:
        image_id: Id of the image, unique in the dataset.
        file_name: Name relative to the image folder. It is text and never trusted as a path.
        width: Width in pixels.
        height: Height in pixels.
        boxes: ``[G, 4]`` float64 xyxy in pixels, inside the image.
        labels: ``[G]`` int64, contiguous 0..C-1; -1 for ignore regions, which have no class.
        crowd: ``[G]`` bool, True for a region of many objects of one class. It is never trained on and any number of detections match it.
        ignore: ``[G]`` bool, True for a region without class (KITTI's DontCare). It is never trained on, and detections of every class
            in it are not counted.
        annotation_ids: ``[G]`` int64, unique in the dataset.
        areas: ``[G]`` float64 square pixels: the file's own area if it has one (for COCO's size buckets), else the box's.
        attributes: Further values of every box that the format's own evaluation needs, each ``[G]`` float64: KITTI's ``truncation``
            and ``occlusion``.
        masks: Masks of the targets; None in a dataset that was opened without them.
    """

    image_id: int
    file_name: str
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    ignore: np.ndarray
    annotation_ids: np.ndarray
    areas: np.ndarray
    attributes: Mapping[str, np.ndarray] = field(default_factory=dict)
    masks: Masks | None = None

    @property
    def trainable(self) -> np.ndarray:
        """Returns ``[G]`` bool, True for targets that are neither crowd nor ignore region."""
        return ~(self.crowd | self.ignore)


class Images(Protocol):
    """Source of pixels: a list in memory, or files that are decoded when asked for."""

    def __getitem__(self, index: int, /) -> np.ndarray: ...


@dataclass(frozen=True)
class _Part:
    """Pixels of some of the images."""

    images: Images
    positions: Sequence[int]

    def __getitem__(self, index: int, /) -> np.ndarray:
        return self.images[self.positions[index]]


class Dataset:
    """Images and targets of one split.

    Attributes:
        name: Name of the dataset, for messages and tables.
        split: Name of the split.
        classes: Class name of each contiguous label.
        category_ids: Id in the files of each contiguous label.
        records: One record per image.
        issues: Problems that were fixed, converted, kept or dropped while reading.
        paths: Image files, one per record, or None if images are made in memory.
    """

    def __init__(
        self,
        name: str,
        split: str,
        classes: Sequence[str],
        category_ids: Sequence[int],
        records: Sequence[Record],
        images: Images,
        issues: Issues | None = None,
        paths: Sequence[Path] | None = None,
    ):
        if not records:
            raise DataError(f"{name}, split '{split}', holds no usable image. " + ". ".join(str(i) for i in issues or ()))
        if not classes:
            raise DataError(f"{name}, split '{split}', declares no classes.")
        self.name = name
        self.split = split
        self.classes = tuple(classes)
        self.category_ids = tuple(category_ids)
        self.records = records
        self.issues = issues or Issues()
        self.paths = paths
        self._images = images

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def positions(self) -> dict[int, int]:
        """Returns the position of every image in ``records``, by its id."""
        return {record.image_id: position for position, record in enumerate(self.records)}

    @cached_property
    def has_masks(self) -> bool:
        """Returns True if the dataset was opened with masks and a target has one."""
        return any(record.masks is not None and record.masks.has_any for record in self.records)

    def image(self, index: int) -> np.ndarray:
        """Returns ``[H, W, 3]`` uint8 RGB of ``records[index]``. The array must not be written to.

        Raises:
            DataError: the file cannot be decoded, or its size changed since the dataset was opened.
        """
        image = self._images[index]
        record = self.records[index]
        if image.shape != (record.height, record.width, 3):
            raise DataError(
                f"{record.file_name} of {self.name} is now {image.shape[1]}x{image.shape[0]} but was "
                f"{record.width}x{record.height} when the dataset was opened. Open it again."
            )
        return image

    def part(self, positions: Sequence[int], split: str) -> "Dataset":
        """Returns some of the images as a split of its own.

        Args:
            positions: positions of the images in ``records``.
            split: name of the part.
        """
        paths = None if self.paths is None else [self.paths[index] for index in positions]
        records = [self.records[index] for index in positions]
        return Dataset(self.name, split, self.classes, self.category_ids, records, _Part(self._images, positions), paths=paths)

    def hash(self) -> str:
        """Returns the SHA-256 of classes, file names, sizes, boxes, labels and flags. Pixels and masks are not included."""
        return self._hash

    @cached_property
    def _hash(self) -> str:
        digest = hashlib.sha256(json.dumps([self.classes, self.category_ids]).encode())
        for r in self.records:
            digest.update(json.dumps([r.image_id, r.file_name, r.width, r.height, len(r.boxes)]).encode())
            digest.update(r.boxes.astype("<f8").tobytes() + r.labels.astype("<i8").tobytes())
            digest.update(r.crowd.astype("u1").tobytes() + r.ignore.astype("u1").tobytes())
        return digest.hexdigest()

    def coco(self) -> dict[str, Any]:
        """Returns COCO ground truth with the original category ids, for evaluation and export.

        A crowd region becomes one annotation with ``iscrowd`` 1. An ignore region becomes one such annotation for every
        class, so that a detection of any class inside it counts neither as right nor as wrong, because COCO's overlap with a
        crowd box is intersection / detection area. The copies get new ids. Ids are raised so that the smallest is 1, because
        pycocotools treats a match with id 0 as no match. ``target`` is the index of an annotation's box in its record. A target with a
        mask also has ``segmentation``, its compressed RLE, and ``mask_area``.
        """
        lowest = min((int(r.annotation_ids.min()) for r in self.records if len(r.boxes)), default=1)
        shift = max(0, 1 - lowest)
        next_id = 1 + shift + max((int(r.annotation_ids.max()) for r in self.records if len(r.boxes)), default=0)
        annotations: list[dict[str, Any]] = []
        for r in self.records:
            for g in range(len(r.boxes)):
                x1, y1, x2, y2 = r.boxes[g].tolist()
                box = [x1, y1, x2 - x1, y2 - y1]
                common: dict[str, Any] = {"image_id": r.image_id, "bbox": box, "area": float(r.areas[g]), "target": g}
                if r.masks is not None and (rle := r.masks.rle(g)) is not None:
                    common |= {"segmentation": rle, "mask_area": float(r.masks.areas[g])}
                if not r.ignore[g]:
                    annotations.append(
                        {
                            "id": int(r.annotation_ids[g]) + shift,
                            **common,
                            "iscrowd": int(r.crowd[g]),
                            "category_id": self.category_ids[r.labels[g]],
                        }
                    )
                    continue
                for category in self.category_ids:
                    annotations.append({"id": next_id, **common, "iscrowd": 1, "category_id": category})
                    next_id += 1
        return {
            "info": {"description": f"{self.name} {self.split}"},
            "images": [{"id": r.image_id, "file_name": r.file_name, "width": r.width, "height": r.height} for r in self.records],
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in zip(self.category_ids, self.classes, strict=True)],
        }
