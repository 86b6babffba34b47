"""Opens the dataset at a path: finds its format, or says what was seen and what was expected."""

import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from workbench.datasets import coco, kitti, voc, yolo
from workbench.datasets.advice import advice_on, seen_at
from workbench.datasets.base import Dataset
from workbench.datasets.images import FolderImages
from workbench.datasets.issues import Issues, Policy
from workbench.datasets.made_splits import made_contents
from workbench.datasets.reading import Format, subfolders, usable
from workbench.datasets.shapes import ShapesConfig, generate_shapes
from workbench.datasets.splitting import SplitConfig
from workbench.errors import ConfigError, DataError

_log = logging.getLogger(__name__)
FORMATS = {format.name: format for format in (coco.FORMAT, voc.FORMAT, kitti.FORMAT, yolo.FORMAT)}


def open_dataset(
    path: str | Path,
    split: str,
    format: str = "auto",
    policy: Policy | None = None,
    splits: SplitConfig | None = None,
    masks: bool = False,
    **options: Any,
) -> Dataset:
    """Opens one split.

    Example:
        >>> dataset = open_dataset("shapes", "val", val=20)
        >>> len(dataset), dataset.classes
        (20, ('circle', 'square', 'triangle', 'cross'))
        >>> dataset.image(0).shape, dataset.records[0].boxes.shape
        ((96, 96, 3), (6, 4))

    Args:
        path: folder or file, or ``shapes`` for the built-in generator.
        split: name of the split; ``all`` if the files define no splits.
        format: ``auto``, ``shapes``, ``coco``, ``voc``, ``kitti`` or ``yolo``.
        policy: what to do about problems in the files.
        splits: makes train, val and test from one split of the files; None takes the splits as the files define them.
        masks: also reads the masks of the targets. Without it they cost neither time nor memory.
        options: options of the format: images (coco), classes (voc, kitti, yolo), the fields of ``ShapesConfig``.

    Raises:
        DataError: the dataset cannot be used; the message says what was seen and what was expected.
        ConfigError: the format or an option is unknown.
    """
    if format == "shapes" or (format == "auto" and str(path) == "shapes"):
        if splits is not None:
            raise ConfigError("the dataset shapes makes its own splits. Remove data.splits, or set data.options.val and data.options.test.")
        return generate_shapes(_shapes_config(options), split, masks)
    found, root = find_format(Path(path), format)
    unknown = sorted(set(options) - found.options)
    if unknown:
        raise ConfigError(f"format {found.name} has no option {', '.join(unknown)}; it has {', '.join(sorted(found.options)) or 'none'}.")
    policy = policy or Policy()
    issues = Issues()
    if splits is not None and split in splits.shares:
        contents = made_contents(found, root, split, splits, policy, issues, options)
    else:
        contents = found.read(root, split, policy, issues, **options)
    items = list(usable(contents, policy, issues, masks))
    issues.raise_refused(f"{root}, split '{split}',")
    for issue in issues:
        _log.log(logging.WARNING if issue.severity == "error" else logging.INFO, "%s, split '%s': %s", root, split, issue)
    paths = [item.path for item in items]
    images = FolderImages(paths, [item.upright for item in items])
    return Dataset(contents.name, split, contents.classes, contents.category_ids, [item.record for item in items], images, issues, paths)


def find_format(path: Path, format: str = "auto") -> tuple[Format, Path]:
    """Returns the format of the dataset at ``path``, and its root, which may be a folder below.

    Raises:
        DataError: there is no dataset, none of a known format, or more than one.
        ConfigError: the name of the format is unknown.
    """
    if format != "auto" and format not in FORMATS:
        raise ConfigError(f"unknown dataset format '{format}'. Choose auto, shapes, {', '.join(FORMATS)}.")
    if not _exists(path):
        raise DataError(f"no dataset at {str(path)[:500]}: there is no such file or folder.")
    candidates = [FORMATS[format]] if format != "auto" else list(FORMATS.values())
    found = [(candidate, root) for candidate in candidates for root in candidate.roots(path)]
    if len(found) == 1:
        return found[0]
    if found:
        several = "; ".join(f"{candidate.name} at {root}" for candidate, root in found)
        raise DataError(f"{path} holds more than one dataset: {several}. Give the path of one of them, and its format.")
    others = [(other.name, root) for other in FORMATS.values() for root in other.roots(path)] if format != "auto" else []
    if len(others) == 1:
        name, root = others[0]
        raise DataError(
            f"{root} is a dataset of format {name}, but {format} was asked for. Read it as it is: --set data.format={name} with a recipe "
            f"(or data.format: auto in it, which tries every format), --format {name} with 'data check'."
        )
    expected = "; ".join(f"{candidate.name}: {candidate.expects}" for candidate in candidates)
    below = [(folder, candidate.name) for folder in subfolders(path) for candidate in FORMATS.values() if candidate.roots(folder)]
    advice = advice_on(path, below) or f"Expected one of: {expected}."
    raise DataError(f"{path} is not a dataset of a known format. Seen: {seen_at(path)}. {advice}")


def _exists(path: Path) -> bool:
    try:
        str(path).encode()
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _shapes_config(options: dict[str, Any]) -> ShapesConfig:
    try:
        return ShapesConfig(**options)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'shapes'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"the dataset shapes refuses an option: {problems}. It has {', '.join(ShapesConfig.model_fields)}.") from error
