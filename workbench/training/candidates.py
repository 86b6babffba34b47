"""Chooses the candidates of a batch that get rows in the query table: all queries of a DETR, few of the many anchors of other detectors."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workbench.detectors.output import DenseOutput, DetectorOutput, QueryOutput, scores

BEST, BEST_OF_MANY = 100, 1000
MANY = 10_000  # candidates of an image; COCO at its published size has 20,000 to 200,000, the shapes have under 2,000


@dataclass(frozen=True)
class Chosen:
    """Candidates that get rows, ascending in each image and filled up to the largest number of an image.

    Attributes:
        index: ``[B, K]`` int64.
        kept: ``[B, K]`` bool, False for the filling.
    """

    index: Tensor
    kept: Tensor

    def of(self, values: Tensor) -> Tensor:
        """Returns ``[S, B, K, ...]`` of ``values [S, B, N, ...]``."""
        index = self.index.to(values.device)[None].expand(len(values), -1, -1)
        if values.ndim == 3:
            return values.gather(2, index)
        return values.gather(2, index[..., None].expand(*index.shape, values.shape[-1]))


def chosen_candidates(output: DetectorOutput, match: Tensor) -> Chosen | None:
    """Returns the positives of an image and those with the highest scores at the last stage; None if every candidate gets a row.

    Args:
        output: predictions for a batch.
        match: result of ``Detector.assign``.
    """
    if isinstance(output, QueryOutput):
        return None
    best = scores(output, -1).amax(-1)
    if output.valid is not None:
        best = best.masked_fill(~output.valid, -1.0)
    top = best.topk(best_count(best.shape[1])).indices
    wanted = torch.zeros_like(best, dtype=torch.bool).scatter_(1, top, True) & (best >= 0)
    wanted |= (match >= 0).any(0).to(wanted.device)
    width = max(int(wanted.sum(1).max()), 1)
    index = wanted.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :width]
    return Chosen(index, wanted.gather(1, index))


def best_count(candidates: int) -> int:
    """Returns how many of an image's candidates get a row for their score."""
    return min(candidates, BEST_OF_MANY if candidates > MANY else BEST)


def of_chosen(output: DetectorOutput, chosen: Chosen) -> DetectorOutput:
    """Returns the predictions of the chosen candidates alone. What a score is scaled by goes with them."""
    parts = {"logits": chosen.of(output.logits), "boxes": chosen.of(output.boxes), "activation": output.activation}
    if isinstance(output, DenseOutput) and output.quality is not None:
        return replace(output, **parts, quality=chosen.of(output.quality), valid=None, box_distribution=None)
    return DetectorOutput(**parts)


def sources(output: DetectorOutput) -> Tensor:
    """Returns the place that a candidate comes from, ``[B, N]`` or ``[N]``: the encoder cell of a query that was selected there, the cell
    of an anchor or point; -1 for a learned query and for a proposal.
    """
    if isinstance(output, QueryOutput):
        return output.queries.source
    if isinstance(output, DenseOutput):
        return output.grid.cell
    return torch.full(output.boxes.shape[2:3], -1)
