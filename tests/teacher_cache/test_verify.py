"""A cache is checked against the teacher: what differs is measured, however small."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.teacher_cache.teachers import built, opened, setup_of
from workbench.errors import CacheError
from workbench.teacher_cache.key import cache_folder
from workbench.teacher_cache.shards import read_manifest, write_file
from workbench.teacher_cache.verify import check_cache

SMALL = {"data": {"options": {"train": 4}}, "cache": {"precision": "fp16"}}


def test_a_check_finds_the_largest_difference_of_a_sample_and_none_where_nothing_changed():
    setup = setup_of(SMALL)
    with pytest.raises(CacheError, match="no teacher cache 'tiny'"):
        check_cache(setup)
    built(setup)
    checked = check_cache(setup)
    assert checked.damaged == () and checked.rows == 8 and checked.queries == 8 * 4 * 20
    # a batch of one and of many differ in the last bits, which round to halves alike or to neighbours
    assert all(d.largest <= 2e-3 * max(1.0, d.scale) for d in checked.differences if d.flips is None)
    by_name = {d.name: d for d in checked.differences}
    assert by_name["match"].flips == 0 and by_name["logits"].scale > 1
    assert checked.flips is not None and checked.flips <= 0.02 * checked.queries, "halves of a logit move few matchings"

    folder = cache_folder(setup.recipe)
    shard = "shard-00000.safetensors"
    tensors, manifest = dict(opened(setup).tensors(shard)), read_manifest(folder)
    with safe_open(folder / shard, framework="pt") as file:
        metadata = file.metadata()
    changed = tensors["boxes"].clone()
    changed[5, 2, 7, 1] += 0.25
    match = tensors["match"].clone()
    match[5, 3, 4] = 99
    write_file(folder, manifest, shard, {**tensors, "boxes": changed, "match": match}, metadata)
    by_name = {d.name: d for d in check_cache(setup).differences}
    assert by_name["boxes"].largest == pytest.approx(0.25, abs=1e-4)
    assert by_name["match"].flips == 1


def test_damaged_shards_are_named_and_the_others_checked():
    setup = setup_of(SMALL)
    built(setup)
    path = cache_folder(setup.recipe) / "shard-00000.safetensors"
    save_file({"row": torch.zeros(1)}, path)
    checked = check_cache(setup)
    assert checked.damaged == ("shard-00000.safetensors",) and checked.rows == 0 and checked.differences == ()
