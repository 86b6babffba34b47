"""Defines what every format reader returns, and applies the policy that turns it into records."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.datasets.base import Record
from workbench.datasets.images import Header, inside, most_pixels, read_header, too_large
from workbench.datasets.issues import Issues, Policy
from workbench.datasets.object_masks import Masks, in_pixels, read_masks
from workbench.errors import DataError

OUTSIDE_TOLERANCE = 0.05  # pixels: annotation files round to two decimals
LEAST_SIDE = 0.01  # pixels
_SPLIT_ALIASES = {"val": ("valid", "validation"), "train": ("training",), "test": ("testing",)}


class UnnamedClassesError(DataError):
    """The files number their classes, and the list of their names is missing."""


@dataclass
class Entry:
    """One image as its annotation file describes it, boxes unchecked.

    Attributes:
        image_id: Id of the image, unique in the split.
        file_name: Name relative to ``Contents.folder``; not yet known to be safe or to exist.
        size: Declared width and height; (0, 0) if the file should declare them and does not, None if the format has none.
        boxes: ``[G, 4]`` float64 xyxy in continuous pixels.
        labels: ``[G]`` int64.
        crowd: ``[G]`` bool.
        ignore: ``[G]`` bool.
        annotation_ids: ``[G]`` int64.
        areas: ``[G]`` float64, NaN if the file has none.
        own_ids: True if the annotation ids are the file's own, so that messages name them; else they are running numbers.
        relative: True if boxes are shares of the image's width and height.
        attributes: Attributes of every box, as in ``Record``.
        masks: What the file says of each target's mask, as ``object_masks.read_mask`` takes it; in shares where ``relative``. None without
            masks.
    """

    image_id: int
    file_name: str
    size: tuple[int, int] | None
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    ignore: np.ndarray
    annotation_ids: np.ndarray
    areas: np.ndarray
    own_ids: bool = False
    relative: bool = False
    attributes: Mapping[str, np.ndarray] = field(default_factory=dict)
    masks: Sequence[Any] | None = None


@dataclass
class Contents:
    """One split as its files describe it."""

    name: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    folder: Path
    entries: list[Entry]


@dataclass(frozen=True)
class Format:
    """A dataset format: how it is recognised and read.

    Attributes:
        name: Name in recipes.
        expects: One line on the files that must be there.
        roots: Returns the folders (or files) at or below a path that look like this format.
        splits: Returns the names of the splits at a root.
        read: ``read(root, split, policy, issues, **options)``; raises ``DataError`` only if nothing can be read.
        options: Names of the options that ``read`` takes.
    """

    name: str
    expects: str
    roots: Callable[[Path], list[Path]]
    splits: Callable[[Path], tuple[str, ...]]
    read: Callable[..., Contents]
    options: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Usable:
    """An entry that passed the checks, its file, and whether decoding applies the EXIF orientation."""

    record: Record
    path: Path
    upright: bool


def usable(contents: Contents, policy: Policy, issues: Issues, masks: bool = False) -> Iterator[Usable]:
    """Checks every entry against its image's header and the policy. Entries that are left out are counted in ``issues``.

    With ``masks`` the records hold them; a mask that cannot be read is left out and counted, and its target stays.
    """
    for entry in contents.entries:
        found = _image_of(entry, contents.folder, policy, issues)
        if found is None:
            continue
        path, header = found
        sized = _size_of(entry, header, policy, issues)
        if sized is None:
            continue
        width, height, upright = sized
        record = _record(entry, width, height, policy, issues, masks)
        if not len(record.boxes):
            issues.add("image_without_boxes", "kept", entry.file_name)
        yield Usable(record, path, upright)


def match_split(wanted: str, available: Sequence[str]) -> str | None:
    """Returns the name under which a split exists: itself, with a year (val2017), a usual other name (valid), or ``all`` if it is alone."""
    if wanted in available:
        return wanted
    if wanted == "all" and len(available) == 1:
        return available[0]
    names = (wanted, *_SPLIT_ALIASES.get(wanted, ()))
    found = [a for a in available if a in names or any(a.startswith(n) and a[len(n) :].isdigit() for n in names)]
    return found[0] if len(found) == 1 else None


def required_split(wanted: str, available: Sequence[str], where: Path) -> str:
    """Does what ``match_split`` does, but raises ``DataError`` that lists the splits if there is none of this name."""
    found = match_split(wanted, available)
    if found is None:
        raise DataError(f"{where} has no split '{wanted}'. Splits there: {', '.join(available) or 'none'}.")
    return found


def subfolders(folder: Path) -> list[Path]:
    """Returns the folders directly in ``folder``, sorted; empty if it is no folder. It costs no look at each of a million files."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir())


