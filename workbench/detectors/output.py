"""Defines what every detector returns, whatever its family. L layers, B images, N queries, C classes, D width."""

from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class DetectorOutput:
    """Predictions of every decoder layer, with the features that they were made from.

    Attributes:
        logits: ``[L, B, N, C]`` (softmax heads: C includes no-object, last).
        boxes: ``[L, B, N, 4]`` cxcywh in 0..1 of the un-padded image.
        states: ``[L, B, N, D]`` decoder states as the heads see them.
        queries: The queries of inference that the decoder started from.
        memory: Encoder output by level; empty for families without an encoder.
        neck: Projected backbone features by level, before the encoder.
        backbone: Backbone features by level.
        context: Data that ``Detector.decode`` reuses; opaque to callers.
        aux: Training-only groups.
        activation: ``sigmoid`` (C classes) or ``softmax`` (C + 1, no-object last).
        attentions: Attention maps, if the family has them and they were asked for (``Detector.collecting_attentions``).
        box_distribution: ``[L, B, N, 4, bins]`` logits over the distance of each edge from the query's reference box, if the family
            regresses boxes this way.
    """

    logits: Tensor
    boxes: Tensor
    states: Tensor
    queries: Queries
    memory: tuple[Level, ...]
    neck: tuple[Level, ...]
    backbone: tuple[Level, ...]
    context: Any
    aux: tuple[AuxGroup, ...] = ()
    activation: Activation = "sigmoid"
    attentions: Attentions | None = None
    box_distribution: Tensor | None = None


def probability(output: DetectorOutput, layer: int | slice = slice(None)) -> Tensor:
    """Returns class probabilities ``[..., B, N, C]`` without the no-object column."""
    logits = output.logits[layer].float()
    return logits.sigmoid() if output.activation == "sigmoid" else logits.softmax(-1)[..., :-1]
