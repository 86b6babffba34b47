"""The contrastive term between matched queries that the released code of DETRDistill has and the paper has not."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.methods.context import LayerPairs
from workbench.methods.detrdistill.config import ContrastiveConfig


class ContrastiveHead(nn.Module):
    """InfoNCE between the projected states of matched queries: a teacher query is the anchor, all matched student queries of the
    batch are candidates.

    Args:
        config: width and temperature.
        student: width of its states.
        teacher: likewise.
    """

    def __init__(self, config: ContrastiveConfig, student: int, teacher: int):
        super().__init__()
        self.temperature = config.temperature
        self.student, self.teacher = _branch(student, config.width), _branch(teacher, config.width)

    def forward(self, student: Tensor, teacher: Tensor, pairs: LayerPairs, mate: Tensor) -> Tensor | None:
        """Mean over the pairs of a layer, weighted sum over layers.

        Args:
            student: ``[L_S, B, N_S, D_S]`` states.
            teacher: ``[L_T, B, N_T, D_T]`` states.
            pairs: of layers.
            mate: ``[P, B, N_S]`` teacher query of each student query, -1 = none.

        Returns:
            A scalar, or None where no layer has two pairs to tell apart.
        """
        losses: list[Tensor] = []
        for own, other, share, match in zip(pairs.student, pairs.teacher, pairs.share, mate, strict=True):
            image, query = (match >= 0).nonzero(as_tuple=True)
            if len(image) < 2:
                continue
            taught = match[image, query]
            u = F.normalize(self.student(student[own][image, query].float()), dim=-1)
            v = F.normalize(self.teacher(teacher[other][image, taught].detach().float()), dim=-1)
            losses.append(share * F.cross_entropy(v @ u.T / self.temperature, torch.arange(len(image), device=u.device)))
        return torch.stack(losses).sum() if losses else None


def _branch(width: int, projected: int) -> nn.Sequential:
    """Linear(d, w), then Linear(w, w), BatchNorm, ReLU, Linear(w, w)."""
    return nn.Sequential(
        nn.Linear(width, projected), nn.Linear(projected, projected), nn.BatchNorm1d(projected), nn.ReLU(), nn.Linear(projected, projected)
    )
