"""Finds what is legal in a dataset and often a mistake: empty and doubled classes, leaks between splits, boxes that training cannot use."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.datasets.duplicates import Thumbnails, groups, twins
from workbench.datasets.issues import EXAMPLES
from workbench.datasets.pixels import kept
from workbench.datasets.reading import Contents, Usable
from workbench.datasets.transforms import Transform, TransformConfig
from workbench.files import hash_json

LEAST_PIXELS = 4  # a box with a shorter side lies inside half a cell of the finest usual level, which has stride 8
_WHOLE = 0.99  # share of width and of height


@dataclass
class Remark:
    """One kind of thing that is worth a look.

    Attributes:
        kind: Short name.
        text: What was found, as the end of a sentence that begins with the kind.
        count: How often.
        examples: The first of them.
    """

    kind: str
    text: str
    count: int
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        shown = f" ({'; '.join(self.examples)}{more})" if self.examples else ""
        return f"{self.kind.replace('_', ' ')}: {self.text}{shown}"


def of_classes(
    contents: Mapping[str, Contents], boxes: Mapping[str, Mapping[str, tuple[int, int]]], roles: Sequence[str]
) -> Iterator[Remark]:
    """Yields remarks about the classes.

    Args:
        contents: what the files of each split say.
        boxes: number of boxes and of images with some, by class and split.
        roles: splits for training, validation and test.
    """
    first = next(iter(contents.values()))
    others = [split for split, content in contents.items() if content.classes != first.classes]
    if others:
        different = sorted({name for split in others for name in set(contents[split].classes) ^ set(first.classes)})
        what = "declare other classes, or another order, than the first split; a run needs the same in all"
        yield _remark("classes_differ", f"{', '.join(others)} {what}", different or others)
    empty = [name for name, by_split in boxes.items() if not any(count for count, _ in by_split.values())]
    if empty:
        ids = dict(zip(first.classes, first.category_ids, strict=True))
        text = f"{len(empty):,} of {counted(len(boxes), 'class')}; a detector gets an output for each that it never learns"
        if ids.get(empty[0]) == 0 and len(empty) == 1:
            text += ". Roboflow writes such a category with id 0; take it out of the file"
        yield _remark("class_without_boxes", text, empty)
    for split in roles:
        lacking = [name for name, by_split in boxes.items() if name not in empty and not by_split.get(split, (0, 0))[0]]
        if lacking:
            why = "it cannot be learned" if split == roles[0] and split.startswith("train") else "its AP is not defined there"
            yield _remark("class_not_in_split", f"{len(lacking):,} classes have no box in {split}, so {why}", lacking)
    pairs = list(_alike(list(boxes)))
    if pairs:
        yield _remark("class_names_alike", "names that differ only by case, punctuation or plural", [f"{a!r} and {b!r}" for a, b in pairs])


def of_leaks(looks: Mapping[str, tuple[Sequence[Usable], Thumbnails]]) -> Iterator[Remark]:
    """Yields remarks about images that two splits share, exactly or nearly.

    Args:
        looks: images and thumbnails of the splits for training, validation and test.
    """
    splits = list(looks)
    for position, split in enumerate(splits):
        for earlier in splits[:position]:
            (items, own), (others, other) = looks[split], looks[earlier]
            paths = {item.path for item in others}
            both = [item.record.file_name for item in items if item.path in paths]
            if both:
                yield _remark("image_in_two_splits", f"{len(both):,} of the {len(items):,} images of {split} are in {earlier} too", both)
            found = kept("twins", [_digest(own), _digest(other)], lambda own=own, other=other: twins(own, other).tolist())
            pairs = [(item, others[twin]) for item, twin in zip(items, found, strict=True) if twin >= 0 and item.path not in paths]
            if pairs:
                text = f"{len(pairs):,} of the {len(items):,} images of {split} have a near-duplicate in {earlier}, so its AP is too high"
                yield _remark("leak", text, [f"{a.record.file_name} and {earlier} {b.record.file_name}" for a, b in pairs])


def of_repeats(items: Sequence[Usable], thumbnails: Thumbnails) -> Iterator[Remark]:
    """Yields how many images are near-duplicates of others, wherever these are."""
    together = np.array(kept("groups", _digest(thumbnails), lambda: groups(thumbnails).tolist()), np.int64)
    counts = np.bincount(together)
    repeated = np.flatnonzero(counts > 1)
    if len(repeated):
        members = [[item.record.file_name for item, own in zip(items, together, strict=True) if own == one] for one in repeated[:EXAMPLES]]
        size = counts[repeated].sum()
        text = f"{size:,} images in {counted(len(repeated), 'group')} look the same; splits that are made keep each group together"
        examples = [", ".join(names[:3]) + ", ..." * (len(names) > 3) for names in members]
        yield Remark("near_duplicates", text, len(repeated), examples)


def of_boxes(items: Sequence[Usable], classes: Sequence[str], transform: TransformConfig, at: str) -> Iterator[Remark]:
    """Yields remarks about boxes: those that are the whole image, and those that a transform makes too small.

    Args:
        items: the images.
        classes: class names.
        transform: how images are resized.
        at: that size in words.
    """
    whole: list[str] = []
    small: list[str] = []
    lost, boxes = np.zeros(len(classes), np.int64), 0
    resize = Transform(transform).evaluation_ops
    for item in items:
        record = item.record
        use = record.trainable
        sides = (record.boxes[:, 2:] - record.boxes[:, :2])[use]
        boxes += len(sides)
        full = (sides >= _WHOLE * np.array([record.width, record.height])).all(1)
        whole += [record.file_name] * int(full.sum())
        ops = resize(record.width, record.height)
        scale = [ops[0]["width"] / record.width, ops[0]["height"] / record.height] if ops else [1.0, 1.0]
        vanishing = (sides * scale).min(1) < LEAST_PIXELS if len(sides) else np.zeros(0, bool)
        small += [record.file_name] * bool(vanishing.any())
        lost += np.bincount(record.labels[use][vanishing], minlength=len(classes))
    if whole:
        yield _remark("box_is_whole_image", f"{len(whole):,} of {boxes:,} boxes; an image label, not an object?", whole)
    if lost.any():
        most = [f"{classes[label]} {lost[label]:,}" for label in np.argsort(-lost, kind="stable")[:3] if lost[label]]
        share = f"{lost.sum():,} of {boxes:,} boxes ({100 * lost.sum() / boxes:.1f} %)"
        text = f"{share} have a side below {LEAST_PIXELS} pixels {at}; most are of {', '.join(most)}"
        yield Remark("box_vanishes", text, len(small), small[:EXAMPLES])


def counted(count: int, what: str) -> str:
    """Returns a number and its noun in the singular or plural."""
    plural = f"{what}es" if what.endswith(("x", "s")) else f"{what}s"
    return f"{count:,} {what if count == 1 else plural}"


def _remark(kind: str, text: str, places: Sequence[str]) -> Remark:
    return Remark(kind, text, len(places), list(places[:EXAMPLES]))


def _alike(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields pairs of names that one spelling could stand for."""
    seen: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[\W_]+", "", name.lower()) or name
        singular = (re.sub(r"ies$", "y", plain), re.sub(r"(?<=[sxzh])es$", "", plain), re.sub(r"(?<=[^s])s$", "", plain))
        # what is left of "A s" or "7s" says nothing
        forms = dict.fromkeys((plain, *(form for form in singular if len(form) > 2)))
        known = next((seen[form] for form in forms if form in seen), None)
        if known is not None:
            yield known, name
        for form in forms:
            seen.setdefault(form, name)


def _digest(thumbnails: Thumbnails) -> Any:
    return hash_json([len(thumbnails), thumbnails.tobytes().hex()])
