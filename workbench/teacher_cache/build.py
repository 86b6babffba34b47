"""Building a teacher cache: what it will cost, then shard after shard, from where an earlier build was killed."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from workbench.errors import CacheError
from workbench.recipe.setup import Setup
from workbench.store.manifest import MANIFEST
from workbench.teacher_cache.ask_teacher import RowMaker, Rows
from workbench.teacher_cache.fields import CacheFields
from workbench.teacher_cache.key import cache_folder, cache_key, differences, wanted_fields
from workbench.teacher_cache.shards import CONSTANTS, Manifest, locked, read_manifest, without_damaged, write_file

BATCH = 16
# a shard is held in memory until it is written, and lost if the process is killed before
SHARD_BYTES, SHARD_ROWS = 64 << 20, 512
# headers, manifest, and what the file system rounds up to
SPARE = 1.05


@dataclass(frozen=True)
class Estimate:
    """What a cache will take.

    Attributes:
        name: of the cache.
        images: of the training split.
        variants: of each.
        row_bytes: of one image and variant.
        row_seconds: of the teacher's answer to it, measured here.
        free_bytes: on the disk.
        done: share that is there already.
        large: kept fields whose size is to be accepted.
        large_bytes: their part of ``row_bytes``.
    """

    name: str
    images: int
    variants: int
    row_bytes: int
    row_seconds: float
    free_bytes: int
    done: float
    large: tuple[str, ...]
    large_bytes: int

    @property
    def bytes(self) -> int:
        """Of the whole cache."""
        return self.images * self.variants * self.row_bytes

    @property
    def bytes_left(self) -> int:
        """Still to be written."""
        return round(self.bytes * (1 - self.done))

    @property
    def seconds_left(self) -> float:
        """Still to be spent."""
        return self.images * self.variants * self.row_seconds * (1 - self.done)


@dataclass(frozen=True)
class Built:
    """What a build did.

    Attributes:
        rows: answers that were made now.
        kept: answers that were there.
        damaged: files that were there and had to be made again.
    """

    rows: int
    kept: int
    damaged: tuple[str, ...]


class Builder:
    """Builds the cache of a setup.

    Args:
        setup: with teacher, methods and variants.
        device: to run on.

    Raises:
        ConfigError: the recipe has no cache, or no methods.
        IncompatibleError: a method needs the live teacher, or all classes.
        CacheError: a cache of that name is of something else; names what differs.
    """

    def __init__(self, setup: Setup, device: torch.device | str = "cpu"):
        self.contents: CacheFields = wanted_fields(setup)
        self.folder: Path = cache_folder(setup.recipe)
        self.key = cache_key(setup, self.contents)
        self.maker = RowMaker(setup, self.contents, torch.device(device))
        self.before = read_manifest(self.folder) if (self.folder / MANIFEST).is_file() else None
        if self.before is not None and (changes := differences(self.before.key, self.key)):
            raise CacheError(
                f"teacher cache '{self.folder.name}' is of something else: {'; '.join(changes)}. Build one of another name "
                f"(--set cache.name=NAME), or remove it with 'workbench cache prune {self.folder.name}'."
            )
        if self.before is not None:
            # a cache that keeps more is gone on with as it is
            self.key, self.contents = self.before.key, CacheFields.model_validate(self.before.key["contents"])
            self.maker.contents = self.contents

    def estimate(self) -> Estimate:
        """Sizes and time, from the answers to one batch."""
        sample = list(range(min(BATCH, self.maker.count)))
        self.maker.rows(sample[:1])  # the first answer of a process takes longer
        start = time.perf_counter()
        rows = self.maker.rows(sample)
        seconds = (time.perf_counter() - start) / len(sample)
        grown = (*(f"{kind}/" for kind in self.contents.maps), "attentions/")
        done = 1 - len(self.before.missing) / (len(self.before.shards) + 1) if self.before is not None else 0.0
        there = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        return Estimate(
            self.folder.name, len(self.maker.setup.train), self.maker.variants.count, _row_bytes(rows), seconds,
            shutil.disk_usage(there).free, done, tuple(self.contents.large), _row_bytes(rows, grown),
        )  # fmt: skip

    def build(self, estimate: Estimate, accept: bool = False, progress: Callable[[int, int], None] = lambda done, total: None) -> Built:
        """Makes every shard that is missing or damaged.

        Args:
            estimate: of this builder.
            accept: feature and attention maps of that size.
            progress: called with the rows that are there, and all.

        Raises:
            CacheError: the disk is too small, maps were not accepted, or another process builds.
            NonFiniteError: see ``RowMaker.rows``.
        """
        if self.contents.large and not accept:
            raise CacheError(
                f"the methods read {' and '.join(self.contents.large)}, {_gigabytes(estimate.large_bytes)} of "
                f"{_gigabytes(estimate.row_bytes)} for each of {estimate.images} images x {estimate.variants} variants: "
                f"{_gigabytes(estimate.bytes)} in all. Say --accept to write them."
            )
        if estimate.bytes_left * SPARE > estimate.free_bytes:
            raise CacheError(
                f"teacher cache '{self.folder.name}' needs {_gigabytes(round(estimate.bytes_left * SPARE))} more and "
                f"{self.folder.parent} has {_gigabytes(estimate.free_bytes)} free. Free space, or take fewer variants."
            )
        with locked(self.folder):
            manifest, damaged = self._begin(estimate)
            kept = sum(len(manifest.rows_of(name)) for name in manifest.shards if name in manifest.files)
            done = kept
            for name in manifest.shards:
                if name in manifest.files:
                    continue
                progress(done, self.maker.count)
                manifest = self._shard(manifest, name, lambda rows, before=done: progress(before + rows, self.maker.count))
                done += len(manifest.rows_of(name))
            if CONSTANTS in manifest.missing:
                constants = self.maker.rows([0]).constants
                manifest = write_file(self.folder, manifest, CONSTANTS, constants or {"none": torch.zeros(1)}, {})
            progress(done, manifest.rows)
        return Built(manifest.rows - kept, kept, tuple(damaged))

    def _begin(self, estimate: Estimate) -> tuple[Manifest, list[str]]:
        """The manifest to go on from, without what is damaged."""
        if (self.folder / MANIFEST).is_file():
            manifest, damaged = without_damaged(self.folder, read_manifest(self.folder))
            manifest.write(self.folder)
            return manifest, damaged
        per_shard = max(1, min(SHARD_ROWS, SHARD_BYTES // estimate.row_bytes))
        manifest = Manifest(self.key, self.maker.form, self.maker.count, per_shard)
        manifest.write(self.folder)
        return manifest, []

    def _shard(self, manifest: Manifest, name: str, progress: Callable[[int], None]) -> Manifest:
        """Computes and writes one shard."""
        wall, cpu = time.perf_counter(), time.process_time()
        numbers = manifest.rows_of(name)
        parts: list[Rows] = []
        for first in range(0, len(numbers), BATCH):
            parts.append(self.maker.rows(numbers[first : first + BATCH]))
            progress(min(first + BATCH, len(numbers)))
        tensors = {key: torch.cat([part.tensors[key] for part in parts]) for key in parts[0].tensors}
        # one entry, because the order of several is not fixed, and a shard that is made again should be the same file
        facts = {"image_ids": [image for part in parts for image in part.image_ids], "ops": [ops for part in parts for ops in part.ops]}
        spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        manifest = replace(manifest, seconds={kind: manifest.seconds[kind] + spent[kind] for kind in spent})
        return write_file(self.folder, manifest, name, tensors, {"rows": json.dumps(facts)})


def _row_bytes(rows: Rows, starting: tuple[str, ...] = ("",)) -> int:
    return sum(value.nbytes // len(value) for name, value in rows.tensors.items() if name.startswith(starting))


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e3:.1f} kB"
