"""Finds everything that is wrong with a dataset (``workbench data check``). It decodes every image and changes nothing."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workbench.datasets.issues import Issues, Policy
from workbench.datasets.mask_remarks import of_masks
from workbench.datasets.opening import find_format
from workbench.datasets.pixels import look_at
from workbench.datasets.reading import Contents, Format, UnnamedClassesError, Usable, match_split, usable
from workbench.datasets.remarks import Remark, counted, of_boxes, of_classes, of_leaks, of_repeats
from workbench.datasets.splitting import MADE
from workbench.datasets.transforms import FixedSize, ShortestSide, TransformConfig
from workbench.errors import DataError


@dataclass
class Report:
    """The result of a check.

    Attributes:
        path: Root of the dataset.
        format: Name of its format.
        splits: Number of images and boxes that training would see, by split.
        issues: Every kind of problem with its count, action under the policy, severity and first examples. A problem that
            occurs in several lists of the same images counts once.
        classes: For each class, in the order of its labels, the number of its boxes and of the images with some, by split.
        images: Number of different images.
        boxes: Number of boxes on them that are trained on.
        others: Number of boxes on them that are not: crowd and ignore regions.
        image_sizes: Number of images of each (width, height).
        box_sides: Square roots of the areas of those boxes in pixels of the stored image: the lowest twentieth, the median, the highest.
        remarks: What is legal and worth a look.
    """

    path: Path
    format: str
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    issues: Issues = field(default_factory=Issues)
    classes: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    images: int = 0
    boxes: int = 0
    others: int = 0
    image_sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    box_sides: tuple[float, float, float] | None = None
    remarks: list[Remark] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if no image or annotation is lost and nothing is refused."""
        return all(issue.severity == "warning" for issue in self.issues)

    def rows(self) -> list[dict[str, Any]]:
        """Returns one row per kind of problem and action, errors first."""
        return [
            {"severity": issue.severity, "kind": issue.kind, "action": issue.action, "count": issue.count, "examples": issue.examples}
            for issue in self.issues
        ]

    def summary(self) -> list[str]:
        """Returns what the data is, as lines: number of images, boxes and classes, sizes of images and boxes."""
        counts = f"{counted(self.images, 'image')}, {counted(self.boxes, 'box')}, {counted(len(self.classes), 'class')}"
        others = f"; {self.others:,} more are crowd, difficult or ignored, and never trained on" if self.others else ""
        lines = [f"{self.path}: format {self.format}, {counts}{others}"]
        if self.image_sizes:
            usual = max(self.image_sizes, key=lambda size: (self.image_sizes[size], size))
            least, most = min(self.image_sizes, key=np.prod), max(self.image_sizes, key=np.prod)
            several = f"{counted(len(self.image_sizes), 'size')} from {least[0]}x{least[1]} to {most[0]}x{most[1]}, most often "
            lines.append(f"images: {several if len(self.image_sizes) > 1 else 'all '}{usual[0]}x{usual[1]}")
        if self.box_sides is not None:
            low, median, high = self.box_sides
            lines.append(f"boxes: root of the area {median:.0f} pixels in the median, nine in ten from {low:.0f} to {high:.0f}")
        return lines

    def class_rows(self) -> list[dict[str, Any]]:
        """Returns one row per class: its name, and boxes and images of each split for training, validation and test, or of all images."""
        shown = roles(self.splits) or list(self.splits)[-1:]
        rows: list[dict[str, Any]] = []
        for name, by_split in self.classes.items():
            counts = {split: by_split.get(split, (0, 0)) for split in shown}
            rows.append({"class": name, **{f"{split}: boxes in images": f"{boxes:,} in {n:,}" for split, (boxes, n) in counts.items()}})
        return rows

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "path": str(self.path),
            "format": self.format,
            "ok": self.ok,
            "splits": self.splits,
            "issues": self.rows(),
            "images": self.images,
            "boxes": self.boxes,
            "others": self.others,
            "classes": [
                {"class": name, "splits": {split: {"boxes": boxes, "images": images} for split, (boxes, images) in by_split.items()}}
                for name, by_split in self.classes.items()
            ],
            "image_sizes": [{"width": w, "height": h, "images": count} for (w, h), count in sorted(self.image_sizes.items())],
            "box_sides": list(self.box_sides) if self.box_sides is not None else None,
            "remarks": [asdict(remark) for remark in self.remarks],
        }


