"""Builds what dense and two-stage detectors have in front of their heads: a backbone and a feature pyramid; and the towers of the heads."""

import math
from collections import OrderedDict
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from workbench.detectors.backbone import BackboneConfig
from workbench.detectors.output import Level

CLASS_PRIOR = 0.01
WEIGHT_SPREAD = 0.01  # standard deviation of the first weights of every head (RetinaNet, section 4.1)


class PyramidConfig(BaseModel):
    """Holds the fields that all detectors with a feature pyramid have. Defaults are as published for 800 x 1333 pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    backbone: BackboneConfig
    """The backbone, whose levels go into the feature pyramid."""
    width: int = Field(256, gt=0)
    """Channels of every level of the feature pyramid and of the heads."""
    extra_levels: int = Field(2, ge=0, le=4)
    """Number of coarser levels behind the backbone's, each of half the size."""
    extra_from: Literal["backbone", "pyramid", "pool"] = "pyramid"
    """How the extra levels are made. Convolutions of stride 2 make the first one of the last level of the ``backbone`` or of the
    ``pyramid``. ``pool`` takes every second cell of the level before, without a weight.
    """
    head_convs: int = Field(4, ge=0, le=8)
    """Number of convolutions in each tower of the head before the prediction."""
    head_norm: Literal["none", "group", "batch"] = "group"
    """Normalisation behind each convolution of the head: GroupNorm, BatchNorm (with statistics of its own for each level), or none."""
    head_groups: int = Field(32, gt=0)
    """Number of groups of the head's GroupNorm; ``width`` must be a multiple of it. The smaller of the two is taken, 8 of 64 say."""
    score_threshold: float = Field(0.05, ge=0, lt=1)
    """Lowest score of a detection."""
    nms_threshold: float = Field(0.6, gt=0, le=1)
    """IoU above which the worse of two boxes of one class is suppressed."""
    candidates: int = Field(1000, gt=0)
    """Highest number of (candidate, class) pairs of each level that go into the suppression."""

    @model_validator(mode="after")
    def _groups(self) -> "PyramidConfig":
        if self.head_norm == "group" and self.width % min(self.head_groups, self.width):
            raise ValueError(f"width {self.width} is not a multiple of head_groups {self.head_groups}. Choose a divisor, such as 8")
        return self

    @property
    def strides(self) -> tuple[int, ...]:
        """Returns the stride of each level of the feature pyramid."""
        own = self.backbone.strides
        return (*own, *(own[-1] * 2 ** (level + 1) for level in range(self.extra_levels)))


class Pyramid(nn.Module):
    """torchvision's feature pyramid, with further levels made by convolutions of stride 2 or by pooling.

    Args:
        config: width and number of levels.
        channels: channels of each level of the backbone.
    """

    def __init__(self, config: PyramidConfig, channels: tuple[int, ...]):
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(channels), config.width)
        self.from_backbone = config.extra_from == "backbone"
        self.pooled = config.extra_levels if config.extra_from == "pool" else 0
        first = channels[-1] if self.from_backbone else config.width
        made = config.extra_levels - self.pooled
        widths = [first, *[config.width] * made]
        self.extra = nn.ModuleList(nn.Conv2d(widths[k], config.width, 3, stride=2, padding=1) for k in range(made))
        for convolution in self.extra:
            nn.init.kaiming_uniform_(convolution.weight, a=1)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(convolution.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps the levels of the backbone to those of the pyramid, each ``[B, width, h, w]``."""
        levels = list(self.fpn(OrderedDict((str(index), level) for index, level in enumerate(features))).values())
        last = features[-1] if self.from_backbone else levels[-1]
        for index, convolution in enumerate(self.extra):
            # torchvision and mmdet put the activation between the extra levels alone
            last = convolution(F.relu(last) if index else last)
            levels.append(last)
        levels += [levels[-1][..., :: 2**step, :: 2**step] for step in range(1, self.pooled + 1)]
        return levels


class Tower(nn.Module):
    """Convolutions of a head, shared by all levels; BatchNorm has statistics of its own for each level.

    Args:
        config: number of convolutions, width and normalisation.
        levels: number of levels.
    """

    def __init__(self, config: PyramidConfig, levels: int):
        super().__init__()
        width = config.width
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(config.head_convs))
        for convolution in self.convolutions:
            nn.init.normal_(convolution.weight, std=WEIGHT_SPREAD)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(convolution.bias)  # pyright: ignore[reportArgumentType]
        kinds = {
            "none": lambda: nn.Identity(),
            "group": lambda: nn.GroupNorm(min(config.head_groups, width), width),
            "batch": lambda: nn.ModuleList(nn.BatchNorm2d(width) for _ in range(levels)),
        }
        self.norms = nn.ModuleList(kinds[config.head_norm]() for _ in range(config.head_convs))

    def forward(self, features: Tensor, level: int) -> Tensor:
        """Maps ``[B, width, h, w]`` of one level to the same shape."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            own = norm[level] if isinstance(norm, nn.ModuleList) else norm
            features = F.relu(own(convolution(features)))
        return features


def prediction(width: int, channels: int, prior: float | None = None, kernel: int = 3) -> nn.Conv2d:
    """Returns the last convolution of a head. Its bias makes every class start at the probability ``prior``, or is 0."""
    convolution = nn.Conv2d(width, channels, kernel, padding=kernel // 2)
    nn.init.normal_(convolution.weight, std=WEIGHT_SPREAD)
    assert convolution.bias is not None
    nn.init.constant_(convolution.bias, 0.0 if prior is None else -math.log((1 - prior) / prior))
    return convolution


def levels_with_padding(features: list[Tensor], strides: tuple[int, ...], padding: Tensor) -> tuple[Level, ...]:
    """Returns feature maps as levels. A cell is padding if its first pixel is."""
    return tuple(
        # some backbones leave out the cells that hold less than a stride of the image
        Level(level, stride, padding[:, ::stride, ::stride][:, : level.shape[-2], : level.shape[-1]])
        for level, stride in zip(features, strides, strict=True)
    )


def sides_of(padding: Tensor) -> Tensor:
    """Returns ``[B, 2]``: width and height of the un-padded images, in input pixels."""
    return torch.stack([(~padding[:, 0]).sum(1), (~padding[:, :, 0]).sum(1)], -1).float()
