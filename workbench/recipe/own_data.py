"""Gets a dataset ready to be trained on: checks it, says what it holds, and has splits made that it lacks."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workbench.datasets.base import Dataset
from workbench.datasets.check import Report, check
from workbench.datasets.opening import find_format, open_dataset
from workbench.datasets.splitting import MADE, complete_splits
from workbench.datasets.transforms import FixedSize, ShortestSide
from workbench.errors import DataError
from workbench.recipe.schema import DataConfig


@dataclass(frozen=True)
class OwnData:
    """A dataset that is ready to be trained on.

    Attributes:
        report: What the check found.
        config: ``data`` of a recipe, without its transform. The splits that it makes are the same each time.
        images: Number of images of each split that the recipe uses.
        boxes: Number of boxes of each class in these splits that are trained on or evaluated.
        notes: What a user should know, one sentence each: which splits are made of what, and which classes they lack.
    """

    report: Report
    config: DataConfig
    images: dict[str, int]
    boxes: dict[str, dict[str, int]]
    notes: list[str]


def own_data(
    path: str | Path,
    val: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    format: str = "auto",
    resize: FixedSize | ShortestSide | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> OwnData:
    """Checks a dataset and decides on its splits. What cannot be trained on is refused here, before any time is spent.

    Args:
        path: folder or file.
        val: share of the images for validation, if the files have no such split.
        test: share of the images for the test, if the files have no such split; 0 makes none.
        seed: another seed divides the images in another way.
        format: as in ``open_dataset``.
        resize: size at which small boxes are counted.
        progress: called with (number of images looked at, number of all images).

    Raises:
        DataError: there is no dataset, it cannot be used as it is, no box can be trained on, or it has too few different images.
        ConfigError: it is not clear which of its splits is for training.

    Example:
        >>> found = own_data("~/cells", val=0.2, test=0.2)
        >>> found.report.summary(), found.config.splits, found.notes
    """
    place = Path(path).expanduser()
    kind, root = find_format(place, format)
    there = kind.splits(root)
    used, made = complete_splits(there, val, test, seed)
    report = check(place, format=format, resize=resize, progress=progress)
    report.issues.raise_refused(str(root))
    if not report.boxes:
        raise DataError(f"{root} has {report.images:,} images and not one box to train on. Check that the annotations belong to them.")
    config = DataConfig.model_validate({"path": str(place), "format": kind.name, **used, "splits": made})
    names = {role: name for role in MADE if (name := used[role]) is not None}
    opened = {role: open_dataset(place, name, format=kind.name, splits=made) for role, name in names.items()}
    boxes = {role: _boxes(data) for role, data in opened.items()}
    images = {role: len(data) for role, data in opened.items()}
    notes: list[str] = []
    if made is not None:
        sizes = ", ".join(f"{role} {images[role]:,}" for role in made.shares)
        what = f"made of {made.pool(there)!r}, near-duplicates together, seed {made.seed}"
        notes.append(f"splits {what}: {sizes} images. Every run lists them in splits/.")
    for role, counts in boxes.items():
        lacking = [name for name, count in counts.items() if not count and any(boxes[other][name] for other in boxes)]
        if lacking:
            shown = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5:,} more" if len(lacking) > 5 else "")
            notes.append(f"{role} has no box of {shown}.")
    return OwnData(report, config, images, boxes, notes)


def _boxes(data: Dataset) -> dict[str, int]:
    labels = np.concatenate([record.labels[record.trainable] for record in data.records])
    return dict(zip(data.classes, np.bincount(labels, minlength=len(data.classes)).tolist(), strict=True))
