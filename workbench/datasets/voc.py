"""Reads Pascal VOC: Annotations/*.xml, JPEGImages/*, ImageSets/Main/SPLIT.txt; or each XML beside its image, perhaps in a folder per split.

Corners are read as the VOC development kit defines them: pixels counted from 1, with both ends inside the box. A box (1, 1, W, H)
covers the image, and in continuous coordinates x1 = xmin - 1, x2 = xmax. Many tools write 0-based corners and only raise 0 to 1 at the
border. Nothing in the file reveals this, and such boxes come out one pixel too wide at the left and top. A corner of 0 is clipped
silently, because it says no more than that. A box whose corners coincide in x or y is a point or line, never a one-pixel object, and
counts as ``zero_size_box``.

Where SegmentationObject/ has a PNG of an image's name, the mask of the n-th object of its XML is the pixels of value n. The void border
(255) belongs to none.

Objects marked difficult are kept as crowd: they are never trained on, and detections of their class on them do not count.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers import expat

from workbench.datasets.images import inside
from workbench.datasets.issues import Issues, Policy
from workbench.datasets.object_masks import ObjectNumber
from workbench.datasets.reading import Contents, Entry, Format, entry_from_rows, read_text, required_split
from workbench.datasets.voc_layout import Layout, layouts, roots
from workbench.errors import DataError

EXPECTS = (
    "a folder with Annotations/*.xml, JPEGImages/ and ImageSets/Main/SPLIT.txt; or *.xml beside the images, perhaps in a folder per split"
)


@dataclass
class _Object:
    name: str
    corners: tuple[float, float, float, float] | None
    difficult: bool


def splits(root: Path) -> tuple[str, ...]:
    """Returns the lists in ImageSets, and ``all``; or the folders that hold XML files beside their images."""
    parts = layouts(root)
    return (*sorted(_lists(root)), "all") if "" in parts else tuple(parts)


def read(root: Path, split: str, policy: Policy, issues: Issues, classes: Sequence[str] | None = None) -> Contents:
    """Reads one split.

    Args:
        root: a root found by ``roots``.
        split: name of the split.
        policy: what to do about problems.
        issues: object that counts them.
        classes: class names in label order; None takes all names in Annotations, of any split, sorted.

    Raises:
        DataError: there is no such split.
    """
    split = required_split(split, splits(root), root)
    parts = layouts(root)
    part = parts.get("") or parts[split]
    stems, names = _stems(root, part, split), part.image_names()
    if classes is None:
        classes = _all_classes(parts.values())
    label_of = {name: label for label, name in enumerate(classes)}
    masks = root / "SegmentationObject"
    has_masks = masks.is_dir()
    entries: list[Entry] = []
    next_id = 1
    for position, stem in enumerate(stems):
        file = inside(part.annotations, f"{stem}.xml")
        if file is None:
            issues.add("unsafe_file_name", policy.action("unsafe_file_name"), repr(stem))
            continue
        try:
            size, objects = _parse(file)
        except DataError as error:
            issues.add("broken_file", policy.action("broken_file"), str(error))
            continue
        rows: list[dict[str, Any]] = []
        for number, item in enumerate(objects, start=1):
            where = f"{file.name}: '{item.name}'"
            if item.corners is None:
                issues.add("broken_annotation", policy.action("broken_annotation"), f"{where} lacks four numbers")
            elif item.name not in label_of:
                issues.add("dangling_reference", policy.action("dangling_reference"), f"{where} is not among the classes")
            else:
                box = _continuous(item.corners)
                mask = ObjectNumber(masks / f"{stem}.png", number) if has_masks else None
                rows.append({"box": box, "label": label_of[item.name], "crowd": item.difficult, "id": next_id, "mask": mask})
                next_id += 1
        entries.append(entry_from_rows(position + 1, names.get(stem, f"{stem}.jpg"), size, rows))
    return Contents(root.name, tuple(classes), tuple(range(1, len(classes) + 1)), part.images, entries)


FORMAT = Format("voc", EXPECTS, roots, splits, read, frozenset({"classes"}))


def _lists(root: Path) -> dict[str, Path]:
    """Returns the list of each split."""
    return {file.stem: file for folder in (root / "ImageSets", root / "ImageSets" / "Main") for file in folder.glob("*.txt")}


def _stems(root: Path, part: Layout, split: str) -> list[str]:
    listed = _lists(root).get(split)
    if listed is None:
        return sorted(file.stem for file in part.annotations.glob("*.xml"))
    return [line.split()[0] for line in read_text(listed).splitlines() if line.strip()]


def _all_classes(parts: Iterable[Layout]) -> list[str]:
    names: set[str] = set()
    folders = [part.annotations for part in parts]
    for file in (file for folder in folders for file in folder.glob("*.xml")):
        try:
            names.update(item.name for item in _parse(file)[1])
        except DataError:
            continue  # counted when its own split is read
    if not names:
        where = ", ".join(map(str, folders))
        raise DataError(f"the files in {where} name no class, so there is nothing to detect. Check their <object> elements.")
    return sorted(names)


def _parse(file: Path) -> tuple[tuple[int, int], list[_Object]]:
    """Returns the declared size, (0, 0) if there is none, and the objects."""
    tree = _parse_xml(file)
    objects = []
    for node in tree.iter("object"):
        try:
            values = [float(node.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax")]
            corners = (values[0], values[1], values[2], values[3])
        except ValueError:
            corners = None
        objects.append(_Object(node.findtext("name", "").strip(), corners, node.findtext("difficult", "0").strip() == "1"))
    try:
        size = (int(float(tree.findtext("size/width", "0"))), int(float(tree.findtext("size/height", "0"))))
    except (ValueError, OverflowError):
        size = (0, 0)
    return size if all(size) else (0, 0), objects


def _parse_xml(file: Path) -> ElementTree.Element:
    """Parses without document types and hence without entities, which prevents expansion bombs and reading other files."""

    def refuse(*_: Any) -> None:
        raise DataError(f"{file} declares a document type, which is refused for safety. Remove the DOCTYPE.")

    try:
        data = file.read_bytes()
        guard = expat.ParserCreate()
        guard.StartDoctypeDeclHandler = refuse
        guard.Parse(data, True)
        return ElementTree.fromstring(data)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    except (expat.ExpatError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{file} is not valid XML: {error}") from error


def _continuous(corners: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Converts corners counted from 1, both inside, to edges. Coinciding corners stay a point or line, inverted ones stay inverted."""
    x1, y1, x2, y2 = corners
    left, right = _edges(x1, x2)
    top, bottom = _edges(y1, y2)
    return left, top, right, bottom


def _edges(low: float, high: float) -> tuple[float, float]:
    if low == high:
        return high, high
    if low > high:
        return low, high - 1 if high else high
    return (low - 1 if low else low), high
