"""Defines the interface that every detector family implements."""

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
    """Describes the images and classes a detector was trained on; saved beside its weights.

    Attributes:
        classes: Class names, in the order of the class head.
        mean: Mean of each channel, for pixels in 0..1.
        std: Standard deviation of each channel, for pixels in 0..1.
        resize: The transform's resize rule as a plain dict, or None.
    """

    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: dict[str, Any] | None = None


@dataclass(frozen=True)
class Detections:
    """The (query, class) pairs of one image with the highest scores.

    Attributes:
        queries: ``[K]`` int64 query indices.
        labels: ``[K]`` int64, contiguous class indices.
        scores: ``[K]`` float32, descending.
        boxes: ``[K, 4]`` float32, xyxy in pixels of the original image.
    """

    queries: Tensor
    labels: Tensor
    scores: Tensor
    boxes: Tensor


class Detector(nn.Module, ABC):
    """A DETR-family detector behind one common output.

    Example:
        >>> detector = load_detector(Path("runs/shapes-distilled-seed0/checkpoints/0000600"))
        >>> with torch.inference_mode():
        ...     output = detector.eval()(images, padding)           # images [1, 3, 256, 256], padding [1, 256, 256]
        >>> output.boxes.shape                                      # decoder layers, images, queries, 4
        torch.Size([6, 1, 20, 4])
        >>> best = detector.detections(output, torch.tensor([[480, 640]]), k=5)[0]
        >>> best.boxes.shape                                        # xyxy in pixels of the 640 x 480 image
        torch.Size([5, 4])

    Attributes:
        family: Name in the registry.
        provides: What methods may ask for: ``memory``, ``neck``, ``backbone``, ``states``, ``decode``, ``learned_queries``,
            ``references``, ``box_distribution``, ``attentions``, ``reference_from_position`` (``decode`` computes a missing reference
            from the position).
        reference_form: What the numbers of ``Queries.reference`` mean; ``boxes`` is a centre or box in 0..1 of the un-padded image.
        activation: Activation of the class head.
        spec: The images and classes that the model was trained on.
        wants_attentions: True while outputs hold attention maps.
        probe_side: Side in pixels of the blank image; larger where the default would give fewer cells than queries.
        reads_padding: True if the mask of padded pixels reaches the model. A model that ignores it needs images of one size.
        side_multiple: Sides of images must be multiples of it.
        quality_loss: Class loss of a family that does not use the focal loss.
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
        """Builds a detector with random weights from torch's global generator.

        Args:
            config: the family's model configuration.
            spec: classes and normalisation.
        """

    @abstractmethod
    def forward(self, images: Tensor, padding: Tensor, targets: TargetBatch | None = None) -> DetectorOutput:
        """Runs the detector.

        Args:
            images: ``[B, 3, H, W]``, normalised.
            padding: ``[B, H, W]`` bool, True for padding.
            targets: targets of the images; only families that denoise in training use them.
        """

    @abstractmethod
    def decode(self, queries: Queries, context: Any) -> DetectorOutput:
        """Runs the decoder and heads again, for an extra group of queries, on the memory in ``context``.

        Queries that are False in ``queries.valid`` are seen by no other query, and their outputs are meaningless.
        """

    def queries_of_boxes(self, output: DetectorOutput, boxes: Tensor, content: Tensor) -> Queries:
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

    @abstractmethod
    def reset_classes(self, spec: InputSpec) -> list[str]:
        """Gives the detector a fresh class head for ``spec.classes`` and returns the names of the re-initialised weights."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes weights (safetensors) and configuration into an existing folder."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> "Detector":
        """Loads what ``save`` wrote.

        Raises:
            CheckpointError: a file is missing or not safetensors, or keys do not fit; the message names each of them.
        """

    @contextmanager
    def collecting_attentions(self, wanted: bool = True) -> Iterator[None]:
        """Makes outputs hold ``attentions`` inside the block, if the family provides them. Outside, no maps are computed."""
        self.wants_attentions, before = wanted, self.wants_attentions
        try:
            yield
        finally:
            self.wants_attentions = before

    @property
    def loss_weights(self) -> dict[str, float]:
        """Returns the published weight of each term of ``losses``."""
        return SET_LOSS_WEIGHTS

    @torch.no_grad()
    def blank_output(self) -> DetectorOutput:
        """Returns the output for one blank image, from which methods read widths and the form of queries before the first step."""
        training, device = self.training, next(self.parameters()).device
        side = self.probe_side
        blank = torch.zeros(1, 3, side, side, device=device)
        # eval mode, because a blank image must not enter the running statistics of norms
        output = self.eval()(blank, torch.zeros(1, side, side, dtype=torch.bool, device=device))
        self.train(training)
        return output

    def level_channels(self, feature: Literal["memory", "neck", "backbone"]) -> dict[int, int]:
        """Returns the number of channels of each feature level, by stride."""
        output = self.blank_output()
        levels = {"memory": output.memory, "neck": output.neck, "backbone": output.backbone}[feature]
        return {level.stride: level.features.shape[1] for level in levels}

    def losses(
        self, output: DetectorOutput, targets: TargetBatch, num_boxes: Tensor | float, match: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Computes the family's own training losses, unweighted and summed over decoder layers.

        Args:
            output: result of ``forward`` on the same images.
            targets: targets of those images.
            num_boxes: number of matchable targets in the batch, averaged over processes, at least 1.
            match: ``[L, B, N]`` target indices; computed here if None.

        Returns:
            ``class``, ``bbox`` and ``giou``, and the same terms of each training-only group, named ``class_<group>`` and so on.
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
        """Returns the k (query, class) pairs of the last layer with the highest scores, per image, in pixels of the original image.

        Args:
            output: result of ``forward``.
            sizes: ``[B, 2]`` original height and width.
            k: number of pairs per image; all ``N * C`` pairs if there are fewer.
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
