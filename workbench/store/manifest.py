"""The manifest of a folder with several files: it is written last and lists them with their hashes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.files import hash_file, hash_json, read_json, write_json
from workbench.store.intact import check_intact
from workbench.store.schemas import Manifest

MANIFEST = "manifest.json"  # written last into a folder of several files


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


def check_file(folder: Path, file: Path) -> None:
    """Checks a file of a run's folder of tables or tensors against its manifest.

    Raises:
        WorkbenchError: it is missing or damaged.
    """
    again = f"Remove {folder} and write it again with 'workbench record', or train the run again. The run's other files are not affected."
    check_intact(file, read_manifest(folder)["files"][file.name], again)


def content_hash(folders: Sequence[Path]) -> str:
    """Returns one hash of the content of complete folders, computed from their manifests."""
    return hash_json([read_manifest(folder) for folder in folders])
