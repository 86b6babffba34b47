"""Implements FGD (Yang et al., CVPR 2022), focal and global knowledge distillation for detectors."""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector
from workbench.detectors.output import DetectorOutput
from workbench.detectors.whole_batch import images_over_processes
from workbench.methods.context import MethodContext, Pairing
from workbench.methods.maps import MapConfig, MapMethod, MapPair, boxes_in_cells


class FGDConfig(MapConfig, frozen=True):
    """Configures FGD, which distils foreground and background separately, weighted by the teacher's attention, and relations between cells.

    Weights and temperature are those of one-stage detectors (yzd-v/FGD@c03a6cf,
    configs/distillers/fgd/fgd_retina_rx101_64x4d_distill_retina_r50_fpn_2x_coco.py: alpha, beta, gamma, lambda; the same numbers stand
    in the released configuration of DETRDistill).
    """

    published_weights: ClassVar[dict[str, float]] = {"foreground": 1e-3, "background": 5e-4, "attention": 5e-4, "relation": 5e-6}
    method: Literal["fgd"] = "fgd"
    """Selects the method."""
    temperature: float = Field(0.5, gt=0)
    """Temperature of the softmax in the attention maps. A lower one concentrates them."""

    @property
    def term_names(self) -> tuple[str, ...]:
        """See ``BaseMethodConfig``."""
        return tuple(self.published_weights)


class FGD(MapMethod):
    """FGD, whose terms are summed over cells and channels, averaged over images and summed over levels.

    - ``foreground``, ``background``: squared error weighted by the teacher's spatial and channel attention. A foreground cell weighs 1
      over the area of the smallest box that it lies in, a background cell 1 over the number of background cells.
    - ``attention``: L1 between both attentions of teacher and student.
    - ``relation``: squared error of maps to which a GC block on each side adds global context; both blocks are trained.

    Boxes are measured in cells of the un-padded image. The released code scales them by the padded map, which misplaces them in padded
    images. Softmax and means exclude padding.
    """

    name = "fgd"
    Config = FGDConfig
    terms = "foreground, background, attention, relation"
    citation = "FGD, CVPR 2022; released code yzd-v/FGD@c03a6cf"
    config: FGDConfig

    def __init__(self, config: FGDConfig, student: Detector, teacher: Detector, pairing: Pairing):
        super().__init__(config, student, teacher, pairing)
        self.student_context = nn.ModuleDict({str(stride): GlobalContext(width) for stride, width in self.widths.items()})
        self.teacher_context = nn.ModuleDict({str(stride): GlobalContext(width) for stride, width in self.widths.items()})

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, targets: TargetBatch, context: MethodContext) -> dict[str, Tensor]:
        """See ``Method.forward``. The foreground term is left out if the batch has no target."""
        sums = dict.fromkeys(self.term_names, torch.zeros((), device=student.logits.device))
        images = images_over_processes(len(targets.valid), student.logits.device)
        for pair in self.map_pairs(student, teacher):
            for name, value in self._level(pair, targets).items():
                sums[name] = sums[name] + value / images
        if not targets.any_valid:
            del sums["foreground"]
        return sums

    def _level(self, pair: MapPair, targets: TargetBatch) -> dict[str, Tensor]:
        spatial, channel = attention(pair.teacher, pair.inside, self.config.temperature)
        own_spatial, own_channel = attention(pair.student, pair.inside, self.config.temperature)
        error = (channel[:, :, None, None] * (pair.teacher - pair.student).square()).sum(1, keepdim=True) * spatial
        foreground, background = foreground_and_background(targets, pair.inside)
        key = str(pair.stride)
        own, other = self.student_context[key](pair.student, pair.inside), self.teacher_context[key](pair.teacher, pair.inside)
        return {
            "foreground": (error * foreground).sum(),
            "background": (error * background).sum(),
            "attention": (own_channel - channel).abs().sum() + (own_spatial - spatial).abs().sum(),
            "relation": (own - other).square().masked_fill(~pair.inside, 0.0).sum(),
        }


class GlobalContext(nn.Module):
    """GC block (Cao et al., ICCVW 2019) as FGD uses it: attention pooling, then a bottleneck whose result is added to every cell.

    Args:
        width: number of channels.
    """

    def __init__(self, width: int):
        super().__init__()
        self.weigh = nn.Conv2d(width, 1, 1)
        middle = max(width // 2, 1)
        self.transform = nn.Sequential(nn.Conv2d(width, middle, 1), nn.LayerNorm([middle, 1, 1]), nn.ReLU(), nn.Conv2d(middle, width, 1))
        nn.init.kaiming_normal_(self.weigh.weight, mode="fan_in")
        nn.init.zeros_(self.weigh.bias)  # pyright: ignore[reportArgumentType]
        last: Any = self.transform[-1]
        # the block starts as the identity (released code)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, features: Tensor, inside: Tensor) -> Tensor:
        """Adds global context to ``[B, D, H, W]``. ``inside [B, 1, H, W]`` marks the cells that are pooled."""
        share = self.weigh(features).float().masked_fill(~inside, -torch.inf).flatten(2).softmax(-1)
        pooled = (features.flatten(2) * share).sum(-1)[..., None, None]
        return features + self.transform(pooled).float()


def attention(features: Tensor, inside: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Returns the spatial attention ``[B, 1, H, W]`` and the channel attention ``[B, D]``.

    Each is a softmax of the mean absolute value over channels or over cells (FGD and FKD), scaled to mean 1. Spatial attention has mean 1
    over the cells inside and is 0 elsewhere.
    """
    size = features.abs()
    cells = inside.sum((2, 3), keepdim=True)
    mean = (size.mean(1, keepdim=True) / temperature).masked_fill(~inside, -torch.inf)
    spatial = cells * mean.flatten(2).softmax(-1).view_as(mean)
    channel = size.shape[1] * (size.sum((2, 3)) / cells[:, :, 0, 0] / temperature).softmax(-1)
    return spatial, channel


def foreground_and_background(targets: TargetBatch, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the weight of every cell as foreground and as background, two ``[B, 1, H, W]``, rounded as in the released code.

    A box covers the cells from the floor of its low corner to the ceiling of its high corner, both included. Each of its cells weighs 1
    over their number; where boxes overlap, the largest weight counts. The background cells of an image share a weight of 1. Only
    matchable targets are foreground.
    """
    boxes = boxes_in_cells(targets, inside)
    low, high = boxes[..., :2].floor(), boxes[..., 2:].ceil()
    weight = (1 / (high - low + 1).prod(-1)).where(targets.valid, 0.0)
    height, width = inside.shape[-2:]
    x, y = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
    covered_x = (x >= low[..., :1]) & (x <= high[..., :1])
    covered_y = (y >= low[..., 1:]) & (y <= high[..., 1:])
    cover = (covered_y[..., :, None] & covered_x[..., None, :]) * weight[..., None, None]
    foreground = cover.amax(1, keepdim=True) if cover.shape[1] else torch.zeros_like(inside, dtype=boxes.dtype)
    foreground = foreground.masked_fill(~inside, 0.0)
    background = ((foreground == 0) & inside).float()
    return foreground, background / background.sum((2, 3), keepdim=True).clamp(min=1)
