"""FGFI (Wang et al., CVPR 2019): fine-grained feature imitation near objects."""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from workbench.boxes import pairwise_iou_and_giou
from workbench.detectors.base import Detector
from workbench.detectors.output import DetectorOutput, Level
from workbench.matching import TargetBatch
from workbench.methods.context import MethodContext
from workbench.methods.maps import MapConfig, MapMethod, boxes_in_cells


class FGFIConfig(MapConfig, frozen=True):
    """Weight 0.01 and the anchors of the released code (twangnh/Distilling-Object-Detectors@c6583f3, trainval_net_sup.py --ilw and
    lib/model/utils/config.py).

    Attributes:
        scales: side of an anchor in cells; every level has its own anchors, where the released detector has one level.
        ratios: height by width.
        threshold: a cell imitates when one of its anchors has more than this share of the best IoU that any anchor has with a target
            (psi).
    """

    published_weights: ClassVar[dict[str, float]] = {"features": 0.01}
    method: Literal["fgfi"] = "fgfi"
    scales: tuple[float, ...] = Field((8.0, 16.0, 32.0), min_length=1)
    ratios: tuple[float, ...] = Field((0.5, 1.0, 2.0), min_length=1)
    threshold: float = Field(0.5, ge=0, lt=1)

    @property
    def term_names(self) -> tuple[str, ...]:
        """See ``BaseMethodConfig``."""
        return ("features",)


class FGFI(MapMethod):
    """Term ``features``: squared error over cells near objects, summed over channels, divided by twice their number,
    summed over levels.

    A DETR has no anchors; those of the released detector are laid over each level for the mask alone. The adaptor is a 3x3 convolution
    even where widths are equal (released code, whose ReLU behind it is left out because memory and neck are signed). The released 400
    steps of warm-up without imitation are not part of the term.
    """

    name = "fgfi"
    Config = FGFIConfig
    terms = "features"
    source = "FGFI, CVPR 2019; released code twangnh/Distilling-Object-Detectors@c6583f3"
    config: FGFIConfig

    def make_adaptor(self, student: Detector, teacher: Detector) -> nn.Module:
        """See ``MapMethod``."""
        own = student.level_channels(self.feature)
        return _WideAdaptor({stride: (own[stride], width) for stride, width in self.widths.items()})

    def forward(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: TargetBatch, context: MethodContext
    ) -> dict[str, Tensor]:
        """See ``Method.forward``; without a target in the batch there is no term."""
        if not targets.valid.any():
            return {}
        losses: list[Tensor] = []
        for pair in self.map_pairs(student, teacher):
            mask = imitation_mask(self.config, targets, pair.inside)
            error = (pair.teacher - pair.student).square().sum(1) * mask
            losses.append(error.sum() / (2 * mask.sum()).clamp(min=1))
        return {"features": torch.stack(losses).sum()}


class _WideAdaptor(nn.Module):
    """A 3x3 convolution per stride."""

    def __init__(self, widths: dict[int, tuple[int, int]]):
        super().__init__()
        self.convolutions = nn.ModuleDict({str(stride): nn.Conv2d(*sides, 3, padding=1) for stride, sides in widths.items()})

    def forward(self, level: Level) -> Tensor:
        return self.convolutions[str(level.stride)](level.features)


def imitation_mask(config: FGFIConfig, targets: TargetBatch, inside: Tensor) -> Tensor:
    """``[B, H, W]`` bool: cells with an anchor whose IoU with some target exceeds ``threshold`` times the best one.

    Args:
        config: anchors and threshold.
        targets: of the B images; only matchable ones count.
        inside: ``[B, 1, H, W]`` bool.
    """
    height, width = inside.shape[-2:]
    half = torch.tensor(
        [[scale / math.sqrt(ratio) / 2, scale * math.sqrt(ratio) / 2] for scale in config.scales for ratio in config.ratios],
        device=inside.device,
    )
    y, x = torch.meshgrid(torch.arange(height, device=inside.device), torch.arange(width, device=inside.device), indexing="ij")
    centre = torch.stack([x, y], -1).flatten(0, 1)[:, None] + 0.5
    anchors = torch.cat([centre - half, centre + half], -1)
    iou, _ = pairwise_iou_and_giou(boxes_in_cells(targets, inside), anchors.flatten(0, 1))
    # anchors of padded cells are none
    iou = iou.unflatten(-1, anchors.shape[:2]).amax(-1).masked_fill(~inside.flatten(2), 0.0)
    near = (iou > config.threshold * iou.amax(-1, keepdim=True)) & targets.valid[..., None]
    return near.any(1).view(-1, height, width)
