"""The manifest of a folder with several files: it is written last and lists them with their hashes."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from workbench.files import hash_file, hash_json, read_json, time_of, write_json
from workbench.store.intact import check_intact
from workbench.store.schemas import Manifest

MANIFEST = "manifest.json"  # written last into a folder of several files
_THREADS = min(os.cpu_count() or 1, 8)


def write_manifest(folder: Path, files: Sequence[Path], **facts: Any) -> None:
    """Completes ``folder`` with a manifest of the names and SHA-256 of its ``files``, and of ``facts``."""
    write_json(folder / MANIFEST, {**facts, "files": {file.name: hash_file(file) for file in files}})


def is_complete(folder: Path) -> bool:
    """True if the folder has a manifest."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the content of a folder's manifest.

    Raises:
        WorkbenchError: there is none, or it is damaged.
    """
    return read_json(folder / MANIFEST, Manifest)


def manifest_files(folder: Path) -> list[Path]:
    """Returns the files that the manifest lists, ordered by name, without a look at them."""
    return [folder / name for name in sorted(read_manifest(folder)["files"])]


def check_files(folder: Path, files: Sequence[Path]) -> None:
    """Checks files of a run's folder of tables or tensors against its manifest.

    Several are hashed at once, since Python's lock is free meanwhile: that halves what a first read of a large table loses on two cores.

    Raises:
        WorkbenchError: one is missing or damaged.
    """
    again = f"Remove {folder} and write it again with 'workbench record', or train the run again. The run's other files are not affected."
    wanted = read_manifest(folder)["files"]
    if len(files) == 1:
        check_intact(files[0], wanted[files[0].name], again)
        return
    # the largest first, so that no core is left with it at the end
    with ThreadPoolExecutor(min(len(files), _THREADS)) as threads:
        for checked in [threads.submit(check_intact, file, wanted[file.name], again) for file in sorted(files, key=_size, reverse=True)]:
            checked.result()


def _size(file: Path) -> int:
    return time_of(file)[1]


def content_hash(folders: Sequence[Path]) -> str:
    """Returns one hash of the content of complete folders, computed from their manifests."""
    return hash_json([read_manifest(folder) for folder in folders])
