"""Computes where the teacher's queries look, as masks over a feature map.

They follow DETRDistill, equations 6 to 9, or the mask of its released code. DETRDistill weights its features term by them. For a run
without such a term they are recorded for comparison.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.detectors.output import Level, QueryOutput
from workbench.methods.context import MethodContext
from workbench.methods.method import gather_queries
from workbench.methods.selection import QUALITY_GAMMA, Quality, largest_iou, query_quality, target_ious

MASK_FLOOR = 0.01
TOP_PAIRS = 100


@dataclass(frozen=True, kw_only=True)
class QueryMask:
    """Settings of a mask. The defaults are the paper's.

    Attributes:
        mask: ``product`` (equation 9) or ``cosine`` (released code).
        quality: See ``query_quality``.
        gamma: Exponent of the score in the paper's quality.
        mask_padding: True leaves padded cells out of a cosine mask.
    """

    mask: Literal["product", "cosine"] = "product"
    quality: Quality = "paper"
    gamma: float = QUALITY_GAMMA
    mask_padding: bool = True


@torch.no_grad()
def selection_masks(
    config: QueryMask,
    teacher: QueryOutput,
    level: Level,
    layers: list[int],
    context: MethodContext,
    selected: Tensor | None = None,
) -> Tensor:
    """Computes masks of where the teacher's queries look: ``[len(layers), B, H, W]``.

    ``product`` is the sum over queries of q_i psi_i^2 / M with psi_i = F Q_i^T (equations 7 and 9), M being the number of all queries.
    ``cosine`` is psi in (0, 1], scaled so that the largest cell is 1.

    Args:
        config: configuration of mask and quality.
        teacher: output of the teacher, whose queries look.
        level: feature level that they look at.
        layers: decoder layers whose queries are used.
        context: context that holds the targets of the batch.
        selected: ``[L_T, B, N_T]`` bool, teacher queries that teach, all by default. The quality of the others counts as 0.
    """
    states = teacher.states[layers].float()
    cells = level.features.float().flatten(2)
    shape = level.features.shape[-2:]
    chosen = None if selected is None else selected[layers]
    if config.mask == "product":
        quality = query_quality(config.quality, config.gamma, teacher, layers, context.targets, context)
        if chosen is not None:
            quality = quality * chosen
        # most queries have no target and so no quality; only the others need a map
        quality, best = quality.topk(int((quality > 0).sum(-1).max()), dim=-1)
        # the root of the quality scales the few queries, not their maps: sum_i q_i (F . Q_i)^2 = sum_i (F . sqrt(q_i) Q_i)^2
        weighted = gather_queries(states, best) * (quality / states.shape[2]).sqrt()[..., None]
        return torch.einsum("lbnd,bdx->lbnx", weighted, cells).square().sum(2).unflatten(-1, shape)
    query, quality = _best_pairs(config, teacher, layers, context)
    if chosen is not None:
        quality = quality * chosen.gather(-1, query)
    # a quality-weighted sum of cosines is one dot product with the quality-weighted sum of unit queries
    units = gather_queries(F.normalize(states, dim=-1), query)
    mixture = torch.einsum("lbk,lbkd->lbd", quality, units)
    raw = torch.einsum("lbd,bdx->lbx", mixture, F.normalize(cells, dim=1)).clamp(min=MASK_FLOOR)
    if config.mask_padding:
        raw = raw.masked_fill(level.padding.flatten(1), MASK_FLOOR)
    return (raw / raw.amax(-1, keepdim=True)).unflatten(-1, shape)


def visible_masks(
    config: QueryMask,
    teacher: QueryOutput,
    layers: list[int],
    context: MethodContext,
    selected: Tensor | None = None,
) -> list[tuple[Level, Tensor]]:
    """Computes the masks that are recorded, for every level of the memory, or else of the neck, that is as wide as the queries.

    For ``product`` it takes the root of ``selection_masks``, because equation 9 weights the error by the square of the mask. The arguments
    are those of ``selection_masks``.

    Returns:
        The levels, each with its masks ``[len(layers), B, H, W]``.
    """
    levels = [level for level in teacher.memory or teacher.neck if level.features.shape[1] == teacher.states.shape[-1]]
    masks = [selection_masks(config, teacher, level, layers, context, selected) for level in levels]
    return [(level, mask.sqrt() if config.mask == "product" else mask) for level, mask in zip(levels, masks, strict=True)]


def _best_pairs(config: QueryMask, teacher: QueryOutput, layers: list[int], context: MethodContext) -> tuple[Tensor, Tensor]:
    """Returns query index and quality ``[len(layers), B, K]`` of the 100 best (query, class) pairs, chosen as in the released code."""
    probability = context.teacher_probability(teacher)[layers]
    classes = probability.shape[-1]
    score, index = probability.flatten(2).topk(min(TOP_PAIRS, probability.shape[2] * classes), dim=-1)
    query = index // classes
    if config.quality == "official_code":
        return query, score * largest_iou(target_ious(teacher, layers, context.targets), context.targets).gather(-1, query)
    return query, query_quality("paper", config.gamma, teacher, layers, context.targets, context).gather(-1, query)
