"""Checks the files of a run against the hashes that were written with them, so that a damaged file gives a message and no wrong number.

A file is hashed once in a process, and again when its time, size or number on the disk have changed. Files without a hash, which earlier
versions wrote, are read as they are. So are files at a remote address, whose hash would need all of their bytes.
"""

import functools
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.files import hash_file, read_json, write_json, write_text
from workbench.remote import is_remote
from workbench.store.schemas import Hashes

HASHES = "hashes.json"  # in a folder that holds one thing, such as a checkpoint
SUFFIX = ".sha256"  # of a file that stands alone


def check_intact(path: Path, wanted: str, remedy: str) -> None:
    """Checks one file against its SHA-256.

    Args:
        path: the file.
        wanted: its hash when it was written.
        remedy: what else is lost, and what to do.

    Raises:
        WorkbenchError: the file is missing, cannot be read, or holds other bytes.
    """
    if is_remote(path):
        return
    try:
        state = path.stat()
        found = _hash(str(path), (state.st_mtime_ns, state.st_size, state.st_ino))
    except OSError as error:
        raise WorkbenchError(f"cannot read {path}: {error.strerror or error}. {remedy}") from error
    if found != wanted:
        raise WorkbenchError(f"{path} is damaged: it does not hold what was written there. {remedy}")


@functools.lru_cache(maxsize=1 << 16)
def _hash(path: str, state: tuple[int, int, int]) -> str:
    """Returns the hash of a file; ``state`` is another one as soon as the file has changed."""
    return hash_file(Path(path))


def forget_checked() -> None:
    """Makes every file count as one that was not read before."""
    _hash.cache_clear()


def write_hash(path: Path) -> None:
    """Writes the hash of a local file beside it. Until then a reader finds the file without a hash, which is no error."""
    if is_remote(path):
        return
    write_text(_beside(path), f"{hash_file(path)}\n")


def forget_hash(path: Path) -> None:
    """Removes the hash of a local file that is about to be replaced."""
    if not is_remote(path):
        _beside(path).unlink(missing_ok=True)


def check_hash(path: Path, remedy: str) -> None:
    """Checks a file against the hash beside it, if there is one; raises as ``check_intact`` does."""
    beside = _beside(path)
    if is_remote(path) or not beside.is_file():
        return
    wanted = beside.read_text(encoding="ascii", errors="replace").strip()
    check_intact(path, wanted, remedy)


def write_hashes(folder: Path) -> None:
    """Writes the hashes of all files of a folder into it."""
    write_json(folder / HASHES, {"files": {file.name: hash_file(file) for file in sorted(folder.iterdir()) if file.is_file()}})


def check_hashes(folder: Path, remedy: str) -> None:
    """Checks all files of a folder against the hashes in it, if it has any; raises as ``check_intact`` does."""
    if is_remote(folder) or not (folder / HASHES).is_file():
        return
    for name, wanted in sorted(read_json(folder / HASHES, Hashes)["files"].items()):
        check_intact(folder / name, wanted, remedy)


def _beside(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)
