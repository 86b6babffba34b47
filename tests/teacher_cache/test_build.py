"""A cache as it is built: resumed, repaired, and never of something else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.teacher_cache.teachers import built, opened, setup_of
from workbench.errors import CacheError, ConfigError, IncompatibleError
from workbench.teacher_cache import build as build_module
from workbench.teacher_cache.ask_teacher import RowMaker, Rows
from workbench.teacher_cache.build import Builder
from workbench.teacher_cache.key import cache_folder
from workbench.teacher_cache.shards import Manifest
from workbench.teacher_cache.verify import check_cache


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "SHARD_ROWS", 10)
    monkeypatch.setattr(build_module, "BATCH", 4)


def contents(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def test_a_build_says_beforehand_how_many_bytes_it_will_write():
    setup = setup_of()
    builder = Builder(setup)
    estimate = builder.estimate()
    assert (estimate.images, estimate.variants) == (16, 2) and estimate.row_seconds > 0
    assert estimate.large == ("memory maps",) and 0 < estimate.large_bytes < estimate.row_bytes
    builder.build(estimate, accept=True)
    on_disk = sum(path.stat().st_size for path in builder.folder.iterdir())
    assert estimate.bytes == pytest.approx(on_disk, rel=0.1)
    again = Builder(setup).estimate()
    assert again.done == 1 and again.bytes_left == 0 and again.seconds_left == 0


def test_maps_are_written_only_when_their_size_is_accepted():
    with pytest.raises(CacheError, match=r"memory maps, .* kB of .* 16 images x 2 variants.*--accept"):
        built(setup_of(), accept=False)
    setup = setup_of({"methods": [{"method": "detrdistill", "features": None}]})
    assert built(setup, accept=False).rows == 32


def test_a_disk_that_is_too_small_is_found_before_anything_is_written(monkeypatch: pytest.MonkeyPatch):
    setup = setup_of()
    monkeypatch.setattr(build_module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(CacheError, match=r"needs .* more, but .* has 1\.0 kB free"):
        built(setup)
    assert not cache_folder(setup.recipe).exists()


class Killed(BaseException):
    """Stands for the end of a process."""


def test_a_killed_build_goes_on_with_the_shard_it_was_at_and_ends_with_the_same_bytes(monkeypatch: pytest.MonkeyPatch):
    whole = setup_of({"cache": {"name": "whole"}})
    built(whole)
    setup, asked, limit = setup_of(), [], 1000
    compute = RowMaker.rows

    def rows(self: RowMaker, numbers: Any) -> Rows:
        asked.extend(numbers)
        if len(asked) > limit:
            raise Killed
        return compute(self, numbers)

    monkeypatch.setattr(RowMaker, "rows", rows)
    builder = Builder(setup)
    estimate = builder.estimate()
    asked.clear()
    limit = 17  # in the second shard
    with pytest.raises(Killed):
        builder.build(estimate, accept=True)
    with pytest.raises(CacheError, match=r"was not finished: 4 of 5 files"):
        opened(setup)
    assert Builder(setup).before is not None
    asked.clear()
    limit = 1000
    done: list[tuple[int, int]] = []
    report = Builder(setup).build(estimate, accept=True, progress=lambda now, total: done.append((now, total)))
    assert (report.rows, report.kept) == (22, 10)
    assert asked[:22] == list(range(10, 32)), "no row of the first shard is made again"
    assert done[0] == (10, 32) and done[-1] == (32, 32) and done == sorted(done)
    assert contents(cache_folder(setup.recipe)).keys() == contents(cache_folder(whole.recipe)).keys()
    for name, tensors in contents(cache_folder(whole.recipe)).items():
        resumed = contents(cache_folder(setup.recipe))[name]
        assert tensors.keys() == resumed.keys()
        assert all(torch.equal(resumed[key], value) for key, value in tensors.items()), name


def test_a_damaged_shard_is_never_served_and_building_again_makes_it_alone_again():
    setup = setup_of()
    assert built(setup).damaged == ()
    folder = cache_folder(setup.recipe)
    path = folder / "shard-00001.safetensors"
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 4]))
    cache = opened(setup)
    assert setup.variants is not None
    ops = [setup.variants.ops(index, 0) for index in range(16)]
    assert len(cache.read([0], 0, ops[:1]).match) == 1
    with pytest.raises(CacheError, match=r"shard-00001\.safetensors is damaged.*workbench cache build"):
        cache.read([12], 0, [ops[12]])
    report = built(setup)
    assert (report.rows, report.kept, report.damaged) == (10, 22, ("shard-00001.safetensors",))
    assert path.read_bytes() == before
    assert len(opened(setup).read([12], 0, [ops[12]]).match) == 1


@pytest.mark.parametrize(("change", "named"), [
    ({"cache": {"variants": 3}}, "variants 2, now 3"),
    ({"cache": {"precision": "fp16"}}, "precision fp32, now fp16"),
    ({"data": {"options": {"train": 15}}}, "dataset .*, now "),
    ({"data": {"transform": {"augment": ["flip"]}}}, r"transform\.augment .*dihedral.*, now .*flip"),
    ({"data": {"transform": {"resize": {"height": 64, "width": 64}}}}, r"canvas \[96, 96\], now \[64, 64\].*transform\.resize"),
    ({"methods": [{"method": "fitnet", "feature": "neck"}]}, "neck at stride 8 not kept"),
    ({"methods": [{"method": "d3etr"}]}, "attentions not kept"),
    ({"methods": [{"method": "detrdistill", "features": {"layers": "all"}}]}, "states of layer 0 not kept"),
])  # fmt: skip
def test_a_cache_of_something_else_is_refused_naming_the_fields_that_differ(change: dict[str, Any], named: str, one: None):
    setup = setup_of(change)
    for refuse in (opened, built):
        with pytest.raises(CacheError, match=rf"cache 'tiny' was made for something else: .*{named}"):
            refuse(setup)


def test_another_teacher_is_refused_by_the_hash_of_its_weights(one: None):
    setup = setup_of()
    setup.teacher_hash = "0" * 64
    with pytest.raises(CacheError, match=r"else: teacher [0-9a-f]{64}, now 0{64}\."):
        opened(setup)


@pytest.fixture
def one() -> None:
    """A manifest of the tiny recipe's cache; its key is all that is compared."""
    builder = Builder(setup_of())
    builder.folder.mkdir(parents=True)
    Manifest(builder.key, builder.maker.form, 32, 10).write(builder.folder)


