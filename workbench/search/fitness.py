"""Holds a share of the training images out of the training of trials: the fitness split, recorded by image id in the search's folder.

The recipe's own val and test splits are never read by a search, so that what it found can be reported on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.datasets.base import Dataset
from workbench.errors import ConfigError, DataError
from workbench.files import hash_json, read_json, write_json

FITNESS = "fitness.json"
FORMAT_VERSION = 1
_HELD_OUT = 3  # keeps this random stream apart from those of the loader and the variants


@dataclass(frozen=True)
class FitnessSplit:
    """Which training images measure a trial, and which it is trained on.

    Attributes:
        image_ids: Ids of the images that are held out, ascending.
        hash: SHA-256 of ``image_ids``.
        held: Their positions in the training split, ascending.
        kept: Positions of all others, ascending.
    """

    image_ids: tuple[int, ...]
    hash: str
    held: tuple[int, ...]
    kept: tuple[int, ...]


def fitness_split(train: Dataset, share: float, seed: int, folder: Path) -> FitnessSplit:
    """Returns the split that a search recorded in its folder; draws and records it if there is none yet.

    Args:
        train: the training split of the recipe.
        share: share of its images that is held out.
        seed: seed of the draw, which depends on the ids alone and not on the order of the images.
        folder: folder of the search.

    Raises:
        DataError: some class has no box among the images that are held out, or among the others.
        ConfigError: the folder holds a split of other images, or with other settings; all differences are named.
    """
    wanted: dict[str, Any] = {"dataset": train.name, "dataset_hash": train.hash(), "split": train.split, "share": share, "seed": seed}
    if (folder / FITNESS).exists():
        image_ids = _recorded(folder / FITNESS, wanted)
    else:
        image_ids = _draw([record.image_id for record in train.records], share, seed)
    split = _placed(train, image_ids)
    _check_classes(train, split, share, seed)
    if not (folder / FITNESS).exists():
        write_json(folder / FITNESS, {"format_version": FORMAT_VERSION, **wanted, "image_ids": image_ids, "hash": split.hash})
    return split


def _draw(image_ids: Sequence[int], share: float, seed: int) -> list[int]:
    """Returns the ids that are held out, ascending: at least one, and never all."""
    ordered = sorted(image_ids)
    count = min(max(1, round(share * len(ordered))), len(ordered) - 1)
    picked = np.random.Generator(np.random.PCG64((seed, _HELD_OUT))).permutation(len(ordered))[:count]
    return sorted(ordered[index] for index in picked)


def _recorded(path: Path, wanted: dict[str, Any]) -> list[int]:
    """Returns the ids in the file of a search."""
    values = read_json(path)
    again = f"Continue this search with the settings it began with, or search under another name; {path.parent} is left as it is."
    known = isinstance(values, dict) and values.get("format_version") == FORMAT_VERSION
    if not known or hash_json(values.get("image_ids")) != values.get("hash"):
        raise ConfigError(f"{path} is damaged or of another version: its list of held-out images cannot be used. {again}")
    changed = [f"{name} {values.get(name)}, now {now}" for name, now in wanted.items() if values.get(name) != now]
    if changed:
        raise ConfigError(f"{path} holds out images for other settings: {'; '.join(changed)}. {again}")
    return values["image_ids"]


def _placed(train: Dataset, image_ids: Sequence[int]) -> FitnessSplit:
    held = sorted(train.positions[image_id] for image_id in image_ids)
    others = sorted(set(range(len(train))) - set(held))
    return FitnessSplit(tuple(image_ids), hash_json(list(image_ids)), tuple(held), tuple(others))


def _check_classes(train: Dataset, split: FitnessSplit, share: float, seed: int) -> None:
    """Checks that every class can be learned and measured."""
    for where, positions in (("that are held out to measure trials", split.held), ("that trials are trained on", split.kept)):
        there = {int(label) for index in positions for label in train.records[index].labels[train.records[index].trainable]}
        missing = [name for label, name in enumerate(train.classes) if label not in there]
        if missing:
            raise DataError(
                f"split '{train.split}' of {train.name}: of the {len(positions)} images {where} (fitness {share:g}, seed {seed}) none "
                f"has a box of {', '.join(missing)}. Choose another seed or fitness of the search, or take the class out of the data."
            )
