"""Files of a cache: whole or not there, and nothing is read from one that changed."""

import multiprocessing
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file

from tests.patience import patience
from workbench.errors import CacheError
from workbench.teacher_cache.shards import (
    CONSTANTS,
    Manifest,
    is_locked,
    locked,
    read_manifest,
    verify,
    without_damaged,
    write_file,
)

SAME_FOLDER = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(folder: Path, rows: int = 10, per_shard: int = 4) -> Manifest:
    """A complete cache whose row n holds the number n."""
    manifest = Manifest({"teacher": "abc"}, {}, rows, per_shard)
    manifest = write_file(folder, manifest, CONSTANTS, {"c": torch.ones(2)}, {})
    for name in manifest.shards:
        numbers = torch.tensor(list(manifest.rows_of(name)))
        manifest = write_file(folder, manifest, name, {"row": numbers}, {})
    return manifest


@given(st.integers(1, 500), st.integers(1, 60))
def test_every_row_has_one_place_and_shards_hold_all_rows_once(rows: int, per_shard: int):
    manifest = Manifest({}, {}, rows, per_shard)
    held = [row for name in manifest.shards for row in manifest.rows_of(name)]
    assert held == list(range(rows))
    for row in range(rows):
        name, position = manifest.place(row)
        assert manifest.rows_of(name)[position] == row


def test_a_manifest_comes_back_as_it_was_and_says_what_is_missing(tmp_path: Path):
    manifest = Manifest({"teacher": "abc", "canvas": [4, 6]}, {"columns": 3}, 10, 4)
    manifest.write(tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert manifest.missing == [CONSTANTS, "shard-00000.safetensors", "shard-00001.safetensors", "shard-00002.safetensors"]
    manifest = write_file(tmp_path, manifest, "shard-00001.safetensors", {"row": torch.arange(4)}, {})
    assert read_manifest(tmp_path) == manifest and "shard-00001.safetensors" not in manifest.missing
    assert written(tmp_path).missing == []


@pytest.fixture
def whole(tmp_path: Path) -> dict[Path, bytes]:
    """Files of a complete cache, to be put back after each example."""
    written(tmp_path)
    return {path: path.read_bytes() for path in tmp_path.iterdir()}


@SAME_FOLDER
@given(st.data())
def test_a_shard_in_which_one_bit_is_flipped_or_bytes_are_missing_is_named(tmp_path: Path, whole: dict[Path, bytes], data: st.DataObject):
    for path, before in whole.items():
        path.write_bytes(before)
    manifest = read_manifest(tmp_path)
    name = data.draw(st.sampled_from(sorted(manifest.files)))
    path = tmp_path / name
    content = bytearray(whole[path])
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    path.write_bytes(bytes(content))
    with pytest.raises(CacheError, match=rf"{name} is damaged.*workbench cache build"):
        verify(tmp_path, manifest, name)
    kept, damaged = without_damaged(tmp_path, manifest)
    assert damaged == [name] == kept.missing
    for other in kept.files:
        verify(tmp_path, kept, other)


@SAME_FOLDER
@given(st.integers(0, 10_000), st.integers(0, 7))
def test_a_manifest_in_which_a_bit_is_flipped_is_refused_or_says_the_same(tmp_path: Path, whole: dict[Path, bytes], place: int, bit: int):
    path = tmp_path / "manifest.json"
    path.write_bytes(whole[path])
    manifest = read_manifest(tmp_path)
    content = bytearray(whole[path])
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(bytes(content))
    try:
        assert read_manifest(tmp_path) == manifest  # white space
    except CacheError as error:
        assert "workbench cache prune" in str(error) or "Remove it" in str(error)


def test_a_shard_that_is_gone_is_named(tmp_path: Path):
    manifest = written(tmp_path)
    (tmp_path / "shard-00002.safetensors").unlink()
    with pytest.raises(CacheError, match=r"cannot read .*shard-00002"):
        verify(tmp_path, manifest, "shard-00002.safetensors")
    assert without_damaged(tmp_path, manifest)[1] == ["shard-00002.safetensors"]


def test_a_file_that_the_manifest_does_not_list_is_not_there(tmp_path: Path):
    manifest = Manifest({}, {}, 4, 4)
    with pytest.raises(CacheError, match="not finished"):
        verify(tmp_path, manifest, "shard-00000.safetensors")


def test_a_cache_of_another_format_is_refused_with_what_to_do(tmp_path: Path):
    written(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(CacheError, match=r"has format 99, but this version reads 1.*prune"):
        read_manifest(tmp_path)
    with pytest.raises(CacheError, match="no teacher cache"):
        read_manifest(tmp_path / "elsewhere")


def test_a_failed_write_leaves_the_file_and_the_manifest_that_were_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    manifest = written(tmp_path)

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(CacheError, match=r"shard-00000.*no space left on device"):
        write_file(tmp_path, manifest, "shard-00000.safetensors", {"row": torch.zeros(4)}, {})
    verify(tmp_path, read_manifest(tmp_path), "shard-00000.safetensors")
    assert load_file(tmp_path / "shard-00000.safetensors")["row"].tolist() == [0, 1, 2, 3]
    assert not list(tmp_path.glob(".*.partial"))


def _refused(folder: str, told: "multiprocessing.Queue[str]") -> None:
    try:
        with locked(Path(folder)):
            told.put("written")
    except CacheError as error:
        told.put(str(error))


def test_a_second_writer_is_refused_while_the_first_writes_and_served_after_it(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    (tmp_path / ".shard-00000.safetensors.x1.partial").write_bytes(b"left behind")
    with locked(tmp_path):
        assert not list(tmp_path.glob(".*.partial"))
        assert is_locked(tmp_path)
        process = context.Process(target=_refused, args=(str(tmp_path), told))
        process.start()
        assert "being written by another process" in told.get(timeout=patience(20))
        process.join()
    assert not is_locked(tmp_path) and not is_locked(tmp_path / "elsewhere")
    with locked(tmp_path):
        pass
