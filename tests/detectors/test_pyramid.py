"""The feature pyramid is torchvision's, with its extra levels; norms of a head know their level; cells know the padding."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from workbench.detectors.pyramid import CLASS_PRIOR, Pyramid, PyramidConfig, Tower, levels_with_padding, prediction, sides_of

CHANNELS, WIDTH = (8, 12), 16
BACKBONE = {"stem": 4, "widths": [4, 8, 12], "depths": [1, 1, 1], "levels": [2, 3]}


def config(**changes: Any) -> PyramidConfig:
    return PyramidConfig.model_validate({"backbone": BACKBONE, "width": WIDTH, "head_groups": 4} | changes)


def features(height: int = 9, width: int = 13) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(height, width), (-(-height // 2), -(-width // 2))]
    return [torch.randn(2, channels, *size, generator=generator) for channels, size in zip(CHANNELS, sizes, strict=True)]


def theirs(own: Pyramid, extra: nn.Module) -> list[Tensor]:
    """torchvision's pyramid with the same weights, on the same features."""
    pyramid = FeaturePyramidNetwork(list(CHANNELS), WIDTH, extra)  # pyright: ignore[reportArgumentType]
    state = {**own.fpn.state_dict()}
    for name, convolution in zip(("p6", "p7"), own.extra, strict=False):
        state |= {f"extra_blocks.{name}.{key}": value for key, value in convolution.state_dict().items()}
    pyramid.load_state_dict(state)
    return list(pyramid(OrderedDict((str(index), level) for index, level in enumerate(features()))).values())


@pytest.mark.parametrize("source", ["backbone", "pyramid", "pool"])
def test_levels_are_those_of_torchvisions_pyramid(source: str):
    torch.manual_seed(0)
    own = Pyramid(config(extra_from=source, extra_levels=1 if source == "pool" else 2), CHANNELS)
    extra = LastLevelMaxPool() if source == "pool" else LastLevelP6P7(CHANNELS[-1] if source == "backbone" else WIDTH, WIDTH)
    found = own(features())
    for level, wanted in zip(found, theirs(own, extra), strict=True):
        torch.testing.assert_close(level, wanted)
    assert [tuple(level.shape[-2:]) for level in found] == [(9, 13), (5, 7), (3, 4), (2, 2)][: len(found)]


def test_strides_go_on_behind_those_of_the_backbone():
    assert config(extra_levels=3).strides == (8, 16, 32, 64, 128)
    assert config(extra_levels=0).strides == (8, 16)


def test_batch_norms_of_a_head_have_statistics_of_their_own_for_each_level():
    tower = Tower(config(head_norm="batch", head_convs=1), 2).train()
    levels = [torch.randn(4, WIDTH, 8, 8), 5 + torch.randn(4, WIDTH, 4, 4)]
    for _ in range(100):
        for index, level in enumerate(levels):
            tower(level, index)
    with torch.no_grad():
        convolved = [tower.convolutions[0](level) for level in levels]
        for index, values in enumerate(convolved):
            wanted = ((values - values.mean((0, 2, 3), keepdim=True)) / (values.var((0, 2, 3), keepdim=True) + 1e-5).sqrt()).relu()
            torch.testing.assert_close(tower.eval()(levels[index], index), wanted, atol=1e-2, rtol=1e-2)
    assert not torch.allclose(tower(levels[1], 0), tower(levels[1], 1), atol=0.1)


def test_a_width_that_the_groups_do_not_divide_is_refused():
    with pytest.raises(ValidationError, match="width 18 is not a multiple of head_groups 4"):
        config(width=18)
    assert config(width=18, head_norm="none").width == 18


def test_every_class_starts_at_its_prior_probability():
    head = prediction(WIDTH, 5, CLASS_PRIOR)
    assert head.bias is not None
    torch.testing.assert_close(head.bias.sigmoid(), torch.full((5,), CLASS_PRIOR))
    assert (prediction(WIDTH, 5).bias == 0).all()


@pytest.mark.parametrize("size", [(64, 96), (70, 101), (33, 20)])
def test_a_cell_is_padding_if_its_first_pixel_is_whatever_the_stride(size: tuple[int, int]):
    height, width = size
    padding = torch.zeros(2, height, width, dtype=torch.bool)
    padding[1, 31:], padding[1, :, 17:] = True, True
    strides = (4, 8, 16, 32, 64)
    maps = [torch.zeros(2, 1, -(-height // stride), -(-width // stride)) for stride in strides]
    for level in levels_with_padding(maps, strides, padding):
        rows, columns = level.features.shape[-2:]
        for y in range(rows):
            for x in range(columns):
                assert level.padding[:, y, x].tolist() == padding[:, y * level.stride, x * level.stride].tolist()
    assert sides_of(padding).tolist() == [[width, height], [17, 31]]


def test_a_backbone_that_leaves_out_a_part_of_a_cell_has_as_much_padding():
    (level,) = levels_with_padding([torch.zeros(1, 1, 4, 6)], (16,), torch.zeros(1, 70, 101, dtype=torch.bool))
    assert level.padding.shape == (1, 4, 6)
