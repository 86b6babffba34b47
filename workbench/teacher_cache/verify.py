"""Checks that a cache holds what its teacher computes: compares the hashes of all shards and runs the teacher again on a sample."""

from dataclasses import dataclass

import numpy as np
import torch

from workbench.datasets.batches import variant_batch
from workbench.errors import CacheError
from workbench.matching import match_targets
from workbench.recipe.setup import Setup
from workbench.teacher_cache.build import Builder
from workbench.teacher_cache.cached_outputs import PREPARED
from workbench.teacher_cache.dense_outputs import filled_up
from workbench.teacher_cache.read import TeacherCache
from workbench.teacher_cache.shards import without_damaged

SAMPLE = 64


@dataclass(frozen=True)
class Difference:
    """Difference between stored and recomputed values of one tensor, over the sample.

    Attributes:
        name: Name of the tensor.
        largest: Largest absolute difference between the stored and the recomputed values.
        scale: Largest absolute recomputed value.
        flips: Number of entries that differ, for integer tensors only: matchings, classes and masks.
    """

    name: str
    largest: float
    scale: float
    flips: int | None


@dataclass(frozen=True)
class Checked:
    """Result of a check.

    Attributes:
        damaged: Files that are missing or whose hash differs from the manifest's.
        rows: Number of rows that were recomputed.
        differences: Differences by tensor.
        flips: Number of queries of those rows that the rounded output would match with another target than the unrounded one did.
            Training uses the matching of the unrounded output. None if only the best classes are kept, or the teacher has no queries.
        queries: Number of queries that could flip, over all layers.
    """

    damaged: tuple[str, ...]
    rows: int
    differences: tuple[Difference, ...]
    flips: int | None
    queries: int


def check_cache(setup: Setup, device: torch.device | str = "cpu", sample: int = SAMPLE) -> Checked:
    """Compares the hash of every file, then runs the teacher again on evenly spread rows of intact shards.

    Args:
        setup: setup of the recipe that the cache was made for.
        device: device to run on.
        sample: largest number of rows.

    Raises:
        CacheError: the cache is missing, unfinished, or was made for something else.
    """
    builder = Builder(setup, device)
    if builder.before is None:
        name, parent = builder.folder.name, builder.folder.parent
        raise CacheError(f"there is no teacher cache '{name}' in {parent}. Build it with 'workbench cache build'.")
    whole, damaged = without_damaged(builder.folder, builder.before)
    # reading would need the constants, but a row is compared as it is stored in its shard
    cache = TeacherCache(builder.folder, builder.contents.model_copy(update={"queries": False}))
    rows = [row for row in _spread(whole.rows, sample) if whole.place(row)[0] in whole.files]
    with_queries = "kind" not in whole.form
    found: dict[str, Difference] = {}
    flips, queries = 0, 0
    for row in rows:
        now = builder.maker.rows([row]).tensors
        name, position = whole.place(row)
        kept = cache.tensors(name)
        for key, value in now.items():
            if key.startswith(PREPARED) and key not in kept:  # made with other settings of a method, so training does not read it either
                continue
            difference = _difference(key, *filled_up(key, [kept[key][position], value[0]], 0))
            found[key] = _worse(found.get(key, difference), difference)
        if with_queries:
            rounded, unrounded = _matches(setup, cache, row)
            flips, queries = flips + int((rounded != unrounded).sum()), queries + unrounded.numel()
    counted = flips if cache.kept.top_k is None and with_queries else None
    return Checked(tuple(damaged), len(rows), tuple(found.values()), counted, queries)


def _matches(setup: Setup, cache: TeacherCache, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the matching that the stored output gives and the matching that is stored with it: ``[L, 1, N]`` each."""
    assert setup.variants is not None and setup.pairing is not None
    number, index = divmod(row, cache.images)
    batch = variant_batch(setup.variants, [index], [number])
    answers = cache.read([index], number, batch.ops)
    output = answers.output()
    logits = setup.pairing.in_student_classes(output.logits, output.activation)
    assert answers.teacher_match is not None
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
