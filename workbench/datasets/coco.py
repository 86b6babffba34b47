"""Reads COCO JSON, and writes any dataset as COCO.

Category ids may have gaps; labels are the ranks of the ids. Boxes are [x, y, width, height] in continuous pixels. A folder with one file
per image is one split: images are numbered in the order of the files, and categories are told apart by their names.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from workbench.datasets.base import Dataset
from workbench.datasets.coco_parts import LARGEST, is_per_image, merged, parse_coco, real, whole
from workbench.datasets.images import inside
from workbench.datasets.issues import Issues, Policy
from workbench.datasets.reading import Contents, Entry, Format, entry_from_rows, match_split, subfolders
from workbench.errors import DataError
from workbench.files import replacing, write_json

EXPECTS = (
    "a JSON file with images, annotations and categories, or a folder with instances.json, annotations/instances_SPLIT.json, "
    "SPLIT/_annotations.coco.json or one such JSON file for each image"
)
_SNIFFED = re.compile(r'"(images|annotations|categories|licenses)"\s*:\s*\[|"info"\s*:\s*\{')


def roots(path: Path) -> list[Path]:
    """Returns ``path`` itself if it is or holds an annotation file."""
    return [path] if _files(path) else []


def splits(root: Path) -> tuple[str, ...]:
    """Returns the names of the splits. A single file is the split ``all``."""
    return tuple(_files(root))


def read(root: Path, split: str, policy: Policy, issues: Issues, images: str | None = None) -> Contents:
    """Reads one split.

    Args:
        root: a root found by ``roots``.
        split: name of the split.
        policy: what to do about problems.
        issues: object that counts them.
        images: image folder, relative to ``root``; None looks in images/SPLIT, SPLIT, images and beside the file.

    Raises:
        DataError: there is no such split, or the file is not COCO JSON.
    """
    files = _files(root)
    found = match_split(split, list(files))
    if found is None:
        hint = " It holds one split, which can be opened as split 'all'." if len(files) == 1 else ""
        raise DataError(f"{root} has no COCO split '{split}'. Splits there: {', '.join(files) or 'none'}.{hint}")
    file = files[found][0]
    data = parse_coco(file) if len(files[found]) == 1 else merged(files[found], policy, issues)
    category_ids, classes = _categories(data["categories"], file)
    label_of = {category: label for label, category in enumerate(category_ids)}
    rows: dict[int, list[dict[str, Any]]] = {}
    listed: list[tuple[int, str, tuple[int, int]]] = []
    for image in data["images"]:
        item = _image(image, file, policy, issues)
        if item is None:
            continue
        if item[0] in rows:
            issues.add("duplicate_image_id", policy.action("duplicate_image_id"), f"image {item[0]}, again as {item[1]}")
            continue
        rows[item[0]] = []
        listed.append(item)
    for image_id, row in _rows(data["annotations"], rows, label_of, policy, issues):
        rows[image_id].append(row)
    entries = [entry_from_rows(image_id, name, size, rows[image_id], own_ids=True) for image_id, name, size in listed]
    base = root if root.is_dir() else root.parent
    folder = base / images if images else _image_folder(base, file, found, entries)
    return Contents(root.stem if root.is_file() else root.name, classes, category_ids, folder, entries)


FORMAT = Format("coco", EXPECTS, roots, splits, read, frozenset({"images"}))


def write_coco(dataset: Dataset, folder: Path) -> Path:
    """Writes images (PNG) and annotations of one split as a COCO folder, beside any splits that exist there.

    Returns:
        The annotation file, ``annotations/instances_SPLIT.json``, which is written last.
    """
    images = folder / "images" / dataset.split
    ground_truth = dataset.coco()
    for annotation in ground_truth["annotations"]:
        annotation["area"] = annotation.pop("mask_area", annotation["area"])  # COCO's area is the mask's
    for index, record in enumerate(ground_truth["images"]):
        name = str(Path(record["file_name"]).with_suffix(".png"))
        path = inside(images, name)
        if path is None:
            raise DataError(f"image {record['id']} of {dataset.name} has a file name that leaves its folder: {name!r}. Rename it.")
        record["file_name"] = name
        with replacing(path) as temporary:
            Image.fromarray(dataset.image(index)).save(temporary, format="PNG")
    if len({record["file_name"] for record in ground_truth["images"]}) < len(dataset):
        raise DataError(f"{dataset.name} has images whose names differ only in their ending. As PNG they would be one file. Rename them.")
    target = folder / "annotations" / f"instances_{dataset.split}.json"
    write_json(target, ground_truth)
    return target


def _files(root: Path) -> dict[str, list[Path]]:
    """Returns the annotation files of each split: one, or one for each image."""
    if root.is_file():
        return {"all": [root]} if root.suffix == ".json" and _looks_right(root) else {}
    found: dict[str, list[Path]] = {}
    loose: list[Path] = []
    for file in sorted([*root.glob("annotations/*.json"), *root.glob("*.json"), *root.glob("*/_annotations.coco.json")]):
        if not _looks_right(file):
            continue
        if file.name == "_annotations.coco.json":
            found[file.parent.name] = [file]
        elif file.stem in ("instances", "annotations"):
            found["all"] = [file]
        elif file.stem.startswith("instances_"):
            found[file.stem.removeprefix("instances_")] = [file]
        elif not file.stem.startswith(("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")):
            loose.append(file)
    if is_per_image(loose):
        found.setdefault("all", loose)
    else:
        for file in loose:
            found.setdefault(file.stem, [file])
    if not found:
        folders = {folder.name: _right(folder.glob("*.json")) for folder in subfolders(root)}
        found = {name: files for name, files in folders.items() if is_per_image(files)}
    return found


def _right(files: Iterable[Path]) -> list[Path]:
    return [file for file in sorted(files) if _looks_right(file)]


def _looks_right(file: Path) -> bool:
    """True for the usual name, or if the first kilobytes show a key of COCO. Parsing the whole file would take seconds."""
    if file.stem.startswith("instances"):
        return True
    try:
        with open(file, encoding="utf-8-sig", errors="replace") as stream:
            start = stream.read(4096)
    except OSError:
        return False
    return start.lstrip()[:1] == "{" and _SNIFFED.search(start) is not None


def _categories(categories: list[Any], file: Path) -> tuple[tuple[int, ...], tuple[str, ...]]:
    try:
        pairs = sorted((whole(category["id"]), str(category["name"])) for category in categories)
        _ = [name.encode() for _, name in pairs]  # half a letter in a name is a UnicodeEncodeError, which is a ValueError
    except (TypeError, KeyError, ValueError, OverflowError, AttributeError) as error:
        raise DataError(f"{file}: every category needs a whole-number id and a name ({str(error)[:200]}).") from error
    twice = [i for i, count in Counter(i for i, _ in pairs).items() if count > 1]
    if twice:
        raise DataError(f"{file}: category ids occur twice: {twice}. Give every category its own id.")
    return tuple(i for i, _ in pairs), tuple(name for _, name in pairs)


def _image(image: Any, file: Path, policy: Policy, issues: Issues) -> tuple[int, str, tuple[int, int]] | None:
    """Returns id, file name and declared size. Returns None and counts a problem for an entry that lacks id or name."""
    try:
        size = (whole(image.get("width") or 0), whole(image.get("height") or 0))
        return whole(image["id"]), str(image["file_name"]), size if all(size) else (0, 0)
    except (AttributeError, TypeError, KeyError, ValueError, OverflowError):
        what = f"{file.name}: image {str(image)[:80]} lacks a whole-number id or a file_name"
        issues.add("broken_annotation", policy.action("broken_annotation"), what)
        return None


def _rows(
    annotations: list[Any],
    images: dict[int, Any],
    label_of: dict[int, int],
    policy: Policy,
    issues: Issues,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields pairs of image id and row, in file order."""
    used: set[int] = set()
    own = (a["id"] for a in annotations if isinstance(a, dict) and isinstance(a.get("id"), int))
    fresh = 1 + max((number for number in own if number < LARGEST), default=0)
    for position, annotation in enumerate(annotations):
        try:
            annotation_id = whole(annotation["id"]) if "id" in annotation else None
            image_id, category = whole(annotation["image_id"]), whole(annotation["category_id"])
            x, y, width, height = (real(value) for value in annotation["bbox"])
            crowd, area = bool(annotation.get("iscrowd", 0)), real(annotation.get("area") or np.nan)
        except (AttributeError, TypeError, KeyError, ValueError, OverflowError):
            what = f"annotation number {position + 1} lacks whole-number ids of image and category or a bbox of four numbers"
            issues.add("broken_annotation", policy.action("broken_annotation"), what)
            continue
        if image_id not in images or category not in label_of:
            what = f"image {image_id}" if image_id not in images else f"category {category}"
            where = f"annotation {annotation_id} of {what}, which is not declared"
            issues.add("dangling_reference", policy.action("dangling_reference"), where)
            continue
        if annotation_id in used:
            action = policy.action("duplicate_annotation_id")
            issues.add("duplicate_annotation_id", action, f"annotation {annotation_id}, again at number {position + 1}")
            if action != "fixed":
                continue
        if annotation_id is None or annotation_id in used:
            annotation_id, fresh = fresh, fresh + 1
        used.add(annotation_id)
        box, mask = (x, y, x + width, y + height), annotation.get("segmentation")
        yield image_id, {"box": box, "label": label_of[category], "crowd": crowd, "area": area, "id": annotation_id, "mask": mask}


def _image_folder(base: Path, file: Path, split: str, entries: list[Entry]) -> Path:
    """Returns the first of the usual folders that holds one of the first images."""
    candidates = [base / "images" / split, base / split, base / "images", file.parent, base]
    for folder in candidates:
        paths = (inside(folder, entry.file_name) for entry in entries[:20])
        if any(path is not None and path.is_file() for path in paths):
            return folder
    return next((folder for folder in candidates if folder.is_dir()), base)
