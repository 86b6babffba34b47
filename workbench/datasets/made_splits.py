"""Makes the splits of a dataset that has none: reads what stratifies them from its annotations and its pixels."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from workbench.datasets.base import Dataset
from workbench.datasets.duplicates import groups
from workbench.datasets.images import inside
from workbench.datasets.issues import Issues, Policy
from workbench.datasets.pixels import kept, look_at
from workbench.datasets.reading import Contents, Format, usable
from workbench.datasets.splitting import SplitConfig, divide
from workbench.files import hash_json, time_of, write_text

# keeps every image that any policy keeps, so that the splits are the same under all of them
_EVERY_IMAGE = Policy(missing_image="drop", unsafe_file_name="drop", duplicate_image_id="drop", broken_file="drop", size_mismatch="fix")


def made_contents(
    format: Format,
    root: Path,
    split: str,
    config: SplitConfig,
    policy: Policy,
    issues: Issues,
    options: Mapping[str, Any],
    progress: Callable[[int, int], None] | None = None,
) -> Contents:
    """Returns what the files say of the images of a split that is made.

    Args:
        format: format of the dataset.
        root: its root.
        split: ``train``, ``val`` or ``test``.
        config: how the splits are made.
        policy: what to do about problems.
        issues: object that counts them.
        options: options of the format.
        progress: called with (number of images looked at, number of all images) if they have to be looked at.

    Raises:
        ConfigError: the split to divide must be named.
        DataError: it cannot be read, or has too few different images.
    """
    pool = config.pool(format.splits(root))
    made = _divided(root, format.read(root, pool, _EVERY_IMAGE, Issues(), **options), config, progress)
    split_of = {name: own for own, names in made.items() for name in names}
    contents = format.read(root, pool, policy, issues, **options)
    # an image that is missing or broken was not divided; it counts as one for training, where the policy says what is done about it
    return replace(contents, entries=[entry for entry in contents.entries if split_of.get(entry.file_name, "train") == split])


def write_lists(folder: Path, datasets: Mapping[str, Dataset]) -> None:
    """Writes the file names of each split as ``folder/SPLIT.txt``, one a line."""
    for split, dataset in datasets.items():
        write_text(folder / f"{split}.txt", "".join(f"{record.file_name}\n" for record in dataset.records))


def _divided(root: Path, contents: Contents, config: SplitConfig, progress: Callable[[int, int], None] | None) -> dict[str, list[str]]:
    """Returns the file names of each split; unchanged files are divided once, because comparing all images with all takes time."""

    def make() -> dict[str, list[str]]:
        items = list(usable(contents, _EVERY_IMAGE, Issues()))
        looks = look_at(root, [(item.path, item.upright) for item in items], progress)
        whole = [index for index, look in enumerate(looks) if look.error is None]
        records = [items[index].record for index in whole]
        alike = groups(np.array([looks[index].thumbnail for index in whole], np.uint8).reshape(len(whole), -1))
        labels = [record.labels[record.trainable].tolist() for record in records]
        return divide([record.file_name for record in records], labels, alike.tolist(), config.shares, config.seed)

    files = [(entry, inside(contents.folder, entry.file_name)) for entry in contents.entries]
    arrays = [[entry.boxes, entry.labels, entry.crowd, entry.ignore] for entry, _ in files]
    key = [
        str(contents.folder.resolve()),
        config.model_dump(),
        [[entry.file_name, entry.size, *(time_of(path) if path else ())] for entry, path in files],
        hash_json([[np.nan_to_num(array).tolist() for array in of_entry] for of_entry in arrays]),
    ]
    return kept("splits", key, make)
