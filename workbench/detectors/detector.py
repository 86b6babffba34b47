"""Defines the interface that every detector family implements; those of DETRs implement more, see ``query_detector``."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from workbench.datasets.targets import TargetBatch
from workbench.detectors.output import DetectorOutput
from workbench.matching import Activation

Kind = Literal["query", "dense", "two-stage"]
Part = Literal["backbone", "neck", "encoder", "decoder", "head", "queries"]


def kind_of(provides: frozenset[str]) -> Kind:
    """Returns the kind of detector that provides these properties: with queries, with proposals, or with neither."""
    return "query" if "queries" in provides else "two-stage" if "rois" in provides else "dense"


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
    """The (candidate, class) pairs of one image that the detector reports.

    Attributes:
        queries: ``[K]`` int64 indices of candidates, which are the queries of a DETR.
        labels: ``[K]`` int64, contiguous class indices.
        scores: ``[K]`` float32, descending.
        boxes: ``[K, 4]`` float32, xyxy in pixels of the original image.
        masks: COCO's compressed RLE of each on the original image; None of a detector without masks.
    """

    queries: Tensor
    labels: Tensor
    scores: Tensor
    boxes: Tensor
    masks: tuple[bytes, ...] | None = None


class Detector(nn.Module, ABC):
    """A detector of any kind behind one common output.

    Example:
        >>> detector = load_detector(Path("runs/shapes-distilled-seed0/checkpoints/0000600"))
        >>> with torch.inference_mode():
        ...     output = detector.eval()(images, padding)           # images [1, 3, 256, 256], padding [1, 256, 256]
        >>> output.boxes.shape                                      # stages (here decoder layers), images, candidates (here queries), 4
        torch.Size([6, 1, 20, 4])
        >>> best = detector.detections(output, torch.tensor([[480, 640]]), k=5)[0]
        >>> best.boxes.shape                                        # xyxy in pixels of the 640 x 480 image
        torch.Size([5, 4])

    Attributes:
        family: Name in the registry.
        provides: What methods may ask for. Every detector provides ``backbone``, ``neck`` or both, and ``head``: the levels that its
            prediction head reads. A detector with queries provides ``queries``, ``states`` and ``decode``, and may provide ``memory``,
            ``learned_queries``, ``references``, ``attentions`` and ``reference_from_position`` (``decode`` computes a missing reference
            from the position). A dense detector provides ``dense_logits`` and ``dense_boxes``, a two-stage detector ``rois``. Either may
            provide ``box_distribution``. A detector whose detections have masks provides ``masks``.
        assignment: ``one`` if a target is assigned to one candidate at most, ``many`` if several candidates may learn from it.
        parts: Which weights belong to which part, as regular expressions that match the start of a name. Each weight belongs to one part.
        decoder_layer: Regular expression that finds, as its group, the decoder layer that a weight belongs to.
        geometric: True if the assignment depends on boxes and anchors alone, so that training does not change it.
        activation: Activation of the class head.
        spec: The images and classes that the model was trained on.
        num_stages: Number of complete predictions, one after the other: the decoder layers of a DETR, 1 for other detectors.
        wants_attentions: True while outputs hold attention maps.
        probe_side: Side in pixels of the blank image; larger where the default would give fewer cells than queries.
        reads_padding: True if the mask of padded pixels reaches the model. A model that ignores it needs images of one size.
        side_multiple: Sides of images must be multiples of it.
        exact_norms: True if norm layers of the backbone apply the activation or the epsilon of the backbone's own library, which
            plain transformers and earlier versions of the workbench leave out.
    """

    family: ClassVar[str]
    assignment: ClassVar[Literal["one", "many"]]
    geometric: ClassVar[bool] = False
    reads_padding: ClassVar[bool] = True
    parts: ClassVar[Mapping[Part, str]] = {"backbone": r"backbone\.", "neck": r"neck\.", "head": r"(?!(backbone|neck)\.)"}
    decoder_layer: ClassVar[str] = r"(?!)"
    provides: frozenset[str]
    activation: Activation = "sigmoid"
    spec: InputSpec

    side_multiple: int = 1
    exact_norms: bool = False
    wants_attentions: bool = False
    probe_side: int = 256
    _known_channels: Mapping[str, dict[int, int]] = {}  # replaced and never changed, because all detectors share the empty one

    @property
    @abstractmethod
    def num_stages(self) -> int: ...

    @classmethod
    def part_of(cls, name: str) -> Part:
        """Returns the part that a weight or buffer belongs to.

        Args:
            name: its name in ``state_dict``.

        Raises:
            ValueError: it belongs to no part or to several, which is a mistake in ``parts``.
        """
        found: list[Part] = [part for part, pattern in cls.parts.items() if re.match(pattern, name)]
        if len(found) != 1:
            raise ValueError(f"weight '{name}' of family '{cls.family}' belongs to {len(found)} parts: {', '.join(found) or 'none'}")
        return found[0]

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
            targets: targets of the images; only families that denoise or sample proposals in training use them.
        """

    @abstractmethod
    def assign(self, output: DetectorOutput, targets: TargetBatch) -> Tensor:
        """Assigns targets to candidates, as the family's own training does, without gradient.

        Returns:
            ``[S, B, N]`` int64: the index of a target, -1 for background, -2 for a candidate that is ignored in training.

        Raises:
            NonFiniteCostError: the assignment depends on logits or boxes, and one of them is NaN or infinite.
        """

    @abstractmethod
    def losses(
        self, output: DetectorOutput, targets: TargetBatch, num_boxes: Tensor | float, match: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Computes the family's own training losses, unweighted and summed over stages.

        Args:
            output: result of ``forward`` on the same images.
            targets: targets of those images.
            num_boxes: number of matchable targets in the batch, averaged over processes, at least 1.
            match: result of ``assign``; computed here if None.
        """

    @property
    @abstractmethod
    def loss_weights(self) -> dict[str, float]:
        """Returns the published weight of each term of ``losses``."""

    @abstractmethod
    def detections(self, output: DetectorOutput, sizes: Tensor, k: int = 300) -> list[Detections]:
        """Returns at most k (candidate, class) pairs with high scores per image, in pixels of the original image.

        Args:
            output: result of ``forward``.
            sizes: ``[B, 2]`` original height and width.
            k: highest number of pairs per image.
        """

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

    def level_channels(self, feature: Literal["memory", "neck", "backbone", "head"]) -> dict[int, int]:
        """Returns the number of channels of each feature level, by stride."""
        if feature not in self._known_channels:
            # no training changes a width, and a search builds its method hundreds of times for one teacher
            widths = {level.stride: level.features.shape[1] for level in getattr(self.blank_output(), feature)}
            self._known_channels = {**self._known_channels, feature: widths}
        return dict(self._known_channels[feature])
