"""Defines what detectors have that predict at every cell of a feature pyramid: grid, geometric assignment, suppression of duplicates."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from workbench.boxes import cxcywh_to_xyxy
from workbench.datasets.targets import TargetBatch
from workbench.detectors.backbone import Backbone
from workbench.detectors.detector import Detections, InputSpec
from workbench.detectors.grid import flat
from workbench.detectors.output import DenseOutput, DetectorOutput, Grid, HeadMap, dense_output, valid_scores
from workbench.detectors.own_model import OwnModel
from workbench.detectors.pyramid import Pyramid, levels_with_padding, prediction, sides_of
from workbench.detectors.suppression import Suppression, suppressed

BACKGROUND, IGNORED = -1, -2


class DenseDetector(OwnModel):
    """A detector whose candidates are the anchors or points of a feature pyramid.

    A family gives its head (``predict``), its grid, how a box is decoded, which candidates are positive, and its losses.

    Args:
        config: the model's architecture.
        spec: what the model is trained to see.
    """

    assignment: ClassVar[Literal["one", "many"]] = "many"
    geometric: ClassVar[bool] = True
    provides = frozenset({"neck", "backbone", "head", "dense_logits", "dense_boxes"})
    numbers: int = 4
    """Numbers of the head's map from which a box is decoded."""
    uncovered: ClassVar[str] = "get no positive candidate, so that nothing learns them"
    """What is said of the targets that ``covered`` leaves out."""

    def __init__(self, config: Any, spec: InputSpec):
        super().__init__(config, spec)
        self.backbone = Backbone(config.backbone)
        self.neck = Pyramid(config, self.backbone.channels)

    @property
    def num_stages(self) -> int:
        """Returns 1: the head predicts once."""
        return 1

    @abstractmethod
    def predict(self, levels: Sequence[Tensor]) -> tuple[HeadMap, ...]:
        """Runs the head on the levels of the pyramid."""

    @abstractmethod
    def grid(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> Grid:
        """Returns the candidates for levels of these heights and widths."""

    @abstractmethod
    def decode_boxes(self, numbers: Tensor, grid: Grid) -> Tensor:
        """Returns boxes ``[..., N, 4]`` xyxy in input pixels of the head's numbers ``[..., N, numbers]``."""

    @abstractmethod
    def class_heads(self) -> list[tuple[nn.Module, str, int, float | None]]:
        """Returns the owner and attribute of each class convolution, the shapes of a cell, and the prior probability of a class."""

    def forward(self, images: Tensor, padding: Tensor, targets: TargetBatch | None = None) -> DenseOutput:
        """See ``Detector.forward``. ``targets`` is not used."""
        features = self.backbone(images)
        pyramid = self.neck(features)
        maps = self.predict(pyramid)
        grid = self.grid([(level.logits.shape[-2], level.logits.shape[-1]) for level in maps], images.device)
        sides = sides_of(padding)
        numbers = flat([level.boxes for level in maps], self.numbers).float()
        return DenseOutput(
            logits=flat([level.logits for level in maps], len(self.spec.classes)).float()[None],
            boxes=relative_boxes(self.decode_boxes(numbers, grid), sides)[None],
            activation=self.activation,
            valid=grid.inside(sides),
            neck=levels_with_padding(pyramid, self.config.strides, padding),
            backbone=levels_with_padding(features, self.backbone.strides, padding),
            grid=grid,
            maps=maps,
            sides=sides,
            quality=_quality(maps),
            **self.more_output(numbers, grid, sides),
        )

    def more_output(self, numbers: Tensor, grid: Grid, sides: Tensor) -> dict[str, Any]:
        """Returns the fields of the output that only this family fills.

        Args:
            numbers: ``[B, N, numbers]`` what the head predicts for the boxes.
            grid: the candidates.
            sides: ``[B, 2]`` width and height of the un-padded images.
        """
        return {}

    @torch.no_grad()
    def assign(self, output: DetectorOutput, targets: TargetBatch) -> Tensor:
        """See ``Detector.assign``. A background candidate whose centre lies in a crowd or ignore region is ignored."""
        dense = dense_output(output)
        match = self.positives(dense, pixel_boxes(targets.boxes, dense.sides), targets)
        assert dense.valid is not None
        return with_ignored(match, dense.grid.centres, dense.valid, targets, dense.sides)[None]

    @abstractmethod
    def positives(self, output: DenseOutput, boxes: Tensor, targets: TargetBatch) -> Tensor:
        """Returns the target of each candidate ``[B, N]``, -1 for background and -2 if the family ignores it.

        Args:
            output: grid of the candidates.
            boxes: ``[B, G, 4]`` targets as xyxy in input pixels.
            targets: which of these may be assigned.
        """

    def suppression(self, grid: Grid) -> Suppression:
        """Returns the rule by which ``detections`` leaves out duplicates, for candidates that lie on ``grid``."""
        config = self.config
        counts = tuple(height * width * grid.shapes for height, width in grid.sizes)
        return Suppression(config.score_threshold, config.nms_threshold, config.candidates, counts)

    def grid_of(self, height: int, width: int, device: torch.device) -> Grid:
        """Returns the candidates for images of this size, without running the model."""
        return self.grid([(-(-height // stride), -(-width // stride)) for stride in self.config.strides], device)

    @torch.no_grad()
    def covered(self, sides: Tensor, targets: TargetBatch) -> Tensor:
        """Returns which targets get a positive candidate ``[B, G]``, without running the model. Only geometric families can tell.

        Args:
            sides: ``[B, 2]`` width and height of the images in input pixels.
            targets: their targets.
        """
        width, height = (int(side) for side in sides.amax(0))
        grid = self.grid_of(height, width, sides.device)
        nothing = sides.new_zeros(1, len(sides), len(grid.cell), 4)
        output = DenseOutput(logits=nothing[..., :1], boxes=nothing, valid=grid.inside(sides), grid=grid, maps=(), sides=sides)
        return self.covered_by(output, pixel_boxes(targets.boxes, sides), targets)

    def covered_by(self, output: DenseOutput, boxes: Tensor, targets: TargetBatch) -> Tensor:
        """Returns which targets the candidates of an output cover ``[B, G]``; the arguments are those of ``positives``."""
        match = self.positives(output, boxes, targets)
        return (match[..., None] == torch.arange(boxes.shape[1], device=match.device)).any(1)

    @torch.no_grad()
    def detections(self, output: DetectorOutput, sizes: Tensor, k: int = 300) -> list[Detections]:
        """Returns the pairs that are left after non-maximum suppression within each class, best first. See ``Detector.detections``."""
        dense = dense_output(output)
        return suppressed(valid_scores(dense, -1), dense.boxes[-1].float(), sizes, self.suppression(dense.grid), k)

    def reset_classes(self, spec: InputSpec) -> list[str]:
        """See ``Detector.reset_classes``."""
        fresh: set[int] = set()
        for owner, name, shapes, prior in self.class_heads():
            old: nn.Conv2d = getattr(owner, name)
            head = prediction(old.in_channels, shapes * len(spec.classes), prior, old.kernel_size[0]).to(old.weight.device)
            setattr(owner, name, head)
            fresh |= {id(parameter) for parameter in head.parameters()}
        self.spec = spec
        return [name for name, parameter in self.named_parameters() if id(parameter) in fresh]


def relative_boxes(pixels: Tensor, sides: Tensor) -> Tensor:
    """Returns boxes ``[B, N, 4]`` xyxy in input pixels as cxcywh in 0..1 of the un-padded images, whose ``sides`` are ``[B, 2]``."""
    low, high = pixels[..., :2], pixels[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1) / sides.repeat(1, 2)[:, None]


def pixel_boxes(boxes: Tensor, sides: Tensor) -> Tensor:
    """Returns boxes ``[B, G, 4]`` cxcywh in 0..1 as xyxy in input pixels."""
    return cxcywh_to_xyxy(boxes) * sides.repeat(1, 2)[:, None]


def with_ignored(match: Tensor, centres: Tensor, valid: Tensor, targets: TargetBatch, sides: Tensor) -> Tensor:
    """Returns the assignment ``[B, N]`` with -2 for candidates that are not valid, and for background in a crowd or ignore region.

    Args:
        match: ``[B, N]`` target index, -1 for background.
        centres: ``[N, 2]`` or ``[B, N, 2]`` centres of the candidates in input pixels.
        valid: ``[B, N]`` bool.
        targets: the targets, with their regions.
        sides: ``[B, 2]`` width and height of the un-padded images.
    """
    if targets.regions is not None:
        inside = _lies_in(centres, pixel_boxes(targets.regions, sides))
        match = match.masked_fill((match == BACKGROUND) & inside, IGNORED)
    return match.masked_fill(~valid, IGNORED)


def at_positives(match: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns image, candidate and target values ``[P, ...]`` of the P positives of an assignment.

    Args:
        match: ``[B, N]`` target index, negative for candidates without one.
        values: ``[B, G, ...]`` of the targets.
    """
    image, candidate = (match >= 0).nonzero(as_tuple=True)
    return image, candidate, values[image, match[image, candidate]]


def class_indicator(logits: Tensor, match: Tensor, labels: Tensor) -> Tensor:
    """Returns ``[B, N, C]`` with 1 at the class of each positive's target and 0 elsewhere."""
    image, candidate, label = at_positives(match, labels)
    wanted = torch.zeros_like(logits)
    wanted[image, candidate, label] = 1.0
    return wanted


def _quality(maps: tuple[HeadMap, ...]) -> Tensor | None:
    parts = [level.quality for level in maps if level.quality is not None]
    return flat(parts, 1)[..., 0].float()[None] if parts else None


def _lies_in(points: Tensor, boxes: Tensor) -> Tensor:
    """Returns ``[B, N]`` bool: True where a point ``[N, 2]`` or ``[B, N, 2]`` lies in one of an image's boxes ``[B, R, 4]``."""
    low, high = boxes[:, None, :, :2], boxes[:, None, :, 2:]
    place = points[..., None, :]
    return ((place >= low) & (place < high)).all(-1).any(-1)
