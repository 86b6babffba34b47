"""Parses COCO JSON, and joins a folder that holds one file for each image."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.datasets.issues import Issues, Policy
from workbench.datasets.reading import read_text
from workbench.errors import DataError

LARGEST = 2**62  # ids are below it, so that new ones can be counted on from the largest
LISTS = ("images", "annotations", "categories")
_PROBED = 4  # files; with fewer, each may be a small split


def parse_coco(file: Path) -> dict[str, Any]:
    """Returns the content of a COCO file.

    Raises:
        DataError: the file cannot be read, is not JSON, or lacks one of the lists.
    """
    try:
        data = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise DataError(f"{file} is not valid JSON: {error}") from error
    missing = [key for key in LISTS if not isinstance(data, dict) or not isinstance(data.get(key), list)]
    if missing:
        raise DataError(f"{file} is not COCO JSON: it lacks the list{'s' * (len(missing) > 1)} {', '.join(missing)}.")
    return data


def is_per_image(files: Sequence[Path]) -> bool:
    """True if there are at least four files and the first four describe one image each."""
    if len(files) < _PROBED:
        return False
    try:
        return all(len(parse_coco(file)["images"]) == 1 for file in files[:_PROBED])
    except DataError:
        return False


def merged(files: Sequence[Path], policy: Policy, issues: Issues) -> dict[str, Any]:
    """Returns one COCO content for all files.

    Ids of images and annotations count on from 1. Ids of categories are kept if all files agree on them; else the names, sorted, are
    numbered from 1.

    Args:
        files: one file per image, in the order that images get.
        policy: what to do about a file that cannot be parsed.
        issues: object that counts those.
    """
    contents: list[dict[str, Any]] = []
    for file in files:
        try:
            contents.append(parse_coco(file))
        except DataError as error:
            issues.add("broken_file", policy.action("broken_file"), str(error))
    declared = [category for data in contents for category in data["categories"] if isinstance(category, dict)]
    pairs = {(str(category.get("name")), category.get("id")) for category in declared}
    own_ids = dict(pairs)
    agreed = len(pairs) == len(own_ids) == len({i for _, i in pairs})
    id_of = own_ids if agreed else {name: number for number, name in enumerate(sorted(own_ids), start=1)}
    images: list[Any] = []
    annotations: list[Any] = []
    for data in contents:
        name_of = {str(category.get("id")): str(category.get("name")) for category in data["categories"] if isinstance(category, dict)}
        new_id: dict[str, int] = {}
        for image in data["images"]:
            if isinstance(image, dict):
                new_id[str(image.get("id"))] = len(images) + 1
                image = {**image, "id": len(images) + 1}
            images.append(image)
        for annotation in data["annotations"]:
            if isinstance(annotation, dict):
                image_id, category = new_id.get(str(annotation.get("image_id"))), name_of.get(str(annotation.get("category_id")), "")
                annotation = {**annotation, "id": len(annotations) + 1, "image_id": image_id, "category_id": id_of.get(category)}
            annotations.append(annotation)
    return {"images": images, "annotations": annotations, "categories": [{"id": i, "name": name} for name, i in id_of.items()]}


def whole(value: Any) -> int:
    """Returns a whole number.

    Raises:
        ValueError: ``value`` is not a whole number; other values raise TypeError or OverflowError.
    """
    number = int(value)
    exact = isinstance(value, int) or number == float(value)
    if isinstance(value, bool) or not exact or not -LARGEST <= number < LARGEST:
        raise ValueError(f"{str(value)[:50]} is not a whole number of 64 bits")
    return number


def real(value: Any) -> float:
    """Returns a number; text and booleans are none.

    Raises:
        TypeError: ``value`` is not a number.
        OverflowError: it is too large for a float.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{str(value)[:50]!r} is not a number")
    return float(value)
