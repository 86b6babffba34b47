"""Is a cache what its teacher says? Hashes of all shards, and a sample asked again."""

from dataclasses import dataclass

import numpy as np
import torch

from workbench.datasets.batches import variant_batch
from workbench.errors import CacheError
from workbench.matching import match_targets
from workbench.recipe.setup import Setup
from workbench.teacher_cache.build import Builder
from workbench.teacher_cache.cached_outputs import PREPARED
from workbench.teacher_cache.read import TeacherCache
from workbench.teacher_cache.shards import without_damaged

SAMPLE = 64


@dataclass(frozen=True)
class Difference:
    """Of one kind of tensor, over the sample.

    Attributes:
        name: of the tensor.
        largest: absolute difference between what is kept and what the teacher says now.
        scale: largest absolute value that the teacher says now.
        flips: entries that differ, of whole numbers alone: matchings, classes and masks.
    """

    name: str
    largest: float
    scale: float
    flips: int | None


@dataclass(frozen=True)
class Checked:
    """Result of a check.

    Attributes:
        damaged: files whose hash is not the manifest's, or that are gone.
        rows: answers that were asked for again.
        differences: by tensor.
        flips: queries of those rows that the rounded answer would match with another target than the unrounded one did; training takes
            the matching of the unrounded answer. None where only the best classes are kept.
        queries: that could flip, over all layers.
    """

    damaged: tuple[str, ...]
    rows: int
    differences: tuple[Difference, ...]
    flips: int | None
    queries: int


def check_cache(setup: Setup, device: torch.device | str = "cpu", sample: int = SAMPLE) -> Checked:
    """Compares the hash of every file, then asks the teacher again about evenly spread rows of whole shards.

    Args:
        setup: of the recipe that the cache is of.
        device: to run on.
        sample: rows at most.

    Raises:
        CacheError: no cache, one not finished, or one of something else.
    """
    builder = Builder(setup, device)
    if builder.before is None:
        raise CacheError(f"no teacher cache '{builder.folder.name}' in {builder.folder.parent}.")
    whole, damaged = without_damaged(builder.folder, builder.before)
    # what is read needs the constants; a row is compared as it lies in its shard
    cache = TeacherCache(builder.folder, builder.contents.model_copy(update={"queries": False}))
    rows = [row for row in _spread(whole.rows, sample) if whole.place(row)[0] in whole.files]
    found: dict[str, Difference] = {}
    flips, queries = 0, 0
    for row in rows:
        now = builder.maker.rows([row]).tensors
        name, position = whole.place(row)
        kept = cache.tensors(name)
        for key, value in now.items():
            if key.startswith(PREPARED) and key not in kept:  # of other settings of a method: training does not read it either
                continue
            difference = _difference(key, kept[key][position], value[0])
            found[key] = _worse(found.get(key, difference), difference)
        rounded, unrounded = _matches(setup, cache, row)
        flips, queries = flips + int((rounded != unrounded).sum()), queries + unrounded.numel()
    counted = flips if cache.kept.top_k is None else None
    return Checked(tuple(damaged), len(rows), tuple(found.values()), counted, queries)


def _matches(setup: Setup, cache: TeacherCache, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Matching to the targets of an answer as it is kept, and the one that is kept beside it: ``[L, 1, N]``."""
    assert setup.variants is not None and setup.pairing is not None
    number, index = divmod(row, cache.images)
    batch = variant_batch(setup.variants, [index], [number])
    answers = cache.read([index], number, batch.ops)
    output = answers.output()
    logits = setup.pairing.in_student_classes(output.logits, output.activation)
    return match_targets(logits, output.boxes, batch.targets, output.activation), answers.teacher_match


def _spread(count: int, sample: int) -> list[int]:
    return sorted(set(np.linspace(0, count - 1, min(count, sample)).round().astype(int).tolist()))


def _difference(name: str, kept: torch.Tensor, now: torch.Tensor) -> Difference:
    apart, size = (kept.double() - now.double()).abs(), now.double().abs()
    flips = None if now.is_floating_point() else int((apart > 0).sum())
    return Difference(name, float(apart.max()) if apart.numel() else 0.0, float(size.max()) if size.numel() else 0.0, flips)


def _worse(one: Difference, other: Difference) -> Difference:
    flips = None if one.flips is None or other.flips is None else one.flips + other.flips
    return Difference(one.name, max(one.largest, other.largest), max(one.scale, other.scale), flips)
