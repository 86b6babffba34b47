"""Reads YOLO: one txt file per image, with rows of class and centre, width, height in 0..1 of the displayed image, or of class and x, y of
the points of a polygon, whose box is the smallest around it.

Either data.yaml names the image folders and the classes, or images/SPLIT and labels/SPLIT lie beside classes.txt, or each label file lies
beside its image and classes.txt. The path of a label file is that of the image with the last folder named images replaced by labels. An
image without a label file has no objects.
"""

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from workbench.datasets.images import SUFFIXES, inside
from workbench.datasets.issues import Issues, Policy
from workbench.datasets.reading import Contents, Entry, Format, UnnamedClassesError, entry_from_rows, read_text, required_split, subfolders
from workbench.errors import DataError
from workbench.yaml_text import YamlError, parse_yaml

EXPECTS = "a folder with data.yaml (train, val, names), or images/, labels/ and classes.txt, or images, labels and classes.txt side by side"
_KEYS = ("train", "val", "test")


def roots(path: Path) -> list[Path]:
    """Returns ``path`` itself, or the folder of a data.yaml. A folder without a list of classes counts, so that ``read`` can say so."""
    if path.is_file():
        return [path.parent] if path.name in ("data.yaml", "data.yml") else []
    if _yaml_file(path) is not None or (_names_file(path) is not None and (_has_folders(path) or _is_flat(path))):
        return [path]
    # folders of these names occur beside annotations of other formats too
    others = any(path.glob("*.json")) or any((path / name).is_dir() for name in ("annotations", "Annotations"))
    return [path] if _has_folders(path) and not others and any((path / "labels").rglob("*.txt")) else []


def _has_folders(path: Path) -> bool:
    return (path / "images").is_dir() and (path / "labels").is_dir()


def _is_flat(path: Path) -> bool:
    """True if an image lies beside a txt file of its name."""
    return any(file.with_suffix(".txt").is_file() for file in path.glob("*") if file.suffix.lower() in SUFFIXES)


def splits(root: Path) -> tuple[str, ...]:
    """Returns the keys of data.yaml, or else the folders below images/, or else ``all``."""
    file = _yaml_file(root)
    if file is not None:
        config = _parse_yaml(file)
        return tuple(key for key in _KEYS if config.get(key))
    return tuple(folder.name for folder in subfolders(root / "images")) or ("all",)


def read(root: Path, split: str, policy: Policy, issues: Issues, classes: Sequence[str] | None = None) -> Contents:
    """Reads one split.

    Args:
        root: a root found by ``roots``.
        split: name of the split.
        policy: what to do about problems.
        issues: object that counts them.
        classes: class names in label order; None reads them from data.yaml or classes.txt.

    Raises:
        DataError: there is no such split, or there are no class names.
    """
    split = required_split(split, splits(root), root)
    names = dict(enumerate(classes)) if classes is not None else _names(root)
    label_of = {index: label for label, index in enumerate(names)}
    entries: list[Entry] = []
    next_id = 1
    for position, name in enumerate(_image_names(root, split)):
        file = inside(root, _label_name(name))
        rows: list[dict[str, Any]] = []
        try:
            lines = read_text(file).splitlines() if file is not None and file.is_file() else []
        except DataError as error:
            issues.add("broken_file", policy.action("broken_file"), str(error))
            continue
        for number, line in enumerate(lines, start=1):
            row = _row(line, f"{_label_name(name)} line {number}", label_of, policy, issues)
            if row is not None:
                rows.append({**row, "id": next_id})
                next_id += 1
        entries.append(entry_from_rows(position + 1, name, None, rows, relative=True))
    return Contents(root.name, tuple(names.values()), tuple(names), root, entries)


FORMAT = Format("yolo", EXPECTS, roots, splits, read, frozenset({"classes"}))


