"""A small two-stage detector for tests: it keeps the contract of one, and no registry knows it."""

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from tests.families import tiny
from workbench.boxes import cxcywh_to_xyxy, pairwise_iou_and_giou
from workbench.datasets.targets import TargetBatch
from workbench.detectors.dense_detector import at_positives, class_indicator, pixel_boxes
from workbench.detectors.detector import Detections, Detector, InputSpec
from workbench.detectors.fcos import Fcos
from workbench.detectors.output import DetectorOutput, TwoStageOutput, scores

PROPOSALS = 20
POOLED = 3


class TwoStageDouble(Detector):
    """A dense first stage whose best boxes a small head classifies and moves. Proposals in the padding are not valid."""

    family: ClassVar[str] = "two_stage_double"
    assignment: ClassVar[Literal["one", "many"]] = "many"
    provides = frozenset({"neck", "backbone", "head", "rois"})

    def __init__(self, seed: int = 0):
        super().__init__()
        first = tiny("fcos", seed)
        assert isinstance(first, Fcos)
        self.first, self.spec = first, first.spec
        inner = first.config.width * POOLED**2
        self.class_head, self.box_head = nn.Linear(inner, len(self.spec.classes)), nn.Linear(inner, 4)

    @property
    def num_stages(self) -> int:
        return 1

    @classmethod
    def build(cls, config: Any, spec: InputSpec) -> Self:
        raise NotImplementedError

    def forward(self, images: Tensor, padding: Tensor, targets: TargetBatch | None = None) -> TwoStageOutput:
        first = self.first(images, padding)
        assert first.valid is not None
        best = scores(first, -1).amax(-1).masked_fill(~first.valid, -1.0).topk(PROPOSALS).indices
        proposals = first.boxes[-1].gather(1, best[..., None].expand(-1, -1, 4)).detach().clamp(0.05, 0.95)
        level = first.neck[0]
        rois = list((pixel_boxes(proposals, first.sides) / level.stride).unbind(0))
        pooled = roi_align(level.features, rois, POOLED).flatten(1).view(*proposals.shape[:2], -1)
        return TwoStageOutput(
            logits=self.class_head(pooled)[None],
            boxes=(proposals + 0.1 * self.box_head(pooled).tanh())[None],
            valid=first.valid.gather(1, best),
            neck=first.neck,
            backbone=first.backbone,
            first=first,
            proposals=proposals,
        )

    @torch.no_grad()
    def assign(self, output: DetectorOutput, targets: TargetBatch) -> Tensor:
        assert isinstance(output, TwoStageOutput)
        iou, _ = pairwise_iou_and_giou(cxcywh_to_xyxy(output.proposals), cxcywh_to_xyxy(targets.boxes))
        best, target = iou.masked_fill(~targets.valid[:, None], -1.0).max(-1)
        return target.masked_fill(best < 0.3, -1)[None]

    def losses(
        self, output: DetectorOutput, targets: TargetBatch, num_boxes: Tensor | float, match: Tensor | None = None
    ) -> dict[str, Tensor]:
        assert isinstance(output, TwoStageOutput)
        assigned = (self.assign(output, targets) if match is None else match)[0]
        wanted = class_indicator(output.logits[0], assigned, targets.labels)
        image, candidate, boxes = at_positives(assigned, targets.boxes)
        own = F.binary_cross_entropy_with_logits(output.logits[0], wanted, reduction="sum")
        first = self.first.losses(output.first, targets, num_boxes)
        return {"class": own / num_boxes, "bbox": (output.boxes[0, image, candidate] - boxes).abs().sum() / num_boxes} | {
            f"first_{name}": value for name, value in first.items()
        }

    @property
    def loss_weights(self) -> dict[str, float]:
        return {"class": 1.0, "bbox": 1.0} | {f"first_{name}": weight for name, weight in self.first.loss_weights.items()}

    def detections(self, output: DetectorOutput, sizes: Tensor, k: int = 300) -> list[Detections]:
        raise NotImplementedError

    def reset_classes(self, spec: InputSpec) -> list[str]:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path) -> "Detector":
        raise NotImplementedError
