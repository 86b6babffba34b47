"""Shards of a teacher cache: safetensors files with equal numbers of rows, and the manifest that lists them with their hashes.

A shard is written whole (temporary name, fsync, rename), and after it the manifest with the shard's hash. A file that the manifest does
not list does not count, so a build continues where it was killed and readers never see half a shard. Nothing is read from a shard whose
hash differs.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from workbench.errors import CacheError, WorkbenchError
from workbench.files import hash_file, hash_json, read_json, replacing, try_lock, write_json
from workbench.store.manifest import MANIFEST

if TYPE_CHECKING:  # the dashboard lists caches without loading torch
    from torch import Tensor

FORMAT_VERSION = 1
LOCK = ".lock"
# tensors that are the same for every row, such as learned queries
CONSTANTS = "constants.safetensors"


@dataclass(frozen=True)
class Manifest:
    """Describes a cache and lists the files that exist.

    Attributes:
        key: Everything that affects its numbers, by name.
        form: What reading needs and no tensor holds: activation and number of the class columns; of a teacher without queries also its
            ``kind`` (dense or two_stage) and the ``strides``, ``sizes`` and ``shapes`` of its grid; of a two-stage teacher ``pooled``, the
            strides that its second stage reads.
        rows: Number of rows of the complete cache, one per image and variant.
        rows_per_shard: Number of rows of every shard except the last.
        seconds: Seconds spent on building so far: ``cpu`` (of the process) and ``wall``.
        files: SHA-256 of each existing file, by name.
    """

    key: dict[str, Any]
    form: dict[str, Any]
    rows: int
    rows_per_shard: int
    seconds: dict[str, float] = field(default_factory=lambda: {"cpu": 0.0, "wall": 0.0})
    files: dict[str, str] = field(default_factory=dict)

    @property
    def shards(self) -> list[str]:
        """Names of all shards of the complete cache."""
        return [f"shard-{number:05d}.safetensors" for number in range(-(-self.rows // self.rows_per_shard))]

    @property
    def missing(self) -> list[str]:
        """Files that are still to be written."""
        return [name for name in (CONSTANTS, *self.shards) if name not in self.files]

    def rows_of(self, shard: str) -> range:
        """Returns the rows that a shard holds."""
        first = self.shards.index(shard) * self.rows_per_shard
        return range(first, min(first + self.rows_per_shard, self.rows))

    def place(self, row: int) -> tuple[str, int]:
        """Returns the shard of a row, and the row's position in it."""
        number, position = divmod(row, self.rows_per_shard)
        return f"shard-{number:05d}.safetensors", position

    def write(self, folder: Path) -> None:
        """Writes the manifest into the folder, with one rename."""
        values = asdict(self)
        write_json(folder / MANIFEST, {"format_version": FORMAT_VERSION, **values, "hash": hash_json(values)})


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a cache.

    Raises:
        CacheError: there is no manifest, it is damaged, or it has another format version.
    """
    again = f"Remove it with 'workbench cache prune {folder.name}' and build it again."
    if not (folder / MANIFEST).is_file():
        raise CacheError(f"there is no teacher cache in {folder}. Build it with 'workbench cache build'.")
    try:
        values = read_json(folder / MANIFEST)
    except WorkbenchError as error:
        raise CacheError(f"{error} {again}") from error
    version = values.pop("format_version", None) if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise CacheError(f"teacher cache '{folder.name}' has format {version}, but this version reads {FORMAT_VERSION}. {again}")
    if values.pop("hash", None) != hash_json(values):
        raise CacheError(f"{folder / MANIFEST} is damaged: its hash differs. {again}")
    return Manifest(**values)


def write_file(folder: Path, manifest: Manifest, name: str, tensors: "Mapping[str, Tensor]", metadata: dict[str, str]) -> Manifest:
    """Writes one file of a cache, then the manifest that lists it.

    Args:
        folder: folder of the cache, whose lock is held.
        manifest: the current manifest; its entry for ``name`` is replaced.
        name: a shard or the constants.
        tensors: contiguous tensors on the CPU.
        metadata: metadata of the file.

    Returns:
        The new manifest.

    Raises:
        WorkbenchError: the disk is full or the folder cannot be written; the old content is kept.
    """
    from safetensors.torch import save_file

    with replacing(folder / name) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=metadata)
        except SafetensorError as error:
            raise CacheError(f"cannot write {folder / name}: {error}. Free some space and run the same command again.") from error
        digest = hash_file(temporary)
    manifest = replace(manifest, files={**manifest.files, name: digest})
    manifest.write(folder)
    return manifest


def verify(folder: Path, manifest: Manifest, name: str) -> None:
    """Reads a file and compares its hash with the manifest's.

    Raises:
        CacheError: the file is missing, truncated or changed; the message names it.
    """
    path = folder / name
    again = "Run 'workbench cache build' with the same recipe to make the damaged files again."
    if name not in manifest.files:
        raise CacheError(f"teacher cache '{folder.name}' has no {name} yet, because its build was not finished. {again}")
    try:
        whole = hash_file(path) == manifest.files[name]
    except OSError as error:
        raise CacheError(f"cannot read {path}: {error.strerror or error}. {again}") from error
    if not whole:
        raise CacheError(f"{path} is damaged: its hash differs from the manifest's. {again}")


def without_damaged(folder: Path, manifest: Manifest) -> tuple[Manifest, list[str]]:
    """Returns the manifest without the files that are damaged or missing, and the names of those."""
    damaged: list[str] = []
    for name in manifest.files:
        try:
            verify(folder, manifest, name)
        except CacheError:
            damaged.append(name)
    return replace(manifest, files={name: digest for name, digest in manifest.files.items() if name not in damaged}), damaged


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a cache for writing, and removes what a killed writer left behind.

    Raises:
        CacheError: another process is writing to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "w", encoding="ascii")
    except OSError as error:
        raise CacheError(f"cannot write {folder}: {error.strerror or error}.") from error
    with file:
        if not try_lock(file):
            raise CacheError(f"teacher cache '{folder.name}' is being written by another process. Wait for it or stop it.")
        for leftover in folder.glob(".*.partial"):
            leftover.unlink()
        yield


def is_locked(folder: Path) -> bool:
    """True if a process is writing to the cache; this check writes nothing."""
    try:
        with open(folder / LOCK, "rb") as file:
            return not try_lock(file, shared=True)
    except OSError:
        return False
