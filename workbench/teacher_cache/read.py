"""Reads a teacher cache: the teacher's outputs for given images in a given variant."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from workbench.datasets.transforms import Op
from workbench.errors import CacheError
from workbench.recipe.setup import Setup
from workbench.store.manifest import MANIFEST
from workbench.teacher_cache.cached_outputs import CachedTeacherOutputs, names_of
from workbench.teacher_cache.dense_outputs import filled_up
from workbench.teacher_cache.fields import CacheFields
from workbench.teacher_cache.key import cache_folder, cache_key, differences, wanted_fields
from workbench.teacher_cache.shards import CONSTANTS, read_manifest, verify


@dataclass(frozen=True)
class _File:
    """Tensors of one file, mapped from the disk and not read until they are used."""

    tensors: dict[str, Tensor]
    ops: list[list[Op]]


class TeacherCache:
    """A complete cache. Files are mapped, and their hashes compared, when a process first needs them.

    Args:
        folder: folder of the cache.
        wanted: the fields to read; None reads all that are kept.

    Raises:
        CacheError: there is no cache, or its build was not finished.
    """

    def __init__(self, folder: Path, wanted: CacheFields | None = None):
        self.folder = folder
        self.manifest = read_manifest(folder)
        if self.manifest.missing:
            raise CacheError(
                f"the build of teacher cache '{folder.name}' was not finished: {len(self.manifest.missing)} of "
                f"{len(self.manifest.shards) + 1} files are missing. Continue with 'workbench cache build' and its recipe."
            )
        self.kept = CacheFields.model_validate(self.manifest.key["contents"])
        self.wanted = wanted or self.kept
        self.images = self.manifest.rows // int(self.manifest.key["variants"])
        self._files: dict[str, _File] = {}

    def __getstate__(self) -> dict[str, Any]:
        # each process maps the files itself
        return {**self.__dict__, "_files": {}}

    def read(self, indices: Sequence[int], variant: int, ops: Sequence[list[Op]]) -> CachedTeacherOutputs:
        """Returns the teacher's outputs for images in a variant.

        Args:
            indices: positions of the images in the dataset.
            variant: number of the variant, counted from 0.
            ops: augmentation of each image now; it must equal the one in the cache.

        Raises:
            CacheError: a shard is damaged, or the cache holds another augmentation of an image.
        """
        rows: list[tuple[dict[str, Tensor], int]] = []
        for index, now in zip(indices, ops, strict=True):
            name, position = self.manifest.place(variant * self.images + index)
            file = self._open(name)
            if file.ops[position] != now:
                raise CacheError(
                    f"teacher cache '{self.folder.name}' holds another augmentation of image {index}, variant {variant}: "
                    f"{file.ops[position]}, now {now}. Build it again under another name (--set cache.name=NAME)."
                )
            rows.append((file.tensors, position))
        # if another recipe continued a build, only some of the shards hold what methods prepare
        names = names_of(self.wanted, [name for name in rows[0][0] if all(name in tensors for tensors, _ in rows)])
        values = {name: torch.stack(filled_up(name, [tensors[name][position] for tensors, position in rows], 0)) for name in names}
        constants = self._open(CONSTANTS).tensors if self.wanted.queries or "kind" in self.manifest.form else {}
        return CachedTeacherOutputs(values, constants, values.pop("match", None), self.kept.states, self.manifest.form)

    def tensors(self, shard: str) -> dict[str, Tensor]:
        """Returns all tensors of a shard by name: ``[rows, ...]``.

        Raises:
            CacheError: the shard is damaged.
        """
        return self._open(shard).tensors

    def _open(self, name: str) -> _File:
        if name not in self._files:
            verify(self.folder, self.manifest, name)
            with safe_open(self.folder / name, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}
                facts = json.loads((file.metadata() or {}).get("rows", "{}"))
            self._files[name] = _File(tensors, facts.get("ops", []))
        return self._files[name]


def open_cache(setup: Setup) -> TeacherCache | None:
    """Opens the cache that a recipe's methods read; returns None if the recipe has no cache or no methods.

    Raises:
        CacheError: the cache is missing, unfinished, or was made for something else; the message names the differences.
        IncompatibleError: a method needs the live teacher, or the scores of all classes.
    """
    if setup.recipe.cache is None or not setup.methods:
        return None
    wanted, folder = wanted_fields(setup), cache_folder(setup.recipe)
    if not (folder / MANIFEST).is_file():
        raise CacheError(
            f"there is no teacher cache '{folder.name}' in {folder.parent}. Build it with 'workbench cache build' and this recipe, or "
            "use the live teacher with --set cache=null."
        )
    manifest = read_manifest(folder)
    if changes := differences(manifest.key, cache_key(setup, wanted)):
        raise CacheError(
            f"teacher cache '{folder.name}' was made for something else: {'; '.join(changes)}. Build one with another name "
            f"(--set cache.name=NAME), or remove it with 'workbench cache prune {folder.name}' and build it again."
        )
    return TeacherCache(folder, wanted)
