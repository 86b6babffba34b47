"""Builds a teacher cache: estimates its cost, then writes shard after shard and continues a build that was killed."""

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
from workbench.teacher_cache.dense_outputs import DENSE, filled_up
from workbench.teacher_cache.fields import CacheFields
from workbench.teacher_cache.key import cache_folder, cache_key, differences, wanted_fields
from workbench.teacher_cache.shards import CONSTANTS, Manifest, locked, read_manifest, without_damaged, write_file

BATCH = 16
# a shard is held in memory until it is written, and is lost if the process is killed before that
SHARD_BYTES, SHARD_ROWS = 64 << 20, 512
# factor for headers, the manifest, and rounding by the file system
SPARE = 1.05


@dataclass(frozen=True)
class Estimate:
    """Expected cost of a cache.

    Attributes:
        name: Name of the cache.
        images: Number of images of the training split.
        variants: Number of variants of each image.
        row_bytes: Bytes of one image and variant.
        row_seconds: Seconds of the teacher's forward pass for it, measured on this machine.
        free_bytes: Free bytes on the disk.
        done: Share of the cache that exists already.
        large: Kept fields whose size the user must accept.
        large_bytes: Their part of ``row_bytes``.
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
        """Bytes of the whole cache."""
        return self.images * self.variants * self.row_bytes

    @property
    def bytes_left(self) -> int:
        """Bytes that are still to be written."""
        return round(self.bytes * (1 - self.done))

    @property
    def seconds_left(self) -> float:
        """Seconds that the rest of the build takes."""
        return self.images * self.variants * self.row_seconds * (1 - self.done)


@dataclass(frozen=True)
class Built:
    """Result of a build.

    Attributes:
        rows: Number of rows that were computed now.
        kept: Number of rows that existed already.
        damaged: Files that existed but were damaged, and were made again.
    """

    rows: int
    kept: int
    damaged: tuple[str, ...]


class Builder:
    """Builds the cache of a setup.

    Args:
        setup: models and data, with teacher, methods and variants.
        device: device to run on.

    Raises:
        ConfigError: the recipe has no cache, or no methods.
        IncompatibleError: a method needs the live teacher, or the scores of all classes.
        CacheError: a cache of that name was made for something else; the message names the differences.
    """

    def __init__(self, setup: Setup, device: torch.device | str = "cpu"):
        self.contents: CacheFields = wanted_fields(setup)
        self.folder: Path = cache_folder(setup.recipe)
        self.key = cache_key(setup, self.contents)
        self.maker = RowMaker(setup, self.contents, torch.device(device))
        self.before = read_manifest(self.folder) if (self.folder / MANIFEST).is_file() else None
        if self.before is not None and (changes := differences(self.before.key, self.key)):
            raise CacheError(
                f"teacher cache '{self.folder.name}' was made for something else: {'; '.join(changes)}. Build one with another name "
                f"(--set cache.name=NAME), or remove it with 'workbench cache prune {self.folder.name}'."
            )
        if self.before is not None:
            # a cache that already holds more than this recipe needs is reused unchanged
            self.key, self.contents = self.before.key, CacheFields.model_validate(self.before.key["contents"])
            self.maker.contents = self.contents

    def estimate(self) -> Estimate:
        """Estimates size and time from the teacher's outputs for one batch."""
        sample = list(range(min(BATCH, self.maker.count)))
        self.maker.rows(sample[:1])  # the first forward pass of a process takes longer
        start = time.perf_counter()
        rows = self.maker.rows(sample)
        seconds = (time.perf_counter() - start) / len(sample)
        grown = (*(f"{kind}/" for kind in self.contents.maps), "attentions/", DENSE)
        done = 1 - len(self.before.missing) / (len(self.before.shards) + 1) if self.before is not None else 0.0
        there = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        return Estimate(
            self.folder.name, len(self.maker.setup.train), self.maker.variants.count, _row_bytes(rows), seconds,
            shutil.disk_usage(there).free, done, tuple(self.contents.large), _row_bytes(rows, grown),
        )  # fmt: skip

    def build(self, estimate: Estimate, accept: bool = False, progress: Callable[[int, int], None] = lambda done, total: None) -> Built:
        """Makes every shard that is missing or damaged.

        Args:
            estimate: the estimate of this builder.
            accept: write feature and attention maps of the estimated size.
            progress: called with the number of rows that exist and the total.

        Raises:
            CacheError: the disk is too small, the maps were not accepted, or another process is building the cache.
            NonFiniteError: see ``RowMaker.rows``.
        """
        if self.contents.large and not accept:
            raise CacheError(
                f"the methods read {' and '.join(self.contents.large)}, which take {_gigabytes(estimate.large_bytes)} of the "
                f"{_gigabytes(estimate.row_bytes)} for each of {estimate.images} images x {estimate.variants} variants: "
                f"{_gigabytes(estimate.bytes)} in all. Add --accept to write them."
            )
        if estimate.bytes_left * SPARE > estimate.free_bytes:
            raise CacheError(
                f"teacher cache '{self.folder.name}' needs {_gigabytes(round(estimate.bytes_left * SPARE))} more, but "
                f"{self.folder.parent} has {_gigabytes(estimate.free_bytes)} free. Free some space, or use fewer variants."
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
        """Returns the manifest to continue from, without damaged files, and the names of those."""
        if (self.folder / MANIFEST).is_file():
            manifest, damaged = without_damaged(self.folder, read_manifest(self.folder))
            manifest.write(self.folder)
            return manifest, damaged
        per_shard = max(1, min(SHARD_ROWS, SHARD_BYTES // estimate.row_bytes))
        manifest = Manifest(self.key, self.maker.form, self.maker.count, per_shard)
        manifest.write(self.folder)
        return manifest, []

    def _shard(self, manifest: Manifest, name: str, progress: Callable[[int], None]) -> Manifest:
        """Computes and writes one shard, and returns the new manifest."""
        wall, cpu = time.perf_counter(), time.process_time()
        numbers = manifest.rows_of(name)
        parts: list[Rows] = []
        for first in range(0, len(numbers), BATCH):
            parts.append(self.maker.rows(numbers[first : first + BATCH]))
            progress(min(first + BATCH, len(numbers)))
        tensors = {key: torch.cat(filled_up(key, [part.tensors[key] for part in parts], 1)) for key in parts[0].tensors}
        # one metadata entry: the order of several is not fixed, and a shard that is made again should be the same file
        facts = {"image_ids": [image for part in parts for image in part.image_ids], "ops": [ops for part in parts for ops in part.ops]}
        spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        manifest = replace(manifest, seconds={kind: manifest.seconds[kind] + spent[kind] for kind in spent})
        return write_file(self.folder, manifest, name, tensors, {"rows": json.dumps(facts)})


def _row_bytes(rows: Rows, starting: tuple[str, ...] = ("",)) -> int:
    return sum(value.nbytes // len(value) for name, value in rows.tensors.items() if name.startswith(starting))


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e3:.1f} kB"
