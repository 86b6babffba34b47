"""Computes the contrastive term between matched queries that only the released code of DETRDistill has."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.detectors.whole_batch import over_processes
from workbench.methods.context import LayerPairs
from workbench.methods.detrdistill.config import ContrastiveConfig


class ContrastiveHead(nn.Module):
    """InfoNCE between the projected states of matched queries.

    A teacher query is the anchor, and all matched student queries of this process's images are candidates.

    Args:
        config: configuration of width and temperature.
        student: width of the student's states.
        teacher: width of the teacher's states.
    """

    def __init__(self, config: ContrastiveConfig, student: int, teacher: int):
        super().__init__()
        self.temperature = config.temperature
        self.student, self.teacher = _branch(student, config.width), _branch(teacher, config.width)

    def forward(self, student: Tensor, teacher: Tensor, pairs: LayerPairs, mate: Tensor) -> Tensor | None:
        """Computes the mean over the pairs of a layer, as a weighted sum over layers.

        Args:
            student: ``[L_S, B, N_S, D_S]`` states.
            teacher: ``[L_T, B, N_T, D_T]`` states.
            pairs: pairs of layers.
            mate: ``[P, B, N_S]`` teacher query of each student query, -1 for none.

        Returns:
            A scalar, or None if no layer has two pairs to tell apart.
        """
        counts = (mate >= 0).sum((1, 2))
        found = over_processes(counts.where(counts > 1, 0).to(student.device), least=1)
        losses: list[Tensor] = []
        for own, other, share, match, count in zip(pairs.student, pairs.teacher, pairs.share, mate, found, strict=True):
            image, query = (match >= 0).nonzero(as_tuple=True)
            if len(image) < 2:
                continue
            taught = match[image, query]
            u = F.normalize(self.student(student[own][image, query].float()), dim=-1)
            v = F.normalize(self.teacher(teacher[other][image, taught].detach().float()), dim=-1)
            entropy = F.cross_entropy(v @ u.T / self.temperature, torch.arange(len(image), device=u.device), reduction="sum")
            losses.append(share * entropy / count)
        return torch.stack(losses).sum() if losses else None


def _branch(width: int, projected: int) -> nn.Sequential:
    """Builds Linear(d, w), then Linear(w, w), BatchNorm, ReLU, Linear(w, w)."""
    return nn.Sequential(
        nn.Linear(width, projected), nn.Linear(projected, projected), nn.BatchNorm1d(projected), nn.ReLU(), nn.Linear(projected, projected)
    )
