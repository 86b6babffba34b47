"""Computes the set loss of DETR (Carion et al., ECCV 2020, equation 2) with the focal class term of Deformable DETR."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from workbench.boxes import cxcywh_to_xyxy, iou_and_giou
from workbench.datasets.targets import TargetBatch
from workbench.detectors.whole_batch import over_processes
from workbench.matching import FOCAL_ALPHA, FOCAL_GAMMA, Activation

SET_LOSS_WEIGHTS = {"class": 2.0, "bbox": 5.0, "giou": 2.0}
NO_OBJECT_WEIGHT = 0.1

# maps logits, an indicator that is 1 at the matched class, and the IoU there, all [L, B, N, C], to the loss summed over all of them
QualityLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def set_loss(
    logits: Tensor,
    boxes: Tensor,
    match: Tensor,
    targets: TargetBatch,
    num_boxes: Tensor | float,
    activation: Activation = "sigmoid",
    quality_loss: QualityLoss | None = None,
) -> dict[str, Tensor]:
    """Returns the class, L1 and GIoU losses of a matching, unweighted and summed over layers.

    Args:
        logits: ``[L, B, N, C]``.
        boxes: ``[L, B, N, 4]`` cxcywh.
        match: ``[L, B, N]`` int64, target index or -1.
        targets: of the B images.
        num_boxes: normaliser, the number of matchable targets in the batch averaged over processes, at least 1.
        activation: ``sigmoid`` gives the focal loss over all queries and classes divided by ``num_boxes``. ``softmax`` gives the
            cross-entropy with no-object at weight 0.1, averaged by weight in each layer, as in DETR.
        quality_loss: replaces the focal loss of a sigmoid head.

    Returns:
        ``class``, ``bbox`` and ``giou``, each a scalar.
    """
    layer, image, query = (match >= 0).nonzero(as_tuple=True)
    # one copy of all four, which nothing waits for: the assignment is on the host
    places = torch.stack([layer, image, query, match[layer, image, query]])
    if places.device != logits.device and logits.device.type == "cuda":
        places = places.pin_memory()
    layer, image, query, column = places.to(logits.device, non_blocking=True)
    labels = targets.labels[image, column]
    predicted, wanted_boxes = boxes[layer, image, query], targets.boxes[image, column]
    iou, giou = iou_and_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted_boxes))
    if activation == "sigmoid":
        wanted = torch.zeros_like(logits)
        wanted[layer, image, query, labels] = 1.0
        if quality_loss is None:
            class_loss = sigmoid_focal_loss(logits, wanted, alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA, reduction="sum") / num_boxes
        else:
            quality = torch.zeros_like(logits)
            quality[layer, image, query, labels] = iou.detach().to(logits.dtype)
            class_loss = quality_loss(logits, wanted, quality) / num_boxes
    else:
        wanted = torch.full(logits.shape[:3], logits.shape[-1] - 1, device=logits.device)
        wanted[layer, image, query] = labels
        weight = logits.new_ones(logits.shape[-1])
        weight[-1] = NO_OBJECT_WEIGHT
        count = over_processes(weight[wanted].sum((1, 2)))
        entropy = F.cross_entropy(logits.movedim(-1, 1), wanted, weight, reduction="none").sum((1, 2))
        class_loss = (entropy / count).sum()
    return {
        "class": class_loss,
        "bbox": (predicted - wanted_boxes).abs().sum() / num_boxes,
        "giou": (1 - giou).sum() / num_boxes,
    }


@torch.no_grad()
def pair_losses(logits: Tensor, boxes: Tensor, match: Tensor, targets: TargetBatch, activation: Activation = "sigmoid") -> Tensor:
    """Returns ``[L, B, N, 3]``: class, L1 and GIoU loss of every query, unweighted and not normalised.

    Boxes of unmatched queries cost 0. The arguments are those of ``set_loss``.
    """
    matched = (match >= 0).to(logits.device)
    column = match.clamp(min=0).to(logits.device)
    if not targets.labels.shape[1]:
        targets = TargetBatch.of_nothing(len(targets.labels), logits.device)
    image = torch.arange(logits.shape[1], device=logits.device)[None, :, None]
    labels = targets.labels[image, column]
    if activation == "sigmoid":
        wanted = torch.zeros_like(logits).scatter_(-1, labels[..., None], matched[..., None].to(logits.dtype))
        class_loss = sigmoid_focal_loss(logits, wanted, alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA, reduction="none").sum(-1)
    else:
        class_loss = F.cross_entropy(
            logits.flatten(0, 2), torch.where(matched, labels, logits.shape[-1] - 1).flatten(), reduction="none"
        ).view(matched.shape)
    wanted_boxes = targets.boxes[image, column]
    _, giou = iou_and_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(wanted_boxes))
    l1 = (boxes - wanted_boxes).abs().sum(-1)
    return torch.stack([class_loss, l1.where(matched, 0.0), (1 - giou).where(matched, 0.0)], dim=-1)
