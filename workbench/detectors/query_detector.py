"""Defines what the families of DETRs have beyond a detector: queries, a decoder that can be called again, the set loss."""

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from workbench.boxes import cxcywh_to_xyxy
from workbench.datasets.targets import TargetBatch
from workbench.detectors.criterion import SET_LOSS_WEIGHTS, QualityLoss, set_loss
from workbench.detectors.detector import Detections, Detector
from workbench.detectors.output import DetectorOutput, Queries, QueryOutput, probability
from workbench.detectors.position import sine_embedding
from workbench.matching import match_targets


class QueryDetector(Detector):
    """A detector of the DETR family: its candidates are queries, each target is matched to one of them by the Hungarian algorithm.

    Attributes:
        reference_form: What the numbers of ``Queries.reference`` mean; ``boxes`` is a centre or box in 0..1 of the un-padded image.
        quality_loss: Class loss of a family that does not use the focal loss.
        num_layers: Number of decoder layers.
        num_queries: Number of queries in inference.
        width: Channels of queries and decoder states.
    """

    assignment: ClassVar[Literal["one", "many"]] = "one"
    quality_loss: ClassVar[QualityLoss | None] = None
    reference_form: ClassVar[str] = "boxes"
    num_layers: int
    num_queries: int
    width: int

    @property
    def num_stages(self) -> int:
        """Returns the number of decoder layers, each of which predicts classes and boxes."""
        return self.num_layers

    @abstractmethod
    def forward(self, images: Tensor, padding: Tensor, targets: TargetBatch | None = None) -> QueryOutput:
        """See ``Detector.forward``."""

    @torch.no_grad()
    def blank_output(self) -> QueryOutput:
        """See ``Detector.blank_output``."""
        output = super().blank_output()
        assert isinstance(output, QueryOutput)
        return output

    @abstractmethod
    def decode(self, queries: Queries, context: Any) -> QueryOutput:
        """Runs the decoder and heads again, for an extra group of queries, on the memory in ``context``.

        Queries that are False in ``queries.valid`` are seen by no other query, and their outputs are meaningless.
        """

    def queries_of_boxes(self, output: QueryOutput, boxes: Tensor, content: Tensor) -> Queries:
        """Makes queries that look at given boxes, in the form that ``decode`` takes. They hold nothing learned but ``content``.

        Args:
            output: result of ``forward`` whose ``context`` will decode the queries.
            boxes: ``[B, N, 4]`` cxcywh in 0..1.
            content: ``[B, N, D]`` initial decoder states.

        Returns:
            Queries whose references have as many numbers as the family's own: the boxes or their centres. A family that uses position
            embeddings gets the sine embedding of the centre, as in DETR's memory.
        """
        own = output.queries
        position = sine_embedding(boxes[..., [1, 0]], own.position.shape[-1] // 2) if own.position is not None else None
        reference = boxes[..., : own.reference.shape[-1]] if own.reference is not None else None
        return Queries(content, position, reference, torch.full(boxes.shape[:2], -1, dtype=torch.int64, device=boxes.device))

    def label_table(self) -> Tensor | None:
        """Returns ``[C, D]``, the query content that stands for each class, if the family trains one for denoising; else None."""
        return None

    @property
    def loss_weights(self) -> dict[str, float]:
        """See ``Detector.loss_weights``."""
        return SET_LOSS_WEIGHTS

    def assign(self, output: DetectorOutput, targets: TargetBatch) -> Tensor:
        """Matches queries with targets one to one, at every decoder layer; see ``Detector.assign``. No query is ignored."""
        return match_targets(output.logits, output.boxes, targets, output.activation)

    def losses(
        self, output: DetectorOutput, targets: TargetBatch, num_boxes: Tensor | float, match: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See ``Detector.losses``.

        Returns:
            ``class``, ``bbox`` and ``giou``, and the same terms of each training-only group, named ``class_<group>`` and so on.
        """
        loss = type(self).quality_loss
        if match is None:
            match = self.assign(output, targets)
        terms = set_loss(output.logits, output.boxes, match, targets, num_boxes, output.activation, loss)
        for group in output.aux:
            wanted = replace(targets, labels=torch.zeros_like(targets.labels)) if group.any_class else targets
            fixed = group.match if group.match is not None else match_targets(group.logits, group.boxes, wanted, output.activation)
            parts = set_loss(group.logits, group.boxes, fixed, wanted, num_boxes * group.copies, output.activation, loss)
            terms |= {f"{name}_{group.name}": value for name, value in parts.items()}
        return terms

    @torch.no_grad()
    def detections(self, output: DetectorOutput, sizes: Tensor, k: int = 300) -> list[Detections]:
        """Returns the k pairs of the last layer with the highest scores; all ``N * C`` pairs if there are fewer. See
        ``Detector.detections``.
        """
        return best_detections(probability(output, -1), output.boxes[-1].float(), sizes, k)


def best_detections(scores: Tensor, boxes: Tensor, sizes: Tensor, k: int) -> list[Detections]:
    """Returns the k (query, class) pairs of each image with the highest scores; see ``Detector.detections``.

    Args:
        scores: ``[B, N, C]``, without a no-object column.
        boxes: ``[B, N, 4]`` cxcywh in 0..1.
        sizes: ``[B, 2]`` original height and width.
        k: highest number of pairs per image.
    """
    batch, _, classes = scores.shape
    best, index = scores.flatten(1).sort(dim=1, descending=True, stable=True)
    best, index = best[:, :k], index[:, :k]
    query, label = index // classes, index % classes
    scale = sizes.to(scores.device)[:, None, [1, 0, 1, 0]].float()
    boxes = cxcywh_to_xyxy(boxes) * scale
    boxes = boxes.gather(1, query[..., None].expand(-1, -1, 4))
    boxes = torch.minimum(boxes.clamp(min=0), scale)
    return [Detections(query[i].cpu(), label[i].cpu(), best[i].cpu(), boxes[i].cpu()) for i in range(batch)]