def read_text(path: Path) -> str:
    """Returns the UTF-8 text of an annotation file.

    Raises:
        DataError: the file cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def entry_from_rows(
    image_id: int,
    file_name: str,
    size: tuple[int, int] | None,
    rows: Sequence[dict[str, Any]],
    own_ids: bool = False,
    relative: bool = False,
    attributes: Sequence[str] = (),
) -> Entry:
    """Makes an ``Entry`` from dicts with ``box``, ``label``, ``id``, and optional ``crowd``, ``ignore``, ``area``, ``mask`` and
    ``attributes``.
    """
    return Entry(
        image_id,
        file_name,
        size,
        boxes=np.array([row["box"] for row in rows], np.float64).reshape(-1, 4),
        labels=np.array([row["label"] for row in rows], np.int64),
        crowd=np.array([row.get("crowd", False) for row in rows], bool),
        ignore=np.array([row.get("ignore", False) for row in rows], bool),
        annotation_ids=np.array([row["id"] for row in rows], np.int64),
        areas=np.array([row.get("area", np.nan) for row in rows], np.float64),
        own_ids=own_ids,
        relative=relative,
        attributes={name: np.array([row[name] for row in rows], np.float64) for name in attributes},
        masks=[row.get("mask") for row in rows],
    )


def _image_of(entry: Entry, folder: Path, policy: Policy, issues: Issues) -> tuple[Path, Header] | None:
    path = inside(folder, entry.file_name)
    if path is None:
        issues.add("unsafe_file_name", policy.action("unsafe_file_name"), repr(entry.file_name))
        return None
    if not path.is_file():
        issues.add("missing_image", policy.action("missing_image"), str(path))
        return None
    try:
        header = read_header(path)
    except DataError as error:
        issues.add("unreadable_image", policy.action("unreadable_image"), str(error))
        return None
    if header.stored[0] * header.stored[1] > most_pixels():
        issues.add("too_many_pixels", policy.action("too_many_pixels"), f"{entry.file_name}: {too_large(header.stored)}")
        return None
    for kind in header.conversions:
        issues.add(kind, "converted", entry.file_name)
    return path, header


def _size_of(entry: Entry, header: Header, policy: Policy, issues: Issues) -> tuple[int, int, bool] | None:
    """Returns width, height and whether to apply the EXIF orientation.

    The declared size decides what the boxes refer to. It is the displayed image if that fits or if nothing is declared, and the
    stored pixels if only those fit.
    """
    upright = header.turned
    size = header.displayed
    if entry.size == (0, 0):
        issues.add("undeclared_size", "fixed", entry.file_name)
    elif entry.size is not None and entry.size != size:
        if entry.size == header.stored:
            upright, size = False, header.stored
        else:
            action = policy.action("size_mismatch")
            issues.add("size_mismatch", action, f"{entry.file_name}: declared {entry.size[0]}x{entry.size[1]}, is {size[0]}x{size[1]}")
            if action == "dropped":
                return None
    if header.turned:
        issues.add("exif_rotated_image", "converted" if upright else "kept", entry.file_name)
    return *size, upright


def _record(entry: Entry, width: int, height: int, policy: Policy, issues: Issues, masks: bool) -> Record:
    limits = np.array([width, height, width, height], np.float64)
    boxes = entry.boxes * limits if entry.relative else entry.boxes.copy()
    keep = np.ones(len(boxes), bool)

    def settle(kind: str, bad: NDArray[np.bool_]) -> None:
        for g in np.flatnonzero(bad & keep):
            action = policy.action(kind)
            box = ", ".join(f"{value:g}" for value in entry.boxes[g])
            which = f"annotation {entry.annotation_ids[g]}" if entry.own_ids else f"box {g + 1}"
            issues.add(kind, action, f"{entry.file_name}: {which} ({box})")
            keep[g] = action == "fixed"

    settle("non_finite_box", ~np.all(np.isfinite(boxes), axis=1))
    boxes[~keep] = 0
    settle("inverted_box", np.any(boxes[:, :2] > boxes[:, 2:], axis=1))
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
    clipped = np.clip(boxes, 0, limits)
    settle("zero_size_box", np.any(clipped[:, 2:] - clipped[:, :2] < LEAST_SIDE, axis=1))
    settle("box_outside", np.any(abs(clipped - boxes) > OUTSIDE_TOLERANCE, axis=1))
    boxes = clipped[keep]
    own = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    areas = entry.areas[keep]
    areas = np.where(np.isfinite(areas) & (areas > 0), areas, own)
    return Record(
        entry.image_id,
        entry.file_name,
        width,
        height,
        boxes,
        entry.labels[keep],
        entry.crowd[keep],
        entry.ignore[keep],
        entry.annotation_ids[keep],
        areas,
        {name: values[keep] for name, values in entry.attributes.items()},
        _masks(entry, keep, width, height, issues) if masks else None,
    )


def _masks(entry: Entry, keep: np.ndarray, width: int, height: int, issues: Issues) -> Masks:
    kept = np.flatnonzero(keep).tolist()
    sources = [None if entry.masks is None else entry.masks[g] for g in kept]
    if entry.relative:
        sources = [in_pixels(source, width, height) for source in sources]
    masks, broken = read_masks(sources, entry.areas[kept], height, width)
    for number, reason in broken:
        g = kept[number]
        which = f"annotation {entry.annotation_ids[g]}" if entry.own_ids else f"box {g + 1}"
        issues.add("broken_mask", "dropped", f"{entry.file_name}: {which}: {reason}")
    return masks
