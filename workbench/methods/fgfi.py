"""Implements FGFI (Wang et al., CVPR 2019), fine-grained feature imitation near objects."""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector
from workbench.detectors.output import DetectorOutput, Level
from workbench.detectors.whole_batch import over_processes
from workbench.methods.context import MethodContext
from workbench.methods.levels import Compared, Feature, compared_levels
from workbench.methods.maps import MapConfig, MapMethod, boxes_in_cells


class FGFIConfig(MapConfig, frozen=True):
    """Configures FGFI, which imitates the teacher's features near objects alone.

    The weight of 0.01 and the anchors are those of the released code (twangnh/Distilling-Object-Detectors@c6583f3,
    trainval_net_sup.py --ilw and lib/model/utils/config.py).
    """

    published_weights: ClassVar[dict[str, float]] = {"features": 0.01}
    method: Literal["fgfi"] = "fgfi"
    """Selects the method."""
    scales: tuple[float, ...] = Field((8.0, 16.0, 32.0), min_length=1)
    """Sides of the anchors in cells. Every level has anchors of all sizes; the released detector has a single level."""
    ratios: tuple[float, ...] = Field((0.5, 1.0, 2.0), min_length=1)
    """Height of the anchors divided by their width."""
    threshold: float = Field(0.5, ge=0, lt=1)
    """Share of the best IoU that any anchor has with a target (psi). A cell imitates the teacher if one of its anchors exceeds it."""

    @property
    def term_names(self) -> tuple[str, ...]:
        """See ``BaseMethodConfig``."""
        return ("features",)


class FGFI(MapMethod):
    """FGFI with the term ``features``, a squared error over cells near objects.

    It is summed over channels, divided by twice the number of cells, and summed over levels. A DETR has no anchors, so those of the
    released detector are laid over each level, only to make the mask. The adaptor is a 3x3 convolution even where widths are equal. The
    released code has a ReLU after it, which is left out here because memory and neck are signed. The released 400 steps of warm-up
    without imitation are not part of the term.
    """

    name = "fgfi"
    Config = FGFIConfig
    terms = "features"
    citation = "FGFI, CVPR 2019; released code twangnh/Distilling-Object-Detectors@c6583f3"
    config: FGFIConfig

    def compare(self, feature: Feature, student: Detector, teacher: Detector) -> Compared:
        """See ``MapMethod``."""
        return compared_levels(self.name, feature, student, teacher, kernel=3, always=True)

    def make_adaptor(self) -> nn.Module:
        """See ``MapMethod``."""
        return _WideAdaptor({stride: (self.compared.student[stride], width) for stride, width in self.widths.items()})

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, targets: TargetBatch, context: MethodContext) -> dict[str, Tensor]:
        """See ``Method.forward``. The term is left out if the batch has no target."""
        losses: list[Tensor] = []
        for pair in self.map_pairs(student, teacher):
            mask = imitation_mask(self.config, targets, pair.inside)
            error = (pair.teacher - pair.student).square().sum(1) * mask
            losses.append(error.sum() / (2 * over_processes(mask.sum(), least=1)))
        return {"features": torch.stack(losses).sum()} if targets.any_valid else {}


class _WideAdaptor(nn.Module):
    """A 3x3 convolution for each stride."""

    def __init__(self, widths: dict[int, tuple[int, int]]):
        super().__init__()
        self.convolutions = nn.ModuleDict({str(stride): nn.Conv2d(*sides, 3, padding=1) for stride, sides in widths.items()})

    def forward(self, level: Level) -> Tensor:
        return self.convolutions[str(level.stride)](level.features)


def imitation_mask(config: FGFIConfig, targets: TargetBatch, inside: Tensor) -> Tensor:
    """Returns ``[B, H, W]`` bool: cells with an anchor whose IoU with a target exceeds ``threshold`` times that target's best IoU.

    Args:
        config: configuration of anchors and threshold.
        targets: targets of the B images; only matchable ones count.
        inside: ``[B, 1, H, W]`` bool.
    """
    box = boxes_in_cells(targets, inside)[..., None, None]
    sides = [(scale / math.sqrt(ratio), scale * math.sqrt(ratio)) for scale in config.scales for ratio in config.ratios]
    # anchors of one shape differ by whole cells, so their overlap with a box is one number per column times one number per row
    overlaps: list[Tensor] = []
    for axis, cells in enumerate((inside.shape[-1], inside.shape[-2])):
        centre = torch.arange(cells, device=inside.device) + 0.5
        half = torch.tensor([side[axis] / 2 for side in sides], device=inside.device)[:, None]
        low, high = torch.maximum(centre - half, box[:, :, axis]), torch.minimum(centre + half, box[:, :, axis + 2])
        overlaps.append((high - low).clamp(min=0))
    intersection = overlaps[1][..., :, None] * overlaps[0][..., None, :]
    areas = torch.tensor([side[0] * side[1] for side in sides], device=inside.device)[:, None, None]
    size = ((box[:, :, 2] - box[:, :, 0]) * (box[:, :, 3] - box[:, :, 1]))[..., None]
    iou = intersection / (areas + size - intersection)
    # a padded cell has no anchors
    iou = iou.amax(2).masked_fill(~inside, 0.0)
    near = (iou > config.threshold * iou.amax((2, 3), keepdim=True)) & targets.valid[..., None, None]
    return near.any(1)
