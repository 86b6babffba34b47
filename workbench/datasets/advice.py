"""Says what a folder that is no dataset lacks."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from workbench.datasets.coco_parts import LISTS
from workbench.datasets.images import SUFFIXES

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
_LABELME = {"shapes", "imagePath"}  # keys of every file that labelme writes
_SHOWN = 12
_LOOKED_AT = 20_000  # files; the folder may be anything, such as a home folder


def seen_at(path: Path) -> str:
    """Returns the first names at a path, for a message."""
    if path.is_file():
        return f"one file '{path.name}'"
    names = sorted(item.name + "/" * item.is_dir() for item in path.iterdir())
    return (", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")) or "an empty folder"


def advice_on(path: Path, below: Sequence[tuple[Path, str]]) -> str:
    """Returns what is probably missing, as a sentence; empty if there is no guess.

    Args:
        path: a file or folder that no reader knows.
        below: folders in it that hold a dataset, with its format.
    """
    if path.suffix.lower() in _ARCHIVES:
        return "This is an archive: unpack it and give the folder."
    if path.is_file():
        return _of_json(path, "This file") if path.suffix.lower() == ".json" else "Give the folder that the file lies in."
    if below:
        return f"A dataset lies below it: {', '.join(f'{folder} ({name})' for folder, name in below[:_SHOWN])}."
    files = sorted(file for file in islice(path.rglob("*"), _LOOKED_AT) if file.suffix)
    by_suffix = {suffix: [file for file in files if file.suffix.lower() == suffix] for suffix in (".xml", ".txt", ".json")}
    images = sum(file.suffix.lower() in SUFFIXES for file in files)
    labels = max(by_suffix.values(), key=len)
    if not labels and images:
        return f"It holds {images:,} images and no annotations."
    if len(labels) > 1 and not images:
        return f"It holds {len(labels):,} {labels[0].suffix[1:]} files and no images: put the images where the format expects them."
    if labels and labels[0].suffix == ".json":
        return _of_json(labels[0], f"{labels[0].relative_to(path)}, the first of {len(labels):,} JSON files,")
    if len(labels) > 1 and labels[0].suffix == ".txt":
        return (
            f"It holds {images:,} images and {len(labels):,} txt files. If these are YOLO labels, add classes.txt, one class name per line."
        )
    return ""


def _of_json(file: Path, what: str) -> str:
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return f"{what} is not valid JSON."
    keys = list(data) if isinstance(data, dict) else []
    if _LABELME <= set(keys):
        return (
            f"{what} is labelme JSON, which is not read. Convert the folder first, to VOC (labelme2voc.py among labelme's examples: an "
            "XML per image) or to COCO (labelme2coco.py), and give what comes out."
        )
    lacking = [key for key in LISTS if key not in keys]
    return f"{what} is not COCO: it lacks {', '.join(lacking)}; it has {', '.join(map(str, keys[:8])) or 'no keys'}." if lacking else ""
