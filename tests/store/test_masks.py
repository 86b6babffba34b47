"""Selection masks as bytes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workbench.store.masks import quantise, restore

MASKS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=st.floats(-1e4, 1e4, width=32))

TINY = float(np.finfo(np.float32).tiny)


@given(masks=MASKS)
def test_each_mask_comes_back_within_half_a_255th_of_its_own_range(masks: np.ndarray):
    stored, scale, offset = quantise(masks)
    assert stored.dtype == np.uint8 and stored.shape == masks.shape and scale.shape == offset.shape == masks.shape[:-2]
    restored = restore(stored, scale, offset)
    assert restored.dtype == np.float32
    for place in np.ndindex(masks.shape[:-2]):
        mask = masks[place].astype(np.float64)
        assert np.abs(restored[place] - mask).max() <= np.ptp(mask) / 510 + 1e-6 * np.abs(mask).max() + TINY
        # as it would be stored alone, whatever the masks beside it hold
        alone = quantise(masks[place])
        assert all((one == many[place]).all() for one, many in zip(alone, (stored, scale, offset), strict=True))


def test_a_mask_is_spread_over_all_bytes_and_one_of_a_single_value_keeps_it():
    stored, scale, offset = quantise(np.array([[[2.0, 4.0, 2.5]], [[7.0, 7.0, 7.0]]]))
    assert stored.tolist() == [[[0, 255, 64]], [[0, 0, 0]]] and offset.tolist() == [2, 7] and scale.tolist() == [2 / 255, 0]
    assert restore(stored, scale, offset)[1].tolist() == [[7, 7, 7]]


def test_nan_in_a_mask_is_left_in_its_scale_and_offset_to_be_found():
    _, scale, offset = quantise(np.array([[[np.nan, 1.0]], [[0.0, 255.0]]]))
    assert np.isnan([scale[0], offset[0]]).all() and (scale[1], offset[1]) == (1, 0)
