"""Computes location-and-context-aware memory distillation (CLoCKDistill, section 3.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.boxes import cxcywh_to_xyxy
from workbench.datasets.targets import TargetBatch
from workbench.detectors.output import Level
from workbench.detectors.position import sine_embedding
from workbench.detectors.whole_batch import images_over_processes, sum_over_processes
from workbench.methods.clockdistill.config import MemoryConfig
from workbench.methods.levels import Adaptor

# a box has four numbers, each with as many sines as cosines
EMBEDDING_UNIT = 8


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
    images = images_over_processes(len(targets.valid), targets.valid.device)
    for own, other in pairs:
        wanted, given = other.features.float(), adaptor(own).float()
        if config.position_embedding:
            position = target_positions(other, targets)
            # without the norm the embedding would cancel out of the difference
            wanted, given = (_standardised(features + position) for features in (wanted, given))
        error = (wanted - given).square()
        error = error.sum(1) if config.channel_reduce == "sum" else error.mean(1)
        inside, scale = location_and_scale(other, targets)
        foreground = foreground + (scale * error * inside).sum()
        background = background + (scale * error * ~inside).sum()
    if config.batch_reduce == "mean":
        foreground, background = foreground / images, background / images
    else:
        foreground, background = sum_over_processes(foreground), sum_over_processes(background)
    terms = {"memory_foreground": foreground} if targets.any_valid else {}
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
    shares = _shares(level, targets)
    scale = shares.amax(1) if shares.shape[1] else torch.zeros(inside.shape, device=inside.device)
    located = scale > 0
    outside = inside & ~located
    rest = outside / outside.sum((1, 2), keepdim=True).clamp(min=1)
    return located, torch.where(located, scale, rest)


@torch.no_grad()
def target_positions(level: Level, targets: TargetBatch) -> Tensor:
    """Returns, in the cells of targets, the sine embedding of the target's box: centre and size, row before column. Elsewhere it is 0.

    Where several targets overlap, a cell belongs to the smallest, as in ``location_and_scale``.

    Returns:
        ``[B, D, H, W]``, D being the level's channels, a multiple of ``EMBEDDING_UNIT``.
    """
    shares = _shares(level, targets)
    if not shares.shape[1]:
        return torch.zeros_like(level.features, dtype=torch.float32)
    embedding = sine_embedding(targets.boxes[..., [1, 0, 3, 2]], level.features.shape[1] // 4)
    share, owner = shares.max(1)
    found = embedding.gather(1, owner.flatten(1)[..., None].expand(-1, -1, embedding.shape[-1]))
    return (found * (share > 0).flatten(1)[..., None]).transpose(1, 2).unflatten(-1, share.shape[1:])


def _shares(level: Level, targets: TargetBatch) -> Tensor:
    """Returns ``[B, G, H, W]``: one over the number of a target's cells in each of them, 0 elsewhere and for targets that do not count."""
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
    return covered / (after - first).prod(-1).clamp(min=1)[..., None, None]


def _standardised(features: Tensor) -> Tensor:
    """Returns ``[B, D, H, W]`` with mean 0 and variance 1 over the channels of every cell."""
    return F.layer_norm(features.permute(0, 2, 3, 1), features.shape[1:2]).permute(0, 3, 1, 2)