def check(
    path: str | Path,
    split: str | None = None,
    format: str = "auto",
    policy: Policy | None = None,
    progress: Callable[[int, int], None] | None = None,
    resize: FixedSize | ShortestSide | None = None,
    **options: Any,
) -> Report:
    """Reads the annotations as training would, and decodes every image that has changed since the last check.

    Args:
        path: folder or file.
        split: name of the split; None checks all of them.
        format: as in ``open_dataset``.
        policy: policy that decides on the action for an issue, and so on its severity.
        progress: called with (number of decoded images, number of all images).
        resize: size that training brings images to, at which small boxes are counted; None takes their own.
        options: options of the format, as in ``open_dataset``.

    Raises:
        DataError: there is no dataset of a known format at ``path``, or its classes have no names.
    """
    found, root = find_format(Path(path), format)
    policy = policy or Policy()
    report = Report(root, found.name)
    read: dict[str, tuple[Contents, list[Usable]]] = {}
    try:
        names = found.splits(root) if split is None else (split,)
        if not names:
            report.issues.add("empty_split", "refused", f"{root} has no splits")
        used = roles(names)
        for name in (*used, *(name for name in names if name not in used)):
            read[name] = _read(found, root, name, policy, report, options)
    except UnnamedClassesError:
        raise
    except DataError as error:
        report.issues.add("broken_file", "refused", str(error))
    items = {item.path: item for _, in_split in read.values() for item in in_split}
    looks = look_at(root, [(item.path, item.upright) for item in items.values()], progress)
    pixels: dict[Path, np.ndarray] = {}
    for item, look in zip(items.values(), looks, strict=True):
        if look.error is None:
            pixels[item.path] = look.thumbnail
        else:
            report.issues.add("unreadable_image", policy.action("unreadable_image"), look.error)
    if items:
        _describe(report, list(items.values()))
        report.remarks += _remarks(report, read, [item for item in items.values() if item.path in pixels], pixels, resize)
    return report


def roles(splits: Sequence[str] | dict[str, Any]) -> list[str]:
    """Returns the splits that recipes use for training, validation and test."""
    return [name for role in MADE if (name := match_split(role, list(splits))) is not None]


def _read(format: Format, root: Path, name: str, policy: Policy, report: Report, options: dict[str, Any]) -> tuple[Contents, list[Usable]]:
    contents = format.read(root, name, policy, report.issues, **options)
    in_split = list(usable(contents, policy, report.issues, masks=True))
    report.splits[name] = {"images": len(in_split), "boxes": sum(len(item.record.boxes) for item in in_split)}
    if not in_split:
        report.issues.add("empty_split", "refused", f"split '{name}' has no usable image")
    boxes, images = np.zeros(len(contents.classes), np.int64), np.zeros(len(contents.classes), np.int64)
    for item in in_split:
        labels = np.bincount(item.record.labels[item.record.trainable], minlength=len(boxes))
        boxes += labels
        images += labels > 0
    for name_of_class, *counts in zip(contents.classes, boxes.tolist(), images.tolist(), strict=True):
        report.classes.setdefault(name_of_class, {})[name] = (counts[0], counts[1])
    return contents, in_split


def _describe(report: Report, items: list[Usable]) -> None:
    report.images = len(items)
    report.image_sizes = dict(Counter((item.record.width, item.record.height) for item in items))
    sides = [item.record.boxes[item.record.trainable] for item in items]
    areas = np.concatenate([(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in sides])
    report.boxes = len(areas)
    report.others = sum(len(item.record.boxes) for item in items) - len(areas)
    if len(areas):
        low, median, high = np.percentile(np.sqrt(areas), [5, 50, 95]).tolist()
        report.box_sides = (low, median, high)


def _remarks(
    report: Report,
    read: dict[str, tuple[Contents, list[Usable]]],
    items: list[Usable],
    pixels: dict[Path, np.ndarray],
    resize: FixedSize | ShortestSide | None,
) -> list[Remark]:
    contents = {name: content for name, (content, _) in read.items()}
    used = roles(read)
    found = list(of_classes(contents, report.classes, used))
    looks = {name: [item for item in read[name][1] if item.path in pixels] for name in used}
    found += of_leaks({name: (own, _stack([pixels[item.path] for item in own])) for name, own in looks.items()})
    found += of_repeats(items, _stack([pixels[item.path] for item in items]))
    classes = max((content.classes for content in contents.values()), key=len)
    found += of_masks(list(contents.values()), items)
    return [*found, *of_boxes(items, classes, TransformConfig(resize=resize), _at(resize))]


def _stack(thumbnails: list[np.ndarray]) -> np.ndarray:
    return np.stack(thumbnails) if thumbnails else np.zeros((0, 256), np.uint8)


def _at(resize: FixedSize | ShortestSide | None) -> str:
    if resize is None:
        return "in the image"
    if isinstance(resize, FixedSize):
        return f"at {resize.width}x{resize.height}"
    return f"at a shorter side of {max(resize.shortest)}"
