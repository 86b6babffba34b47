"""Pooling in boxes against torchvision's roi_align."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from workbench.methods.detkds.pooling import BoxPooling


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.lists(st.integers(0, 3), max_size=6), st.integers(0, 2**31 - 1),
    st.booleans(),
)  # fmt: skip
def test_pooling_in_boxes_and_its_gradient_are_those_of_roi_align(
    images: int, height: int, width: int, whose: list[int], seed: int, whole: bool
):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(images, 3, height, width, generator=generator)
    corners = (torch.rand(len(whose), 2, 2, generator=generator) * 1.6 - 0.3) * torch.tensor([width, height])  # also far outside
    low, high = corners.amin(1), corners.amax(1)
    boxes = torch.cat([low.floor(), high.ceil()] if whole else [low, high], 1)
    image = torch.tensor(sorted(one % images for one in whose), dtype=torch.float32)
    rois = torch.cat([image[:, None], boxes], 1)
    slope = torch.randn(len(whose), 3, 14, 14, generator=generator)
    found = []
    pool = BoxPooling.of(rois[:, 1:], torch.bincount(image.long(), minlength=images).tolist(), (height, width))
    for pooling in (pool, lambda maps: roi_align(maps, rois, (14, 14), 1.0, aligned=False)):
        own = values.clone().requires_grad_()
        pooled = pooling(own)
        assert pooled.shape == slope.shape
        (pooled * slope).sum().backward() if len(whose) else pooled.sum()
        found.append((pooled.detach(), own.grad if len(whose) else torch.zeros_like(values)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
