"""Defines what every detector returns: ``QueryOutput`` for a DETR, ``DenseOutput`` for a dense and ``TwoStageOutput`` for a two-stage one.

S stages (the decoder layers of a DETR), B images, N candidates (the queries of a DETR), C classes, D width.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from workbench.matching import Activation


@dataclass(frozen=True)
class Level:
    """One feature level.

    Attributes:
        features: ``[B, D, H, W]``.
        stride: input pixels per cell.
        padding: ``[B, H, W]`` bool, True where the cell is padding.
    """

    features: Tensor
    stride: int
    padding: Tensor


@dataclass(frozen=True)
class Queries:
    """The queries that a decoder starts from.

    Attributes:
        content: ``[B, N, D]`` initial decoder states.
        position: ``[B, N, D]`` position embeddings, or None where the family makes them from ``reference``.
        reference: ``[B, N, 2 or 4]`` after the sigmoid (0..1 of the un-padded image), or None.
        source: ``[B, N]`` int64, the encoder cell that a query was selected from; -1 for a learned query.
        valid: ``[B, N]`` bool, False for a query that only fills up a batch and is seen by no other query. None if all are valid.
    """

    content: Tensor
    position: Tensor | None
    reference: Tensor | None
    source: Tensor
    valid: Tensor | None = None


@dataclass(frozen=True)
class AuxGroup:
    """A training-only group of predictions (denoising, encoder proposals, group k). Methods never see it.

    Attributes:
        name: Suffix of the names of its loss terms.
        logits: ``[L, B, M, C]``. Groups that are matched separately lie one after the other along the first axis.
        boxes: ``[L, B, M, 4]`` cxcywh.
        match: ``[L, B, M]`` int64 fixed target indices (-1 for no target), or None if the group is matched like the main one.
        any_class: True if the group only tells objects from background, so that every target counts as class 0.
        copies: Number of times that the group holds each target. Its losses are divided by it.
        distribution: See ``DetectorOutput.box_distribution``.
        reference: ``[B, M, 4]`` cxcywh, the box that ``distribution`` is measured from.
    """

    name: str
    logits: Tensor
    boxes: Tensor
    match: Tensor | None
    any_class: bool = False
    copies: int = 1
    distribution: Tensor | None = None
    reference: Tensor | None = None


@dataclass(frozen=True)
class Attentions:
    """Attention maps of every decoder layer, with H heads and the S cells of all memory levels, level after level, row by row.

    Each row sums to 1, minus the weight of sampling points outside the image.

    Attributes:
        self_attention: ``[L, B, H, N, N]``, from the query in a row to the queries in the columns.
        cross_attention: ``[L, B, H, N, S]``. For deformable attention it is a map averaged over heads (H = 1).
    """

    self_attention: Tensor
    cross_attention: Tensor


@dataclass(frozen=True, kw_only=True)
class DetectorOutput:
    """Predictions of every stage, with the features that they were made from. This is what all detectors have in common.

    A candidate is one row of predictions: a query of a DETR, an anchor or a point of a dense detector, a proposal of a two-stage one. A
    stage is one complete prediction of all candidates: each decoder layer of a DETR, and the one head of other detectors.

    Attributes:
        logits: ``[S, B, N, C]`` (softmax heads: C includes no-object, last).
        boxes: ``[S, B, N, 4]`` cxcywh in 0..1 of the un-padded image.
        activation: ``sigmoid`` (C classes) or ``softmax`` (C + 1, no-object last).
        valid: ``[B, N]`` bool, False for a candidate that does not exist in an image, such as an anchor in the padding; None if all do.
        memory: Encoder output by level; empty for detectors without an encoder.
        neck: Levels between backbone and encoder, or the feature pyramid of a detector without an encoder.
        backbone: Backbone features by level.
        aux: Training-only groups.
        box_distribution: ``[S, B, N, 4, bins]`` logits over the distance of each edge from the candidate's reference box or point, if the
            family regresses boxes this way.
    """

    logits: Tensor
    boxes: Tensor
    activation: Activation = "sigmoid"
    valid: Tensor | None = None
    memory: tuple[Level, ...] = ()
    neck: tuple[Level, ...] = ()
    backbone: tuple[Level, ...] = ()
    aux: tuple[AuxGroup, ...] = ()
    box_distribution: Tensor | None = None

    @property
    def head(self) -> tuple[Level, ...]:
        """Returns the levels that the prediction head reads: the memory, or the neck of a detector without an encoder."""
        return self.memory or self.neck


@dataclass(frozen=True, kw_only=True)
class QueryOutput(DetectorOutput):
    """Output of a detector with queries.

    Attributes:
        states: ``[L, B, N, D]`` decoder states as the heads see them.
        queries: The queries of inference that the decoder started from.
        context: Data that ``QueryDetector.decode`` reuses; opaque to callers.
        attentions: Attention maps, if the family has them and they were asked for (``Detector.collecting_attentions``).
    """

    states: Tensor
    queries: Queries
    context: Any = None
    attentions: Attentions | None = None


@dataclass(frozen=True)
class Grid:
    """Says where the candidates of a dense detector lie. All levels lie in a row, each row by row, with the shapes of a cell together.

    Attributes:
        level: ``[N]`` int64, index of the level.
        cell: ``[N]`` int64, index of the cell over all levels.
        anchors: ``[N, 4]`` xyxy in input pixels: the anchor, or a cell's centre twice for a detector that starts from points.
        strides: Stride of each level.
        sizes: Height and width of each level in cells.
        shapes: Number of candidates of each cell.
    """

    level: Tensor
    cell: Tensor
    anchors: Tensor
    strides: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    shapes: int = 1

    @property
    def centres(self) -> Tensor:
        """Returns ``[N, 2]``: x and y of each candidate in input pixels."""
        return (self.anchors[:, :2] + self.anchors[:, 2:]) / 2

    @property
    def stride(self) -> Tensor:
        """Returns ``[N]``: the stride of each candidate's level."""
        return self.anchors.new_tensor(self.strides)[self.level]

    def inside(self, sides: Tensor) -> Tensor:
        """Returns ``[B, N]`` bool: True for a candidate whose centre lies in an un-padded image; ``sides [B, 2]`` are width and height."""
        return (self.centres < sides[:, None]).all(-1)


