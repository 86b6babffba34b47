"""The one interface of every detector family."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from workbench.boxes import cxcywh_to_xyxy
from workbench.datasets.targets import TargetBatch
from workbench.detectors.criterion import SET_LOSS_WEIGHTS, QualityLoss, set_loss
from workbench.detectors.output import DetectorOutput, Queries, probability
from workbench.detectors.position import sine_embedding
from workbench.matching import Activation, match_targets


@dataclass(frozen=True)
class InputSpec:
    """What a detector was trained to see; saved beside its weights.

    Attributes:
        classes: names, in the order of the class head.
        mean: per channel, of pixels in 0..1.
        std: likewise.
        resize: the transform's resize rule, as a plain dict, or None.
    """

    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: dict[str, Any] | None = None


@dataclass(frozen=True)
class Detections:
    """The best (query, class) pairs of one image.

    Attributes:
        queries: ``[K]`` int64.
        labels: ``[K]`` int64, contiguous class indices.
        scores: ``[K]`` float32, descending.
        boxes: ``[K, 4]`` float32, xyxy in pixels of the original image.
    """

    queries: Tensor
    labels: Tensor
    scores: Tensor
    boxes: Tensor


class Detector(nn.Module, ABC):
    """A DETR-family detector behind one output.

    Attributes:
        family: registry name.
        provides: what methods may ask for: ``memory``, ``neck``, ``backbone``, ``states``, ``decode``, ``learned_queries``,
            ``references``, ``box_distribution``, ``reference_from_position`` (``decode`` makes a missing reference from the position).
        reference_form: what the numbers of ``Queries.reference`` are; boxes: centre or box in 0..1 of the un-padded image.
        activation: of the class head.
        spec: what it was trained to see.
        wants_attentions: whether outputs hold attention maps now.
        probe_side: of the blank image, in pixels; larger where fewer cells than queries would come of it.
        reads_padding: whether the mask of padded pixels reaches the model; one that ignores it needs images of one size.
        side_multiple: sides of images must be multiples of it.
        quality_loss: class loss of a family that does not use the focal loss.
    """

    family: ClassVar[str]
    reads_padding: ClassVar[bool] = True
    quality_loss: ClassVar[QualityLoss | None] = None
    provides: frozenset[str]
    reference_form: ClassVar[str] = "boxes"
    activation: Activation = "sigmoid"
    spec: InputSpec

    num_layers: int
    num_queries: int
    width: int
    side_multiple: int = 1
    wants_attentions: bool = False
    probe_side: int = 256

    @classmethod
    @abstractmethod
    def build(cls, config: Any, spec: InputSpec) -> Self:
        """A detector with random weights from torch's global generator.

        Args:
            config: the family's model configuration.
            spec: classes and normalisation.
        """

    @abstractmethod
    def forward(self, images: Tensor, padding: Tensor, targets: TargetBatch | None = None) -> DetectorOutput:
        """Runs the detector.

        Args:
            images: ``[B, 3, H, W]``, normalised.
            padding: ``[B, H, W]`` bool, True = padding.
            targets: for families that denoise in training.
        """

    @abstractmethod
    def decode(self, queries: Queries, context: Any) -> DetectorOutput:
        """Second call of the same decoder and heads for an extra group of queries, on the memory in ``context``.

        Queries that ``queries.valid`` marks False are seen by no other query; what comes out for them means nothing.
        """

    def queries_of_boxes(self, output: DetectorOutput, boxes: Tensor, content: Tensor) -> Queries:
        """Queries that look at given boxes, in the form that ``decode`` takes; nothing of them is learned here.

        Args:
            output: of ``forward``, whose ``context`` they will be decoded with.
            boxes: ``[B, N, 4]`` cxcywh in 0..1.
            content: ``[B, N, D]``.

        Returns:
            References of as many numbers as the family's own: the boxes or their centres. A family that wants a position embedding
            gets the sine embedding of the centre, as DETR's memory carries it.
        """
        own = output.queries
        position = sine_embedding(boxes[..., [1, 0]], own.position.shape[-1] // 2) if own.position is not None else None
        reference = boxes[..., : own.reference.shape[-1]] if own.reference is not None else None
        return Queries(content, position, reference, torch.full(boxes.shape[:2], -1, dtype=torch.int64, device=boxes.device))

    def label_table(self) -> Tensor | None:
        """``[C, D]`` content of a query that stands for a class, where the family trains one (denoising); else None."""
        return None

    @abstractmethod
    def reset_classes(self, spec: InputSpec) -> list[str]:
        """Gives the detector a fresh class head for ``spec.classes``; returns the names of the re-initialised weights."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes weights (safetensors) and configuration into an existing folder."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> "Detector":
        """Reads what ``save`` wrote.

        Raises:
            CheckpointError: files missing, not safetensors, or keys that do not fit, each named.
        """

    @contextmanager
    def collecting_attentions(self, wanted: bool = True) -> Iterator[None]:
        """Outputs made inside hold ``attentions``, of a family that provides them; outside nothing is computed for them."""
        self.wants_attentions, before = wanted, self.wants_attentions
        try:
            yield
        finally:
            self.wants_attentions = before

    @property
    def loss_weights(self) -> dict[str, float]:
        """Published weight of each term of ``losses``."""
        return SET_LOSS_WEIGHTS

    @torch.no_grad()
    def blank_output(self) -> DetectorOutput:
        """The answer to one blank image: what methods learn widths and the form of queries from, before the first step."""
        training, device = self.training, next(self.parameters()).device
        side = self.probe_side
        blank = torch.zeros(1, 3, side, side, device=device)
        # eval mode, because a blank image must not enter the statistics of norms
        output = self.eval()(blank, torch.zeros(1, side, side, dtype=torch.bool, device=device))
        self.train(training)
        return output

    def level_channels(self, feature: Literal["memory", "neck", "backbone"]) -> dict[int, int]:
        """Channels of each feature level by stride."""
        output = self.blank_output()
        levels = {"memory": output.memory, "neck": output.neck, "backbone": output.backbone}[feature]
        return {level.stride: level.features.shape[1] for level in levels}

    def losses(
        self, output: DetectorOutput, targets: TargetBatch, num_boxes: Tensor | float, match: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The family's own criterion, unweighted, summed over decoder layers.

        Args:
            output: of ``forward`` on the same images.
            targets: of those images.
            num_boxes: matchable targets of the batch, averaged over processes, at least 1.
            match: ``[L, B, N]``; computed here when not given.

        Returns:
            ``class``, ``bbox`` and ``giou``; the same of each training-only group, as ``class_<group>`` and so on.
        """
        loss = type(self).quality_loss
        if match is None:
            match = match_targets(output.logits, output.boxes, targets, output.activation)
        terms = set_loss(output.logits, output.boxes, match, targets, num_boxes, output.activation, loss)
        for group in output.aux:
            wanted = replace(targets, labels=torch.zeros_like(targets.labels)) if group.any_class else targets
            fixed = group.match if group.match is not None else match_targets(group.logits, group.boxes, wanted, output.activation)
            parts = set_loss(group.logits, group.boxes, fixed, wanted, num_boxes * group.copies, output.activation, loss)
            terms |= {f"{name}_{group.name}": value for name, value in parts.items()}
        return terms

    @torch.no_grad()
    def detections(self, output: DetectorOutput, sizes: Tensor, k: int = 300) -> list[Detections]:
        """The k best (query, class) pairs of the last layer, per image, in pixels of the original image.

        Args:
            output: of ``forward``.
            sizes: ``[B, 2]`` original height and width.
            k: at most this many; all of ``N * C`` when fewer.
        """
        return best_detections(probability(output, -1), output.boxes[-1].float(), sizes, k)


def best_detections(scores: Tensor, boxes: Tensor, sizes: Tensor, k: int) -> list[Detections]:
    """See ``Detector.detections``.

    Args:
        scores: ``[B, N, C]``, without a no-object column.
        boxes: ``[B, N, 4]`` cxcywh in 0..1.
        sizes: ``[B, 2]`` original height and width.
        k: at most this many an image.
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
