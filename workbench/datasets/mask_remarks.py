"""Finds what is legal in masks and often a mistake: polygons that cross themselves or leave the image, masks that do not fit their box."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from workbench.datasets.object_masks import BrokenMaskError, Masks, in_pixels, polygons_of
from workbench.datasets.reading import OUTSIDE_TOLERANCE, Contents, Usable
from workbench.datasets.remarks import Remark, counted

_MOST_COMPARED = 2_000  # points of a polygon whose sides are compared with each other, which takes time with their square
_APART = (2.0, 0.1)  # pixels, and share of the box's side, by which an edge of the mask may differ from the box's


def of_masks(contents: Sequence[Contents], items: Sequence[Usable]) -> Iterator[Remark]:
    """Yields remarks about the masks of a dataset; nothing if it has none.

    Args:
        contents: what the files of each split say, for the polygons.
        items: the images, opened with masks.
    """
    with_masks = [(item.record, item.record.masks) for item in items if item.record.masks is not None]
    if not any(masks.has_any for _, masks in with_masks):
        return
    places: dict[str, list[str]] = {kind: [] for kind in ("missing", "empty", "apart")}
    total = 0
    for record, masks in with_masks:
        for g, what in _of_image(record.boxes, masks):
            if record.trainable[g]:
                places[what].append(f"{record.file_name}: box {g + 1}")
        total += int(record.trainable.sum())
    sizes = {item.record.file_name: (item.record.width, item.record.height) for item in items}
    crossing, outside = _polygons(contents, sizes)
    for kind, found, text in (
        ("mask_missing", places["missing"], f"of {counted(total, 'target')} have no mask; a detector of masks learns their box alone"),
        ("mask_empty", places["empty"], "masks hold no pixel"),
        ("mask_crosses_itself", crossing, "polygons cross themselves; where they do, even-odd and winding rule differ"),
        ("mask_outside", outside, "polygons reach over the border of the image, where they are cut off"),
        ("mask_and_box_differ", places["apart"], "masks end elsewhere than their box does"),
    ):
        if found:
            yield Remark(kind, f"{len(found):,} {text}", len(found), found[:5])


def crosses_itself(polygon: np.ndarray) -> bool:
    """Returns True if two sides of a polygon ``[P, 2]`` cross, or if one passes a corner of another; False if it has too many points.

    Sides that only touch in their common corner do not count, and neither do corners that are given twice.
    """
    points = polygon[(polygon != np.roll(polygon, 1, axis=0)).any(1)]
    if not 3 < len(points) <= _MOST_COMPARED:
        return False
    start, end = points, np.roll(points, -1, axis=0)

    def side_of(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        """Returns on which side of the lines from a to b, one a row, the points c lie, one a column."""
        along, to = (b - a)[:, None], c[None] - a[:, None]
        return np.sign(along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0])

    # a side crosses another if the ends of each lie on different sides of the other
    apart = side_of(start, end, start) * side_of(start, end, end) < 0
    return bool((apart & apart.T).any())


def _of_image(boxes: np.ndarray, masks: Masks) -> Iterator[tuple[int, str]]:
    around = masks.boxes()
    for g, counts in enumerate(masks.counts):
        sides = np.tile(boxes[g, 2:] - boxes[g, :2], 2)
        if counts is None:
            yield g, "missing"
        elif (around[g, 2:] <= around[g, :2]).any():
            yield g, "empty"
        elif (abs(around[g] - boxes[g]) > np.maximum(_APART[0], _APART[1] * sides)).any():
            yield g, "apart"


def _polygons(contents: Sequence[Contents], sizes: dict[str, tuple[int, int]]) -> tuple[list[str], list[str]]:
    """Returns the places of polygons that cross themselves, and of those that reach over the border."""
    crossing: dict[str, None] = {}
    outside: dict[str, None] = {}
    for entry in (entry for content in contents for entry in content.entries if entry.file_name in sizes):
        width, height = sizes[entry.file_name]
        for g, source in enumerate(entry.masks or ()):
            for polygon in _readable(in_pixels(source, width, height) if entry.relative else source):
                place = f"{entry.file_name}: {f'annotation {entry.annotation_ids[g]}' if entry.own_ids else f'box {g + 1}'}"
                if crosses_itself(polygon):
                    crossing[place] = None
                if (polygon < -OUTSIDE_TOLERANCE).any() or (polygon > np.array([width, height]) + OUTSIDE_TOLERANCE).any():
                    outside[place] = None
    return list(crossing), list(outside)


def _readable(source: Any) -> list[np.ndarray]:
    if not isinstance(source, list):
        return []
    try:
        return list(polygons_of(source))
    except BrokenMaskError:
        return []  # counted as broken_mask when it was read