def test_less_than_what_is_kept_is_served():
    built(setup_of())
    setup = setup_of({"methods": [{"method": "detrdistill", "features": None}]})
    assert not setup.teacher or opened(setup).wanted.maps == {}
    assert setup.variants is not None
    answers = opened(setup).read([3], 1, [setup.variants.ops(3, 1)])
    assert "logits" in answers.rows and not any(name.startswith("memory") for name in answers.rows)


def test_weights_of_cells_are_served_to_the_settings_they_were_made_for_and_no_others():
    setup = setup_of()
    built(setup)
    assert setup.variants is not None
    ops, (method,) = setup.variants.ops(3, 1), setup.methods
    weights = opened(setup).read([3], 1, [ops]).prepared
    assert weights.keys() == {method.prepared_by} and [name for name in weights[method.prepared_by or ""]] == ["weights/8"]

    other = setup_of({"methods": [{"method": "detrdistill", "selection": {"rule": "positives"}}]})
    assert other.methods[0].prepared_by not in (None, method.prepared_by)
    assert opened(other).read([3], 1, [ops]).prepared == {}
    assert {found.largest for found in check_cache(other, sample=3).differences if found.name.startswith("prepared/")} == set()
    (again,) = [found for found in check_cache(setup, sample=3).differences if found.name.startswith("prepared/")]
    assert again.largest <= 1e-5 * again.scale

    drawn = setup_of({"methods": [{"method": "detrdistill", "selection": {"rule": "random_k"}}]})
    assert drawn.methods[0].prepared_by is None  # other queries in every step


def test_rows_of_shards_with_and_without_weights_are_read_together():
    setup, other = setup_of(), setup_of({"methods": [{"method": "detrdistill", "features": {"gamma": 0.25}}]})
    built(setup)
    cache = opened(setup)
    (cache.folder / "shard-00000.safetensors").unlink()
    built(other)  # makes the one shard again, with weights of its own settings
    assert setup.variants is not None
    answers = opened(setup).read([0], 0, [setup.variants.ops(0, 0)])
    assert answers.prepared == {}
    first, last = cache.manifest.place(0)[0], cache.manifest.place(cache.manifest.rows - 1)[0]
    assert first != last
    both = opened(setup).read([0, cache.images - 1], 0, [setup.variants.ops(index, 0) for index in (0, cache.images - 1)])
    assert both.prepared == {} and len(both.rows["logits"]) == 2


def test_a_cache_that_is_not_there_is_named_with_the_command_that_builds_it():
    with pytest.raises(CacheError, match=r"no teacher cache 'tiny' in .*workbench cache build"):
        opened(setup_of())
    with pytest.raises(ConfigError, match="has no cache"):
        Builder(setup_of({"cache": None}))
    with pytest.raises(ConfigError, match="no methods"):
        Builder(setup_of({"methods": []}))


@pytest.mark.parametrize(("method", "way_out"), [("kd_detr", "general: 0"), ("clockdistill", "logits: null")])
def test_a_method_that_needs_the_live_teacher_says_so_and_what_part_of_it_does_not(method: str, way_out: str):
    with pytest.raises(IncompatibleError, match=f"method '{method}' .*needs the live teacher.*{way_out}"):
        Builder(setup_of({"methods": [{"method": method}]}))
    part: dict[str, Any] = {"general": 0} if method == "kd_detr" else {"logits": None}
    assert Builder(setup_of({"methods": [{"method": method} | part]})).contents


@pytest.mark.parametrize(("config", "served"), [
    ({"method": "detrdistill"}, False), ({"method": "d3etr"}, False), ({"method": "kd_detr", "general": 0}, False),
    ({"method": "detrdistill", "logits": None}, False), ({"method": "detrdistill", "logits": None, "features": {"mask": "uniform"}}, True),
    ({"method": "fitnet"}, True), ({"method": "clockdistill", "logits": None}, True),
])  # fmt: skip
def test_terms_that_read_all_classes_refuse_a_cache_of_the_best_few(config: dict[str, Any], served: bool):
    setup = setup_of({"methods": [config], "cache": {"top_k": 2}})
    if served:
        assert Builder(setup).contents.top_k == 2
        return
    with pytest.raises(IncompatibleError, match=rf"'{config['method']}' reads .* all classes, but cache\.top_k: 2"):
        Builder(setup)
