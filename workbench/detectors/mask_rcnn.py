"""Implements Mask R-CNN with a feature pyramid (He et al., ICCV 2017): Faster R-CNN with a head of masks, on torchvision's parts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detections, InputSpec
from workbench.detectors.faster_rcnn import FasterRcnn, FasterRcnnModelConfig, roi_pool
from workbench.detectors.mask_pasting import pasted
from workbench.detectors.output import DetectorOutput, two_stage_output
from workbench.detectors.two_stage_detector import RoiContext
from workbench.detectors.whole_batch import over_processes


class MaskRcnnModelConfig(FasterRcnnModelConfig):
    """Describes the architecture of a Mask R-CNN that starts from random weights."""

    family: Literal["mask_rcnn"] = "mask_rcnn"  # pyright: ignore[reportIncompatibleVariableOverride] - the tag is what differs
    """Selects the family."""
    mask_cells: int = Field(14, gt=0)
    """Cells along each side of the map that the mask of a box is predicted from; the mask has twice as many."""
    mask_convs: int = Field(4, ge=1, le=8)
    """Number of 3x3 convolutions of the mask head before the deconvolution that doubles its sides."""
    mask_width: int = Field(256, gt=0)
    """Width of these convolutions and of the deconvolution."""


class MaskRcnn(FasterRcnn):
    """Mask R-CNN: a Faster R-CNN that predicts a mask of each class for every box.

    In training the masks of the positive proposals are predicted by ``losses``; in inference those of the detections that are left after
    suppression, by ``detections``. The output of ``forward`` is that of Faster R-CNN.
    """

    family = "mask_rcnn"
    config_class = MaskRcnnModelConfig
    config: MaskRcnnModelConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    provides = FasterRcnn.provides | {"masks"}

    def __init__(self, config: MaskRcnnModelConfig, spec: InputSpec):
        super().__init__(config, spec)
        self.mask_pool = roi_pool(config.mask_cells, config.backbone.strides, config.roi_scale)
        self.mask_head = MaskRCNNHeads(config.width, (config.mask_width,) * config.mask_convs, 1)
        self.mask_predictor = MaskRCNNPredictor(config.mask_width, config.mask_width, len(spec.classes))

    def mask_logits(self, levels: Sequence[Tensor], rois: Sequence[Tensor]) -> Tensor:
        """Predicts the masks of boxes.

        Args:
            levels: levels of the pyramid that the second stage reads, ``[B, width, h, w]`` each.
            rois: ``[n, 4]`` xyxy in input pixels for each of the B images.

        Returns:
            ``[sum of n, C, 2 * mask_cells, 2 * mask_cells]``.
        """
        return self.mask_predictor(self.mask_head(self.mask_maps(levels, rois))).float()

    def mask_maps(self, levels: Sequence[Tensor], rois: Sequence[Tensor]) -> Tensor:
        """Returns the map of each box ``[sum of n, width, mask_cells, mask_cells]``, pooled from the level of its size."""
        return self.mask_pool({str(index): level for index, level in enumerate(levels)}, list(rois), [])

    def mask_probabilities(self, levels: Sequence[Tensor], rois: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Predicts the mask of one class for each box.

        Args:
            levels: as for ``mask_logits``.
            rois: as for ``mask_logits``.
            labels: ``[sum of n]`` the class of each box.

        Returns:
            ``[sum of n, 2 * mask_cells, 2 * mask_cells]`` in 0..1.
        """
        return self.mask_logits(levels, rois)[torch.arange(len(labels), device=labels.device), labels].sigmoid()

    @property
    def loss_weights(self) -> dict[str, float]:
        """See ``Detector.loss_weights``."""
        return {**super().loss_weights, "mask": 1.0}

    def losses(
        self, output: DetectorOutput, targets: TargetBatch, num_boxes: Tensor | float, match: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See ``Detector.losses``.

        Returns:
            The terms of ``FasterRcnn.losses``, and ``mask``: the binary cross-entropy between the mask of the target's class and the
            target's mask in the proposal, averaged over the pixels of the positive proposals (section 3, "Mask Representation").
        """
        match = self.assign(output, targets) if match is None else match
        own = two_stage_output(output)
        return {**super().losses(output, targets, num_boxes, match), "mask": self._mask_loss(own.context, match[0], targets)}

    def _mask_loss(self, context: RoiContext, match: Tensor, targets: TargetBatch) -> Tensor:
        rois: list[Tensor] = []
        wanted: list[Tensor] = []
        labels: list[Tensor] = []
        side = 2 * self.config.mask_cells
        for image, assigned in enumerate(match.to(context.rois.device)):
            masks = assigned.new_zeros((0, 1, 1), dtype=torch.bool) if targets.masks is None else targets.masks[image]
            # a target without a mask, or of which nothing is left in the image, teaches none
            taught = masks.flatten(1).any(1).nonzero()[:, 0]
            positive = torch.isin(assigned, taught).nonzero()[:, 0]
            target = assigned[positive]
            rois.append(context.rois[image, positive])
            labels.append(targets.labels[image, target])
            if len(positive):
                wanted.append(project_masks_on_boxes(masks.float(), rois[-1].float(), target, side))
        logits, label = self.mask_logits(context.levels, rois), torch.cat(labels)
        count = over_processes(torch.tensor(float(len(label)), device=logits.device), least=1)
        if not wanted:
            return logits.sum() * 0  # keeps the head in the graph, which several processes need
        chosen = logits[torch.arange(len(label), device=label.device), label]
        return F.binary_cross_entropy_with_logits(chosen, torch.cat(wanted), reduction="sum") / (count * side**2)

    @torch.no_grad()
    def detections(self, output: DetectorOutput, sizes: Tensor, k: int = 300) -> list[Detections]:
        """Returns what ``TwoStageDetector.detections`` does, with the mask of each. A cached output, which has no pyramid, has none."""
        found = super().detections(output, sizes, k)
        context = two_stage_output(output).context
        if context is None:
            return found
        return [
            replace(own, masks=self._masks_of(own, context, image, (int(size[0]), int(size[1]))))
            for image, (own, size) in enumerate(zip(found, sizes.tolist(), strict=True))
        ]

    def _masks_of(self, found: Detections, context: RoiContext, image: int, size: tuple[int, int]) -> tuple[bytes, ...]:
        sides = context.sides[image]
        boxes = found.boxes.to(sides.device)
        scale = sides / sides.new_tensor([size[1], size[0]])
        levels = [level[image : image + 1] for level in context.levels]
        masks = self.mask_probabilities(levels, [boxes * scale.repeat(2)], found.labels.to(sides.device))
        return pasted(masks.cpu(), found.boxes, *size)

    def reset_classes(self, spec: InputSpec) -> list[str]:
        """See ``Detector.reset_classes``. The last layer of the mask head is made anew as well."""
        made = super().reset_classes(spec)
        last: nn.Conv2d = self.mask_predictor.mask_fcn_logits  # pyright: ignore[reportAssignmentType]
        fresh = nn.Conv2d(last.in_channels, len(spec.classes), 1)
        nn.init.kaiming_normal_(fresh.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's predictor starts
        self.mask_predictor.mask_fcn_logits = fresh.to(last.weight.device)
        return [*made, *(f"mask_predictor.mask_fcn_logits.{name}" for name, _ in fresh.named_parameters())]
