"""Selection masks on disk."""

from collections.abc import Iterable

import numpy as np
import pytest
from safetensors import safe_open

from workbench.errors import NonFiniteError, RunError
from workbench.store import states
from workbench.store.run import Run
from workbench.store.states import Masks, images_with_states, masked_images, read_masks, read_states, states_writer


def write_masks(run: Run, split: str, step: int, images: Iterable[tuple[int, Masks]]) -> None:
    with states_writer(run, split, step) as writer:
        for image_id, masks in images:
            writer.write(image_id, masks)


def test_a_mask_comes_back_within_half_a_255th_of_its_range():
    run = Run.create("masks", {})
    mask = np.random.default_rng(0).normal(0, 100, (5, 7)).astype(np.float32)
    write_masks(run, "val", 10, [(7, {(2, 1): mask})])
    ((key, found),) = read_masks(run, "val", 10, 7).items()
    assert key == (2, 1) and found.dtype == np.float32 and found.shape == mask.shape
    assert np.abs(found - mask).max() <= np.ptp(mask) / 510 + 1e-4


def test_each_image_gets_its_own_layers_and_levels_across_shards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(states, "_IMAGES_PER_SHARD", 2)
    run = Run.create("shards", {})
    written = {
        image: {(layer, level): np.full((2, 3), image + 10 * layer + level, np.float32) for layer in (0, 2) for level in (0, 1)}
        for image in (12, 1, 112, 5, 2)
    }
    write_masks(run, "val", -1, written.items())
    assert masked_images(run, "val", -1) == [1, 2, 5, 12, 112]
    assert len(list(run.states_path("val", -1).glob("shard-*.safetensors"))) == 3
    for image, masks in written.items():
        found = read_masks(run, "val", -1, image)
        assert found.keys() == masks.keys()
        assert all((found[key] == masks[key]).all() for key in masks)


def test_a_mask_is_stored_as_one_byte_a_cell_under_its_documented_name():
    run = Run.create("names", {})
    write_masks(run, "val", 3, [(42, {(1, 0): np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)})])
    with safe_open(run.states_path("val", 3) / "shard-00000.safetensors", framework="np") as file:
        assert list(file.keys()) == ["42/psi/1/0"]
        assert file.get_tensor("42/psi/1/0").dtype == np.uint8


def test_an_image_that_was_not_kept_is_named():
    run = Run.create("absent", {})
    assert masked_images(run, "val", 3) == []
    write_masks(run, "val", 3, [(42, {(0, 0): np.zeros((1, 1))})])
    with pytest.raises(RunError, match=r"image 43 of split 'val' at step 3"):
        read_masks(run, "val", 3, 43)
    with pytest.raises(RunError, match=r"step 4"):
        read_masks(run, "val", 4, 42)


def test_a_mask_with_nan_is_refused_and_nothing_is_written():
    run = Run.create("nan", {})
    with pytest.raises(NonFiniteError, match="image 42, layer 0, level 0"):
        write_masks(run, "val", 3, [(42, {(0, 0): np.array([[np.nan, 1.0]])})])
    assert masked_images(run, "val", 3) == []


def test_decoder_states_come_back_as_float16_and_beyond_its_range_exactly():
    run = Run.create("states", {})
    rng = np.random.default_rng(0)
    small, large = (scale * rng.standard_normal((2, 5, 4)).astype(np.float32) for scale in (3, 1e6))
    with states_writer(run, "val", 8) as writer:
        writer.write(5, states=small)
        writer.write(3, states=large)
    assert images_with_states(run, "val", 8) == [3, 5] and masked_images(run, "val", 8) == []
    assert (read_states(run, "val", 8, 5) == small.astype(np.float16)).all()
    assert (read_states(run, "val", 8, 3) == large).all()
    with pytest.raises(RunError, match="no selection masks of image 5"):
        read_masks(run, "val", 8, 5)
    with pytest.raises(RunError, match="no decoder states of image 4"):
        read_states(run, "val", 8, 4)


def test_states_with_infinity_are_refused():
    run = Run.create("infinite", {})
    with pytest.raises(NonFiniteError, match="decoder states of image 5"), states_writer(run, "val", 8) as writer:
        writer.write(5, states=np.full((1, 2, 2), np.inf))
    assert images_with_states(run, "val", 8) == []
