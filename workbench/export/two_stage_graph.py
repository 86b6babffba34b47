"""Lets torch trace a two-stage detector: as many proposals in every image, and each pooled from all levels.

The detector keeps as many proposals as are left in an image, and pools each from one level. How many those are depends on values.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align

from workbench.detectors.detector import Detector
from workbench.detectors.faster_rcnn import SAMPLING, FasterRcnn
from workbench.detectors.mask_rcnn import MaskRcnn
from workbench.detectors.output import DenseOutput, DetectorOutput, two_stage_output
from workbench.detectors.region_proposals import SMALLEST, RegionProposals
from workbench.export.onnx_nms import kept_boxes


@contextmanager
def traceable_stages(detector: Detector) -> Iterator[None]:
    """Gives a two-stage detector, inside the block, proposals and pooling of fixed sizes; other detectors stay as they are."""
    if not isinstance(detector, FasterRcnn):
        yield
        return

    def propose(first: DenseOutput, boxes: Tensor) -> tuple[Tensor, Tensor]:
        return fixed_proposals(detector.rpn, first, boxes)

    def pooled(levels: Sequence[Tensor], rois: Tensor) -> Tensor:
        return pooled_from_all(detector.pool, detector.config.roi_cells, levels, rois)

    with ExitStack() as patches:
        patches.enter_context(patch.object(detector, "propose", propose))
        patches.enter_context(patch.object(detector, "pooled", pooled))
        if isinstance(detector, MaskRcnn):
            pool, cells = detector.mask_pool, detector.config.mask_cells
            patches.enter_context(patch.object(detector, "mask_maps", lambda levels, rois: pooled_from_all(pool, cells, levels, rois)))
        yield


def fixed_proposals(rpn: RegionProposals, first: DenseOutput, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what ``TwoStageDetector.propose`` does, filled up to the highest number of proposals with the whole image.

    Args:
        rpn: the first stage in eval mode.
        first: its output.
        boxes: ``[B, A, 4]`` its boxes as xyxy in input pixels.
    """
    config, grid = rpn.config, first.grid
    assert first.valid is not None
    score = first.logits[0, ..., 0].sigmoid().masked_fill(~first.valid, 0.0)
    best: list[Tensor] = []
    start = 0
    for height, width in grid.sizes:
        count = height * width * grid.shapes
        best.append(score[:, start : start + count].topk(min(config.candidates, count), dim=1).indices + start)
        start += count
    index = torch.cat(best, 1)
    whole = torch.cat([torch.zeros_like(first.sides), first.sides], -1)[:, None]
    corners = torch.minimum(boxes.gather(1, index[..., None].expand(-1, -1, 4)).clamp(min=0), first.sides.repeat(1, 2)[:, None])
    large = (corners[..., 2:] - corners[..., :2] >= SMALLEST).all(-1)
    score = score.gather(1, index).masked_fill(~large, 0.0)
    of_level = grid.level[index][:, None] == torch.arange(len(grid.sizes), device=index.device)[:, None]
    kept = score * kept_boxes(corners, torch.where(of_level, score[:, None], 0.0), config.proposal_threshold, config.proposals)
    top, place = kept.topk(min(config.proposals, kept.shape[1]), dim=1)
    found = top > 0
    return torch.where(found[..., None], corners.gather(1, place[..., None].expand(-1, -1, 4)), whole), found


def pooled_from_all(pool: MultiScaleRoIAlign, cells: int, levels: Sequence[Tensor], rois: Tensor) -> Tensor:
    """Pools every box from all levels, and takes the map of its own level: what ``pool`` does for as many boxes in every image.

    Args:
        pool: made by ``roi_pool``.
        cells: sides of a map.
        levels: ``[B, width, h, w]`` each.
        rois: ``[B, N, 4]`` xyxy in input pixels.

    Returns:
        ``[B * N, width, cells, cells]``.
    """
    assert pool.scales is not None and pool.map_levels is not None
    flat = rois.flatten(0, 1)
    image = torch.arange(rois.shape[0], device=rois.device)[:, None].expand(-1, rois.shape[1]).flatten()
    numbered = torch.cat([image[:, None].to(flat), flat], 1)
    own = pool.map_levels([flat])[:, None, None, None]
    maps = [roi_align(level, numbered, cells, scale, SAMPLING) for level, scale in zip(levels, pool.scales, strict=True)]
    found = maps[0]
    for index, level in enumerate(maps[1:], 1):
        found = torch.where(own == index, level, found)
    return found


def masks_of_boxes(detector: MaskRcnn, output: DetectorOutput, labels: Tensor, boxes: Tensor) -> Tensor:
    """Returns the mask of each chosen detection, ``[B, D, M, M]`` in 0..1 over its box; 0 in a place without one.

    Args:
        detector: whose pooling ``traceable_stages`` has replaced.
        output: its output.
        labels: ``[B, D]``, -1 in a place without a detection.
        boxes: ``[B, D, 4]`` xyxy in 0..1.
    """
    context = two_stage_output(output).context
    found = labels >= 0
    rois = boxes * context.sides.repeat(1, 2)[:, None]
    masks = detector.mask_probabilities(context.levels, rois, labels.clamp(min=0).flatten())
    return masks.view(*labels.shape, *masks.shape[1:]) * found[..., None, None]
