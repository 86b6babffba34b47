"""Reads KITTI object detection: image_2/*.png and label_2/*.txt with one row per object.

Columns 5-8 of a row are left, top, right, bottom in pixels counted from 0, taken as continuous coordinates. Columns 2 and 3 are kept as
``truncation`` (0..1) and ``occlusion`` (0 visible, 1 partly, 2 largely hidden, 3 unknown), both -1 for DontCare. DontCare rows become
ignore regions. The files define no split. Lists in ImageSets/SPLIT.txt (one number per line) make them, and ``all`` takes every image.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.datasets.images import SUFFIXES, inside
from workbench.datasets.issues import Issues, Policy
from workbench.datasets.reading import Contents, Entry, Format, entry_from_rows, read_text, required_split
from workbench.errors import DataError

EXPECTS = "a folder with image_2/*.png and label_2/*.txt, perhaps below training/"
CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")
ATTRIBUTES = ("truncation", "occlusion")


def roots(path: Path) -> list[Path]:
    """Returns ``path`` or the folders below it that look like KITTI."""
    for folders in ([path], path.glob("*")):
        found = [folder for folder in sorted(folders) if (folder / "image_2").is_dir() and (folder / "label_2").is_dir()]
        if found:
            return found
    return []


def splits(root: Path) -> tuple[str, ...]:
    """Returns the lists in ImageSets, in the folder or above it, and ``all``."""
    return (*sorted(_lists(root)), "all")


def read(root: Path, split: str, policy: Policy, issues: Issues, classes: Sequence[str] = CLASSES) -> Contents:
    """Reads one split.

    Args:
        root: a root found by ``roots``.
        split: name of the split.
        policy: what to do about problems.
        issues: object that counts them.
        classes: class names in label order; objects of other classes are counted as ``dangling_reference``.

    Raises:
        DataError: there is no such split.
    """
    label_of = {name: label for label, name in enumerate(classes)}
    entries: list[Entry] = []
    next_id = 1
    for position, stem in enumerate(_stems(root, required_split(split, splits(root), root))):
        file = inside(root / "label_2", f"{stem}.txt")
        if file is None:
            issues.add("unsafe_file_name", policy.action("unsafe_file_name"), repr(stem))
            continue
        try:
            lines = read_text(file).splitlines()
        except DataError as error:
            issues.add("broken_file", policy.action("broken_file"), str(error))
            continue
        rows: list[dict[str, Any]] = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{file.name} line {number}"
            try:
                name, row = _parse_row(line)
            except ValueError:
                issues.add("broken_annotation", policy.action("broken_annotation"), f"{where} is not a KITTI row of 15 columns")
                continue
            ignore = name == "DontCare"
            if not ignore and name not in label_of:
                issues.add("dangling_reference", policy.action("dangling_reference"), f"{where}: class '{name}' is not among the classes")
                continue
            rows.append({**row, "label": -1 if ignore else label_of[name], "ignore": ignore, "id": next_id})
            next_id += 1
        entries.append(entry_from_rows(position + 1, _image_name(root, stem), None, rows, attributes=ATTRIBUTES))
    name = root.parent.name if root.name == "training" else root.name
    return Contents(name, tuple(classes), tuple(range(1, len(classes) + 1)), root / "image_2", entries)


FORMAT = Format("kitti", EXPECTS, roots, splits, read, frozenset({"classes"}))


def _lists(root: Path) -> dict[str, Path]:
    return {file.stem: file for folder in (root.parent, root) for file in (folder / "ImageSets").glob("*.txt")}


def _stems(root: Path, split: str) -> list[str]:
    listed = _lists(root).get(split)
    if listed is not None:
        return [line.strip() for line in read_text(listed).splitlines() if line.strip()]
    images = {file.stem for file in (root / "image_2").iterdir() if file.suffix.lower() in SUFFIXES}
    return sorted(images | {file.stem for file in (root / "label_2").glob("*.txt")})


def _parse_row(line: str) -> tuple[str, dict[str, Any]]:
    """Returns the class, and the box with its attributes."""
    fields = line.split()
    if len(fields) not in (15, 16):
        raise ValueError(line)
    box = tuple(float(value) for value in fields[4:8])
    return fields[0], {"box": box, "truncation": float(fields[1]), "occlusion": float(fields[2])}


def _image_name(root: Path, stem: str) -> str:
    return next((f"{stem}{suffix}" for suffix in SUFFIXES if (root / "image_2" / f"{stem}{suffix}").is_file()), f"{stem}.png")
