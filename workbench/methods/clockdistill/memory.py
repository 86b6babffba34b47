"""Computes location-and-context-aware memory distillation (CLoCKDistill, section 3.1)."""

import torch
from torch import Tensor

from workbench.boxes import cxcywh_to_xyxy
from workbench.datasets.targets import TargetBatch
from workbench.detectors.output import Level
from workbench.methods.clockdistill.config import MemoryConfig
from workbench.methods.levels import Adaptor


def memory_terms(config: MemoryConfig, adaptor: Adaptor, pairs: list[tuple[Level, Level]], targets: TargetBatch) -> dict[str, Tensor]:
    """Returns ``sum_x M S |A_T - phi(A_S)|^2`` inside targets and ``sum_x (1-M) S |...|^2`` outside, summed over levels.

    Args:
        config: switches of the memory part.
        adaptor: phi, which maps student levels to the teacher's width.
        pairs: pairs of student and teacher level.
        targets: targets of the batch.

    Returns:
        ``memory_foreground`` (absent in a batch without targets) and ``memory_background``.
    """
    foreground = background = pairs[0][0].features.new_zeros(())
    for own, other in pairs:
        error = (other.features.float() - adaptor(own).float()).square()
        error = error.sum(1) if config.channel_reduce == "sum" else error.mean(1)
        inside, scale = location_and_scale(other, targets)
        images = len(error) if config.batch_reduce == "mean" else 1
        foreground = foreground + (scale * error * inside).sum() / images
        background = background + (scale * error * ~inside).sum() / images
    terms = {"memory_foreground": foreground} if bool(targets.valid.any()) else {}
    return terms | {"memory_background": background}


@torch.no_grad()
def location_and_scale(level: Level, targets: TargetBatch) -> tuple[Tensor, Tensor]:
    """Returns the location mask M and the scale mask S of a level.

    A target covers the cells floor(x1 W) ... ceil(x2 W) - 1, at least one, with W the cells of the un-padded image. Inside targets S is one
    over the number of cells of the target (the smallest target where several overlap). Outside it is one over the number of background
    cells, and in padding 0.

    Returns:
        ``[B, H, W]`` bool and ``[B, H, W]`` float.
    """
    inside = ~level.padding
    height, width = inside.shape[1:]
    sides = torch.stack([inside.any(1).sum(1), inside.any(2).sum(1)], dim=-1)[:, None]
    corners = cxcywh_to_xyxy(targets.boxes).unflatten(-1, (2, 2)) * sides[:, :, None]
    first = corners[:, :, 0].floor().long().clamp(min=0)
    first = torch.minimum(first, sides - 1)
    after = torch.minimum(torch.maximum(corners[:, :, 1].ceil().long(), first + 1), sides)
    x, y = torch.arange(width, device=inside.device), torch.arange(height, device=inside.device)
    across = (x >= first[..., :1]) & (x < after[..., :1])
    down = (y >= first[..., 1:]) & (y < after[..., 1:])
    covered = across[:, :, None, :] & down[..., None] & targets.valid[:, :, None, None]
    share = 1.0 / (after - first).prod(-1).clamp(min=1)
    scale = (covered * share[..., None, None]).amax(1) if covered.shape[1] else torch.zeros(inside.shape, device=inside.device)
    located = covered.any(1)
    outside = inside & ~located
    rest = outside / outside.sum((1, 2), keepdim=True).clamp(min=1)
    return located, torch.where(located, scale, rest)
