"""Target-aware feature distillation (DETRDistill, equations 6 to 9) and the mask of the released code."""

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.detectors.output import DetectorOutput, Level
from workbench.methods.context import MethodContext, over_processes
from workbench.methods.detrdistill.config import FeaturesConfig
from workbench.methods.levels import Adaptor
from workbench.methods.query_masks import selection_masks


def features_term(
    config: FeaturesConfig,
    adaptor: Adaptor,
    pairs: list[tuple[Level, Level]],
    weights: list[Tensor],
) -> Tensor:
    """Equation 9: error of each cell weighted by the mask, mean over cells, sum over levels.

    Args:
        config: switches.
        adaptor: of student levels.
        pairs: student and teacher level.
        weights: ``[B, H, W]`` of each pair's cells, see ``cell_weights``.
    """
    total = pairs[0][0].features.new_zeros(())
    for (own, other), weight in zip(pairs, weights, strict=True):
        error = F.mse_loss(adaptor(own).float(), other.features.float(), reduction="none").mean(1)
        inside = (~own.padding).float() if config.mask_padding else torch.ones_like(error)
        total = total + (weight * error * inside).sum() / over_processes(inside.sum()).clamp(min=1)
    return total


@torch.no_grad()
def cell_weights(
    config: FeaturesConfig, teacher: DetectorOutput, levels: list[Level], layers: list[int], selected: Tensor, context: MethodContext
) -> list[Tensor]:
    """Weight of the squared error of every cell, ``[B, H, W]`` per level; no gradient flows into it.

    product: w(x) = 1/M sum_i q_i (F(x) . Q_i)^2, equation 9 with the square of the mask drawn into one sum (the same number without a
    map per query), mean over layers; cosine: sum over layers of psi(x)^2.
    """
    if config.mask == "uniform":
        return [level.features.new_ones(level.padding.shape) for level in levels]
    layers = layers if config.layers == "all" else layers[-1:]
    masks = [selection_masks(config.query_mask, teacher, level, layers, context, selected) for level in levels]
    if config.mask == "cosine":
        return [mask.square().sum(0) for mask in masks]
    return [mask.sum(0) / len(layers) for mask in masks]