def _row(line: str, where: str, label_of: dict[int, int], policy: Policy, issues: Issues) -> dict[str, Any] | None:
    if not line.strip():
        return None
    try:
        index, *numbers = (float(value) for value in line.split())
        if index != int(index) or (len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2)):
            raise ValueError(line)
    except (ValueError, OverflowError):
        what = f"{where} is neither a class and four numbers nor a class and a polygon"
        issues.add("broken_annotation", policy.action("broken_annotation"), what)
        return None
    if int(index) not in label_of:
        issues.add("dangling_reference", policy.action("dangling_reference"), f"{where}: class {int(index)} has no name")
        return None
    if len(numbers) > 4:
        points = np.array(numbers).reshape(-1, 2)
        return {"box": (*points.min(0).tolist(), *points.max(0).tolist()), "label": label_of[int(index)], "mask": [numbers]}
    x, y, w, h = numbers
    return {"box": (x - w / 2, y - h / 2, x + w / 2, y + h / 2), "label": label_of[int(index)]}


def _yaml_file(root: Path) -> Path | None:
    return next((root / name for name in ("data.yaml", "data.yml") if (root / name).is_file()), None)


def _names_file(root: Path) -> Path | None:
    return next((root / name for name in ("classes.txt", "obj.names", "labels/classes.txt") if (root / name).is_file()), None)


def _parse_yaml(file: Path) -> dict[str, Any]:
    try:
        config = parse_yaml(read_text(file))
    except YamlError as error:
        raise DataError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise DataError(f"{file} must hold a mapping with train, val and names.")
    return config


def _names(root: Path) -> dict[int, str]:
    """Returns the class name of each class number in the files, ascending."""
    file = _yaml_file(root)
    if file is not None:
        names = _parse_yaml(file).get("names")
        if isinstance(names, list) and names:
            return {index: str(name) for index, name in enumerate(names)}
        if isinstance(names, dict) and names and all(isinstance(key, int) and not isinstance(key, bool) for key in names):
            return {key: str(names[key]) for key in sorted(names)}
        raise DataError(f"{file}: names must be a list of class names, or a mapping of number to name.")
    file = _names_file(root)
    if file is None:
        raise UnnamedClassesError(
            f"{root} has images/ and labels/ but no list of classes. Add classes.txt with the name of one class per line, in the order of "
            f"the numbers in the labels{_used(root)}; or data.yaml with names."
        )
    return {index: line.strip() for index, line in enumerate(read_text(file).splitlines()) if line.strip()}


def _used(root: Path) -> str:
    """Returns, in words, the highest class number in the first label files."""
    numbers: list[int] = []
    for file in islice((root / "labels").rglob("*.txt"), 500):
        firsts = (line.split()[0] for line in read_text(file).splitlines() if line.strip())
        numbers += [int(first) for first in firsts if re.fullmatch("[0-9]{1,9}", first)]
    return f", which go from {min(numbers)} to {max(numbers)}" if numbers else ""


def _image_names(root: Path, split: str) -> list[str]:
    """Returns paths relative to ``root``, as text that may still be unsafe."""
    file = _yaml_file(root)
    if file is None:
        if not _has_folders(root):
            return sorted(file.name for file in root.glob("*") if file.suffix.lower() in SUFFIXES)
        return _files_below(root, "images" if split == "all" else f"images/{split}")
    config = _parse_yaml(file)
    sources = config[split] if isinstance(config[split], list) else [config[split]]
    names: list[str] = []
    for source in sources:
        place = _place(root, str(config.get("path") or ""), str(source), file)
        if place.endswith(".txt"):
            names += [line.strip().removeprefix("./") for line in read_text(root / place).splitlines() if line.strip()]
        else:
            names += _files_below(root, place)
    return names


def _place(root: Path, base: str, source: str, file: Path) -> str:
    """Returns where data.yaml points, relative to ``root``. It may name the folder that it lies in; one '../' too many is usual."""
    for candidate in (f"{base}/{source}" if base else source, source, source.removeprefix("../")):
        path = inside(root, candidate)
        if path is not None and path.exists():
            return candidate
    raise DataError(f"{file}: '{source}' is not a folder or list inside {root}. Paths must lie in the dataset's folder.")


def _files_below(root: Path, folder: str) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in (root / folder).rglob("*") if path.suffix.lower() in SUFFIXES)


def _label_name(name: str) -> str:
    path = Path(name)
    path = path.with_suffix(".txt") if path.name else path
    parts = list(path.parts)
    last = max((i for i, part in enumerate(parts[:-1]) if part == "images"), default=None)
    if last is not None:
        parts[last] = "labels"
    return str(Path(*parts))
