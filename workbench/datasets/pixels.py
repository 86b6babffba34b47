"""Looks at the pixels of many files once: what is unchanged since is read from the user's cache."""

import base64
import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.datasets.duplicates import SIDE, Thumbnails, thumbnail
from workbench.datasets.images import decode
from workbench.errors import DataError, WorkbenchError
from workbench.files import cache_folder, hash_json, read_json, time_of, write_json

_VERSION = 1  # raised when a thumbnail, a pair of near-duplicates or a split would come out otherwise
_SAVED_EVERY = 5000  # images, so that a check of a large dataset that is stopped goes on from there


@dataclass(frozen=True)
class Look:
    """What the pixels of one file show.

    Attributes:
        thumbnail: ``[256]`` as ``duplicates.thumbnail`` makes it, zeros if the file cannot be decoded.
        error: Why the file cannot be decoded; None if it can.
    """

    thumbnail: Thumbnails
    error: str | None


def look_at(root: Path, files: Sequence[tuple[Path, bool]], progress: Callable[[int, int], None] | None = None) -> list[Look]:
    """Decodes files, or reads from the user's cache what was seen in them when they had the same size and time of change.

    Args:
        root: the dataset; each has a cache file of its own.
        files: each file, and whether its EXIF orientation is applied.
        progress: called with (number of files done, number of all files).
    """
    store = cache_folder() / "data" / f"pixels-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.json"
    known = _read(store)
    looks: list[Look] = []
    fresh = 0
    try:
        for done, (file, upright) in enumerate(files, start=1):
            stamp = [*time_of(file), upright]
            entry = known.get(str(file))
            if entry is None or entry["stamp"] != stamp:
                known[str(file)] = entry = {"stamp": stamp, **_look(file, upright)}
                fresh += 1
                if fresh % _SAVED_EVERY == 0:
                    _write(store, known)
            pixels = np.frombuffer(base64.b64decode(entry["pixels"]), np.uint8) if entry["pixels"] else np.zeros(SIDE * SIDE, np.uint8)
            looks.append(Look(pixels, entry["error"]))
            if progress:
                progress(done, len(files))
    finally:
        if fresh % _SAVED_EVERY:
            _write(store, known)
    return looks


def kept(name: str, key: Any, make: Callable[[], Any]) -> Any:
    """Returns a JSON-able result from the user's cache, or makes it and keeps it there.

    Args:
        name: what it is.
        key: everything that it depends on, JSON-able.
        make: computes it.
    """
    path = cache_folder() / "data" / f"{name}-{hash_json([_VERSION, key])[:32]}.json"
    if path.is_file():
        with contextlib.suppress(WorkbenchError):
            return read_json(path)
    result = make()
    with contextlib.suppress(WorkbenchError):
        write_json(path, result, private=True)
    return result


def _look(file: Path, upright: bool) -> dict[str, Any]:
    try:
        pixels = thumbnail(decode(file, upright))
    except DataError as error:
        return {"pixels": "", "error": str(error)}
    return {"pixels": base64.b64encode(pixels.tobytes()).decode("ascii"), "error": None}


def _read(store: Path) -> dict[str, Any]:
    with contextlib.suppress(WorkbenchError):
        if store.is_file():
            content = read_json(store)
            if isinstance(content, dict) and content.get("version") == _VERSION and isinstance(content.get("files"), dict):
                return content["files"]
    return {}


def _write(store: Path, files: dict[str, Any]) -> None:
    """Writes the cache; a folder that cannot be written costs only the time of the next look."""
    with contextlib.suppress(WorkbenchError):
        write_json(store, {"version": _VERSION, "files": files}, private=True)