@dataclass(frozen=True)
class HeadMap:
    """What the head of a dense detector predicts on one level, as the last convolutions give it; response distillation reads it.

    Attributes:
        stride: Input pixels per cell.
        logits: ``[B, A*C, h, w]`` for A candidates a cell.
        boxes: ``[B, A*R, h, w]``, the R numbers from which the family decodes a box.
        quality: ``[B, A, h, w]`` logits of centreness or IoU, if the family predicts it.
        first: ``[B, A*R, h, w]``, the numbers of the boxes that the head refines (``DenseOutput.first``), if the family has two stages.
    """

    stride: int
    logits: Tensor
    boxes: Tensor
    quality: Tensor | None = None
    first: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class DenseOutput(DetectorOutput):
    """Output of a detector that predicts at every cell of its feature levels.

    Attributes:
        grid: Level, cell and anchor of each candidate.
        maps: Predictions of each level before they are decoded.
        sides: ``[B, 2]`` width and height of the un-padded images in input pixels.
        quality: ``[S, B, N]`` logits of centreness or IoU, by which scores are scaled; None if the family has none.
        first: ``[B, N, 4]`` cxcywh in 0..1, the boxes that the head refines (RepPoints); None without such a stage.
    """

    grid: Grid
    maps: tuple[HeadMap, ...]
    sides: Tensor
    quality: Tensor | None = None
    first: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class TwoStageOutput(DetectorOutput):
    """Output of a detector that proposes boxes first and classifies them afterwards; its candidates are the proposals.

    In inference the proposals are those of the first stage, best first. In training they are the sample of them, and of the targets' own
    boxes, that the second stage learns from.

    Attributes:
        first: Output of the first stage, which proposes the boxes. It has one class, whether there is an object.
        proposals: ``[B, N, 4]`` cxcywh in 0..1; those that are not ``valid`` only fill up the batch.
        class_boxes: ``[B, N, C, 4]`` cxcywh, the box of each class, of which ``boxes`` holds that of the best class; None for a family
            that predicts one box for all classes.
        pooled: Strides of the levels of the neck that the second stage reads; the others only propose. None if it reads all.
        context: Data that ``TwoStageDetector.classify`` reuses; opaque to callers.
    """

    first: DenseOutput
    proposals: Tensor
    class_boxes: Tensor | None = None
    pooled: tuple[int, ...] | None = None
    context: Any = None

    @property
    def head(self) -> tuple[Level, ...]:
        """Returns the levels of the neck that the second stage reads."""
        return tuple(level for level in self.neck if self.pooled is None or level.stride in self.pooled)


def query_output(output: DetectorOutput) -> QueryOutput:
    """Returns the same output, known to be one of queries.

    Raises:
        TypeError: it is not. ``Method.check`` refuses such a pair before training, if the method states that it needs ``queries``.
    """
    return _known(output, QueryOutput, "queries")


def dense_output(output: DetectorOutput) -> DenseOutput:
    """Returns the same output, known to be that of a dense detector.

    Raises:
        TypeError: it is not. ``Method.check`` refuses such a pair before training, if the method states that it needs ``dense_boxes``.
    """
    return _known(output, DenseOutput, "dense_boxes")


def two_stage_output(output: DetectorOutput) -> TwoStageOutput:
    """Returns the same output, known to be that of a two-stage detector.

    Raises:
        TypeError: it is not. ``Method.check`` refuses such a pair before training, if the method states that it needs ``rois``.
    """
    return _known(output, TwoStageOutput, "rois")


Kind = TypeVar("Kind", bound=DetectorOutput)


def _known(output: DetectorOutput, kind: type[Kind], need: str) -> Kind:
    if not isinstance(output, kind):
        raise TypeError(f"this is a {type(output).__name__} and no {kind.__name__}; state the need for '{need}'")
    return output


def probability(output: DetectorOutput, layer: int | slice = slice(None)) -> Tensor:
    """Returns class probabilities ``[..., B, N, C]`` without the no-object column."""
    logits = output.logits[layer].float()
    return logits.sigmoid() if output.activation == "sigmoid" else logits.softmax(-1)[..., :-1]


def scores(output: DetectorOutput, stage: int | slice = slice(None)) -> Tensor:
    """Returns the scores that detections are ranked by, ``[..., B, N, C]``: class probabilities, or the geometric mean of them and the
    centreness of a detector that predicts it (FCOS).
    """
    found = probability(output, stage)
    if isinstance(output, DenseOutput) and output.quality is not None:
        return (found * output.quality[stage].float().sigmoid()[..., None]).sqrt()
    return found


def valid_scores(output: DetectorOutput, stage: int | slice = slice(None)) -> Tensor:
    """Returns ``scores``, with 0 for candidates that do not exist in an image."""
    found = scores(output, stage)
    return found if output.valid is None else found.masked_fill(~output.valid[..., None], 0.0)
