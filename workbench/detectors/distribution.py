"""Treats boxes as distributions over each edge's distance from a reference box (D-FINE, Peng et al., ICLR 2025, sections 4.1 and 4.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.boxes import cxcywh_to_xyxy, iou_and_giou
from workbench.datasets.targets import TargetBatch
from workbench.detectors.whole_batch import over_processes

TEMPERATURE = 5.0


def bin_positions(bins: int, up: Tensor, scale: Tensor) -> Tensor:
    """Returns the distance that each bin stands for, W(n) of equation 3: ``[bins + 1]``, ascending, denser around 0.

    Args:
        bins: number of intervals, even.
        up: a in the paper, the largest distance of the inner bins.
        scale: c in the paper.
    """
    reach = up.abs().reshape(1) * scale.abs().reshape(1)
    step = (reach + 1) ** (2 / (bins - 2))
    inner = step ** torch.arange(1, bins // 2, device=reach.device) - 1
    return torch.cat([-2 * reach, -inner.flip(0), torch.zeros_like(reach), inner, 2 * reach])


def edge_distances(boxes: Tensor, reference: Tensor, scale: Tensor) -> Tensor:
    """Returns the distances of the left, top, right and bottom edges of cxcywh ``boxes`` from ``reference``, all ``[..., 4]``.

    Their unit is the reference's side divided by ``scale``.
    """
    corners, sides = cxcywh_to_xyxy(boxes), reference[..., 2:] / scale.abs() + 1e-16
    near, far = (reference[..., :2] - corners[..., :2]) / sides, (corners[..., 2:] - reference[..., :2]) / sides
    return torch.cat([near, far], -1) - 0.5 * scale.abs()


def distribution_losses(
    distribution: Tensor,
    logits: Tensor,
    boxes: Tensor,
    reference: Tensor,
    match: Tensor,
    targets: TargetBatch,
    num_boxes: Tensor | float,
    positions: Tensor,
    scale: Tensor,
    counts: Tensor | None = None,
) -> dict[str, Tensor]:
    """Computes fine-grained localization loss and decoupled distillation focal loss, unweighted and summed over layers.

    Args:
        distribution: ``[L, B, N, 4, bins + 1]`` logits.
        logits: ``[L, B, N, C]``.
        boxes: ``[L, B, N, 4]`` cxcywh.
        reference: ``[B, N, 4]`` cxcywh.
        match: ``[L, B, N]`` int64, target index or -1.
        targets: of the B images.
        num_boxes: normaliser of the first term.
        positions: ``[bins + 1]``, see ``bin_positions``.
        scale: see ``bin_positions``.
        counts: ``[2]``, the numbers of matched and of unmatched queries whose roots weight the two parts of ``ddf``; None counts those
            of each layer.

    Returns:
        ``fgl`` (equation 6) is the cross-entropy with the two bins around the true distance, weighted by IoU. ``ddf`` (equation 7) is
        the divergence of each layer from the last; matched and unmatched queries are averaged separately.
    """
    match = match.to(logits.device)
    layer, image, query = (match >= 0).nonzero(as_tuple=True)
    wanted = targets.boxes[image, match[layer, image, query]]
    iou, _ = iou_and_giou(cxcywh_to_xyxy(boxes[layer, image, query]), cxcywh_to_xyxy(wanted))
    iou = iou.detach()

    distance = edge_distances(wanted, reference[image, query].detach(), scale).contiguous()
    left = (torch.searchsorted(positions, distance, right=True) - 1).clamp(0, len(positions) - 2)
    share = ((distance - positions[left]) / (positions[left + 1] - positions[left])).clamp(0, 1)
    found = F.log_softmax(distribution[layer, image, query], -1)
    entropy = -(1 - share) * found.gather(-1, left[..., None])[..., 0] - share * found.gather(-1, left[..., None] + 1)[..., 0]
    fgl = (entropy * iou[:, None]).sum() / num_boxes

    weight = logits[-1].detach().sigmoid().amax(-1).repeat(len(logits), 1, 1)
    weight[layer, image, query] = iou.to(weight.dtype)
    last = F.softmax(distribution[-1].detach() / TEMPERATURE, -1)
    ddf = distribution.sum() * 0
    for index in range(len(distribution) - 1):
        divergence = F.kl_div(F.log_softmax(distribution[index] / TEMPERATURE, -1), last, reduction="none").sum(-1)
        local = weight[index][..., None] * TEMPERATURE**2 * divergence
        matched = match[index] >= 0
        kinds = torch.stack([matched, ~matched])
        own = kinds.sum((1, 2)).to(local)
        # a process without targets has no denoising queries, so only the ordinary ones may be counted together
        found = over_processes(own) if counts is None else own
        roots = (found if counts is None else counts.to(found)).sqrt()
        means = (local * kinds[..., None]).sum((1, 2, 3)) / (found * local.shape[-1]).clamp(min=torch.finfo(found.dtype).tiny)
        ddf = ddf + (means * roots).sum() / roots.sum()
    return {"fgl": fgl, "ddf": ddf}
