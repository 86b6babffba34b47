"""torchvision's own Faster R-CNN with the weights of one of ours, to compare the two."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from workbench.datasets.targets import TargetBatch
from workbench.detectors.dense_detector import pixel_boxes
from workbench.detectors.faster_rcnn import FasterRcnn


class _Levels(nn.Module):
    """Backbone and pyramid of our detector, in the form that torchvision takes."""

    def __init__(self, ours: FasterRcnn):
        super().__init__()
        self.ours, self.out_channels = ours, ours.config.width

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        levels = self.ours.neck(self.ours.backbone(images))
        return OrderedDict((str(index), level) for index, level in enumerate(levels))


def twin_of(ours: FasterRcnn, size: tuple[int, int]) -> FasterRCNN:
    """torchvision's detector with our weights, for images of one height and width, which are multiples of every stride."""
    config, classes = ours.config, len(ours.spec.classes)
    assert config.head_norm == "none" and all(side % stride == 0 for side in size for stride in config.strides)
    anchors = AnchorGenerator(
        tuple(tuple(stride * scale for scale in config.anchor_scales) for stride in config.strides),
        (config.anchor_ratios,) * len(config.strides),
    )
    pool = MultiScaleRoIAlign(
        [str(index) for index in range(len(config.backbone.strides))], config.roi_cells, 2, canonical_scale=int(config.roi_scale)
    )
    twin = FasterRCNN(
        _Levels(ours), min_size=min(size), max_size=max(size), image_mean=[0.0] * 3, image_std=[1.0] * 3, size_divisible=1,
        rpn_anchor_generator=anchors, rpn_head=RPNHead(config.width, anchors.num_anchors_per_location()[0], config.head_convs),
        rpn_pre_nms_top_n_train=config.training_candidates, rpn_pre_nms_top_n_test=config.candidates,
        rpn_post_nms_top_n_train=config.training_proposals, rpn_post_nms_top_n_test=config.proposals,
        rpn_nms_thresh=config.proposal_threshold, rpn_batch_size_per_image=config.anchor_samples,
        box_roi_pool=pool, box_head=TwoMLPHead(config.width * config.roi_cells**2, config.roi_width),
        box_predictor=FastRCNNPredictor(config.roi_width, classes + 1),
        box_score_thresh=config.score_threshold, box_nms_thresh=config.nms_threshold, box_batch_size_per_image=config.samples,
    )  # fmt: skip
    _fill(twin, ours)
    twin.transform._skip_resize = True  # pyright: ignore[reportArgumentType] - in training; in inference no side changes
    return twin.train(ours.training)


@torch.no_grad()
def _fill(twin: FasterRCNN, ours: FasterRcnn) -> None:
    head: Any = twin.rpn.head
    roi_heads: Any = twin.roi_heads
    for index, convolution in enumerate(ours.rpn.tower.convolutions):
        head.conv[index][0].load_state_dict(convolution.state_dict())
    head.cls_logits.load_state_dict(ours.rpn.object_head.state_dict())
    head.bbox_pred.load_state_dict(ours.rpn.box_head.state_dict())
    roi_heads.box_head.load_state_dict(ours.roi_head.state_dict())
    predictor = roi_heads.box_predictor
    for own, theirs in ((ours.class_head, predictor.cls_score), (ours.box_head, predictor.bbox_pred)):
        for name, value in own.named_parameters():
            rows = theirs.get_parameter(name)
            rows.zero_()
            if own is ours.class_head:  # theirs has no-object first
                rows.copy_(value.roll(1, 0))
            else:  # theirs has a box for no-object, which is never used
                rows[4:] = value


def targets_of(targets: TargetBatch, sides: Tensor) -> list[dict[str, Tensor]]:
    """The matchable targets as torchvision takes them: boxes in pixels, classes from 1 on."""
    boxes = pixel_boxes(targets.boxes, sides)
    return [{"boxes": boxes[image, own], "labels": targets.labels[image, own] + 1} for image, own in enumerate(targets.valid)]
