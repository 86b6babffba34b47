"""Implements RepPoints (Yang et al., ICCV 2019): nine points for each cell, moved twice, whose mean and spread make a box."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import DeformConv2d, sigmoid_focal_loss

from workbench.datasets.targets import TargetBatch
from workbench.detectors.dense_detector import IGNORED, DenseDetector, at_positives, class_indicator, pixel_boxes, relative_boxes
from workbench.detectors.detector import InputSpec
from workbench.detectors.grid import flat, point_grid
from workbench.detectors.output import DenseOutput, DetectorOutput, Grid, HeadMap, dense_output
from workbench.detectors.pyramid import CLASS_PRIOR, WEIGHT_SPREAD, PyramidConfig, Tower, prediction
from workbench.detectors.reppoints_assignment import SCALE, overlap_assignment, place_assignment
from workbench.detectors.whole_batch import over_processes
from workbench.matching import NonFiniteCostError

POINTS = 9  # one for each value of a 3 x 3 kernel
GRADIENT_SHARE = 0.1  # of the second stage's gradient that reaches the first points
MOMENT_SHARE = 0.01  # of the gradient that reaches the learned scale of the spread
SMOOTH_L1_BETA = 0.11
LEAST_VARIANCE = 1e-12  # in squared strides; points that coincide have no gradient through their spread


class RepPointsModelConfig(PyramidConfig):
    """Describes the architecture of a RepPoints that starts from random weights."""

    family: Literal["reppoints"] = "reppoints"
    """Selects the family."""
    extra_from: Literal["backbone", "pyramid", "pool"] = "backbone"
    """How the extra levels are made. Convolutions of stride 2 make the first one of the last level of the ``backbone`` or of the
    ``pyramid``. ``pool`` takes every second cell of the level before, without a weight.
    """
    head_convs: int = Field(3, ge=0, le=8)
    """Number of convolutions in each tower of the head before the prediction."""
    nms_threshold: float = Field(0.5, gt=0, le=1)
    """IoU above which the worse of two boxes of one class is suppressed."""


class RepPoints(DenseDetector):
    """RepPoints with moment transform, in the form without anchors ("center init").

    A cell starts at its first pixel. The first stage moves nine points from there. Deformable convolutions read the features at these
    points; one classifies the cell, the other moves the points a second time. The first boxes are ``DenseOutput.first``, and the second
    assignment depends on them.

    ``HeadMap.boxes`` holds the 18 numbers of the second stage and ``HeadMap.first`` those of the first: y and x of each point, in strides
    from the cell's first pixel. Response distillation that follows DetKDS's released code reads ``first``.
    """

    family = "reppoints"
    config_class = RepPointsModelConfig
    config: RepPointsModelConfig
    geometric: ClassVar[bool] = False
    numbers = 2 * POINTS
    regular: Tensor

    def __init__(self, config: RepPointsModelConfig, spec: InputSpec):
        super().__init__(config, spec)
        levels, width = len(config.strides), config.width
        self.class_tower, self.point_tower = Tower(config, levels), Tower(config, levels)
        self.first_convolution = prediction(width, width)
        self.first_head = prediction(width, self.numbers, kernel=1)
        self.second_convolution, self.class_convolution = PointConvolution(width), PointConvolution(width)
        self.second_head = prediction(width, self.numbers, kernel=1)
        self.class_head = prediction(width, len(spec.classes), CLASS_PRIOR, kernel=1)
        self.spread = nn.Parameter(torch.zeros(2))
        """Logarithm of the factor from the points' standard deviation to half the width and half the height."""
        steps = torch.tensor([-1.0, 0.0, 1.0])
        # where a 3 x 3 kernel reads when the offset of a deformable convolution is 0
        self.register_buffer("regular", torch.cartesian_prod(steps, steps).view(1, -1, 1, 1), persistent=False)

    def class_heads(self) -> list[tuple[nn.Module, str, int, float | None]]:
        """See ``DenseDetector.class_heads``."""
        return [(self, "class_head", 1, CLASS_PRIOR)]

    def predict(self, levels: Sequence[Tensor]) -> tuple[HeadMap, ...]:
        """See ``DenseDetector.predict``."""
        maps: list[HeadMap] = []
        for index, (stride, level) in enumerate(zip(self.config.strides, levels, strict=True)):
            near = self.point_tower(level, index)
            first = self.first_head(F.relu(self.first_convolution(near)))
            offset = first.detach() + GRADIENT_SHARE * (first - first.detach()) - self.regular
            second = self.second_head(F.relu(self.second_convolution(near, offset))) + first.detach()
            logits = self.class_head(F.relu(self.class_convolution(self.class_tower(level, index), offset)))
            maps.append(HeadMap(stride, logits, second, first=first))
        return tuple(maps)

    def forward(self, images: Tensor, padding: Tensor, targets: TargetBatch | None = None) -> DenseOutput:
        """See ``Detector.forward``. ``targets`` is not used."""
        output = super().forward(images, padding, targets)
        return replace(output, first=relative_boxes(self.decode_boxes(_first_numbers(output), output.grid), output.sides))

    def grid(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> Grid:
        """See ``DenseDetector.grid``. The candidates are the first pixels of the cells."""
        return point_grid(self.config.strides, sizes, device, place=0.0)

    def decode_boxes(self, numbers: Tensor, grid: Grid) -> Tensor:
        """See ``DenseDetector.decode_boxes``."""
        return grid.anchors + moment_boxes(numbers, self.spread) * grid.stride[:, None]

    def positives(self, output: DenseOutput, boxes: Tensor, targets: TargetBatch) -> Tensor:
        """See ``DenseDetector.positives``. These are the positives of the second stage, which the classes learn too.

        Raises:
            NonFiniteCostError: a box of the first stage is NaN or infinite.
        """
        assert output.first is not None and output.valid is not None
        bad = ~output.first.isfinite().flatten(1).all(1)
        if bad.any():
            raise NonFiniteCostError([(0, int(image)) for image in bad.nonzero()])
        return overlap_assignment(pixel_boxes(output.first, output.sides), output.valid, boxes, targets.valid)

    @property
    def loss_weights(self) -> dict[str, float]:
        """See ``Detector.loss_weights``."""
        return {"class": 1.0, "bbox_first": 0.5, "bbox": 1.0}

    def losses(
        self, output: DetectorOutput, targets: TargetBatch, num_boxes: Tensor | float, match: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See ``Detector.losses``.

        Returns:
            ``class`` (focal loss), and ``bbox_first`` and ``bbox``, the smooth L1 losses of the two stages, summed over the four
            coordinates in units of four strides. Each is divided by the number of positives of its stage.
        """
        dense = dense_output(output)
        assert dense.valid is not None
        assigned = (self.assign(output, targets) if match is None else match)[0].to(output.logits.device)
        count = over_processes((assigned >= 0).sum(), least=1)
        logits = dense.logits[0]
        focal = sigmoid_focal_loss(logits, class_indicator(logits, assigned, targets.labels), reduction="none")
        wanted = pixel_boxes(targets.boxes, dense.sides)
        first = place_assignment(dense.grid, dense.valid, wanted, targets.valid)
        first_count = over_processes((first >= 0).sum(), least=1)
        second_numbers = flat([level.boxes for level in dense.maps], self.numbers).float()
        return {
            "class": (focal * (assigned > IGNORED)[..., None]).sum() / count,
            "bbox_first": self._box_loss(_first_numbers(dense), first, wanted, dense.grid) / first_count,
            "bbox": self._box_loss(second_numbers, assigned, wanted, dense.grid) / count,
        }

    def _box_loss(self, numbers: Tensor, match: Tensor, wanted: Tensor, grid: Grid) -> Tensor:
        image, candidate, boxes = at_positives(match, wanted)
        found = moment_boxes(numbers[image, candidate], self.spread)
        true = (boxes - grid.anchors[candidate]) / grid.stride[candidate][:, None]
        return F.smooth_l1_loss(found / SCALE, true / SCALE, beta=SMOOTH_L1_BETA, reduction="sum")


class PointConvolution(DeformConv2d):
    """A convolution without bias that reads the features at nine points in place of the 3 x 3 cells around it.

    Args:
        width: channels of input and output.
    """

    def __init__(self, width: int):
        super().__init__(width, width, 3, padding=1, bias=False)
        nn.init.normal_(self.weight, std=WEIGHT_SPREAD)

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps features ``[B, width, h, w]`` and offsets ``[B, 18, h, w]`` from the regular cells to ``[B, width, h, w]``."""
        # torchvision has no kernel for bfloat16 on the CPU
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype), offset.to(self.weight.dtype), mask)


def moment_boxes(numbers: Tensor, spread: Tensor) -> Tensor:
    """Returns xyxy boxes ``[..., 4]`` of points: their mean, and on either side their standard deviation times ``exp(spread)``.

    See section 3.2, "moment-based function".

    Args:
        numbers: ``[..., 18]``, y and x of each point.
        spread: ``[2]``, logarithm of the factor of width and height. Of its gradient a hundredth is kept.
    """
    points = numbers.unflatten(-1, (-1, 2)).flip(-1)
    mean = points.mean(-2)
    variance = (points - mean[..., None, :]).square().sum(-2) / (points.shape[-2] - 1)
    scale = spread.detach() + MOMENT_SHARE * (spread - spread.detach())
    half = variance.clamp(min=LEAST_VARIANCE).sqrt() * scale.exp()
    return torch.cat([mean - half, mean + half], -1)


def _first_numbers(output: DenseOutput) -> Tensor:
    parts: list[Any] = [level.first for level in output.maps]
    return flat(parts, 2 * POINTS).float()
