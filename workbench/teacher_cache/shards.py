"""Shards of a teacher cache: safetensors files of equally many rows, and the manifest that lists them with their hashes.

A shard is written whole (temporary name, fsync, rename), then the manifest anew with its hash: what the manifest does not list is not
there, so a build goes on where it was killed and readers never see half a shard. Nothing is read from a shard whose hash differs.
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

if TYPE_CHECKING:  # caches are listed where torch is not loaded
    from torch import Tensor

FORMAT_VERSION = 1
LOCK = ".lock"
# tensors that are the same for every row: queries that were learned
CONSTANTS = "constants.safetensors"


@dataclass(frozen=True)
class Manifest:
    """What a cache is of, and which of its files are there.

    Attributes:
        key: what decides its numbers, by name.
        form: what reading needs and is in no tensor: activation and number of the class columns.
        rows: of the complete cache, one per image and variant.
        rows_per_shard: of every shard but the last.
        seconds: spent on building so far, ``cpu`` (of the process) and ``wall``.
        files: SHA-256 of each file that is there, by name.
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
        """Rows that a shard holds."""
        first = self.shards.index(shard) * self.rows_per_shard
        return range(first, min(first + self.rows_per_shard, self.rows))

    def place(self, row: int) -> tuple[str, int]:
        """Shard of a row, and its position there."""
        number, position = divmod(row, self.rows_per_shard)
        return f"shard-{number:05d}.safetensors", position

    def write(self, folder: Path) -> None:
        """Puts it into the folder, in one rename."""
        values = asdict(self)
        write_json(folder / MANIFEST, {"format_version": FORMAT_VERSION, **values, "hash": hash_json(values)})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a cache.

    Raises:
        CacheError: there is none, it is damaged, or of another version of the format.
    """
    again = f"Remove it with 'workbench cache prune {folder.name}' and build it again."
    if not (folder / MANIFEST).is_file():
        raise CacheError(f"no teacher cache in {folder}.")
    try:
        values = read_json(folder / MANIFEST)
    except WorkbenchError as error:
        raise CacheError(f"{error}. {again}") from error
    version = values.pop("format_version", None) if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise CacheError(f"teacher cache '{folder.name}' has format {version}; this version reads {FORMAT_VERSION}. {again}")
    if values.pop("hash", None) != hash_json(values):
        raise CacheError(f"{folder / MANIFEST} is damaged: its hash differs. {again}")
    return Manifest(**values)


def write_file(folder: Path, manifest: Manifest, name: str, tensors: "Mapping[str, Tensor]", metadata: dict[str, str]) -> Manifest:
    """Writes one file of a cache, then the manifest that lists it.

    Args:
        folder: of the cache, whose lock is held.
        manifest: as it is; what it says of ``name`` is replaced.
        name: a shard or the constants.
        tensors: contiguous, on the CPU.
        metadata: of the file.

    Returns:
        The new manifest.

    Raises:
        WorkbenchError: no space, or not writable; what was there is kept.
    """
    from safetensors.torch import save_file

    with replacing(folder / name) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=metadata)
        except SafetensorError as error:
            raise CacheError(f"cannot write {folder / name}: {error}. Free space and give the same command again.") from error
        digest = hash_file(temporary)
    manifest = replace(manifest, files={**manifest.files, name: digest})
    manifest.write(folder)
    return manifest


def verify(folder: Path, manifest: Manifest, name: str) -> None:
    """Reads a file and compares its hash.

    Raises:
        CacheError: it is gone, truncated or changed; names it.
    """
    path = folder / name
    again = "'workbench cache build' with the same recipe makes what is damaged again."
    if name not in manifest.files:
        raise CacheError(f"teacher cache '{folder.name}' has no {name} yet: its build was not finished. {again}")
    try:
        whole = hash_file(path) == manifest.files[name]
    except OSError as error:
        raise CacheError(f"cannot read {path}: {error.strerror or error}. {again}") from error
    if not whole:
        raise CacheError(f"{path} is damaged: its hash is not the manifest's. {again}")


def without_damaged(folder: Path, manifest: Manifest) -> tuple[Manifest, list[str]]:
    """The manifest without the files that are damaged or gone, and their names."""
    damaged: list[str] = []
    for name in manifest.files:
        try:
            verify(folder, manifest, name)
        except CacheError:
            damaged.append(name)
    return replace(manifest, files={name: digest for name, digest in manifest.files.items() if name not in damaged}), damaged


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a cache for writing; what a killed writer left behind is removed.

    Raises:
        CacheError: another process writes to it.
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
    """Whether a process writes to the cache; writes nothing."""
    try:
        with open(folder / LOCK, "rb") as file:
            return not try_lock(file, shared=True)
    except OSError:
        return False
