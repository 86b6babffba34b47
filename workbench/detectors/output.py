"""What every detector returns, whatever its family. L layers, B images, N queries, C classes, D width."""

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
    """What goes into a decoder.

    Attributes:
        content: ``[B, N, D]`` initial decoder states.
        position: ``[B, N, D]`` position embeddings, or None where the family makes them from ``reference``.
        reference: ``[B, N, 2 or 4]`` after the sigmoid (0..1 of the un-padded image), or None.
        source: ``[B, N]`` int64, encoder cell a query was selected from, -1 for a learned query.
        valid: ``[B, N]`` bool, False where a query only fills up a batch: no other query sees it. None: all are valid.
    """

    content: Tensor
    position: Tensor | None
    reference: Tensor | None
    source: Tensor
    valid: Tensor | None = None


@dataclass(frozen=True)
class AuxGroup:
    """A training-only group of predictions (denoising, encoder proposals, group k); methods never see it.

    Attributes:
        name: names its loss terms.
        logits: ``[L, B, M, C]``; queries that are matched in several groups apart lie one group after the other along the first axis.
        boxes: ``[L, B, M, 4]`` cxcywh.
        match: ``[L, B, M]`` int64 fixed target indices (-1 = none), or None when matched like the main group.
        any_class: the group tells objects from background: every target counts as class 0.
        copies: how many times the group holds each target; its losses are divided by it.
        distribution: see ``DetectorOutput.box_distribution``.
        reference: ``[B, M, 4]`` cxcywh, box that ``distribution`` is measured from.
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
    """Attention of every decoder layer; H heads, S cells of all memory levels, level after level, row by row. Rows sum to 1, less what
    sampling points put outside the image.

    Attributes:
        self_attention: ``[L, B, H, N, N]``, from the query in a row to the queries in the columns.
        cross_attention: ``[L, B, H, N, S]``; deformable attention as a map averaged over heads (H = 1).
    """

    self_attention: Tensor
    cross_attention: Tensor


@dataclass(frozen=True)
class DetectorOutput:
    """Predictions of every decoder layer and the features behind them.

    Attributes:
        logits: ``[L, B, N, C]`` (softmax heads: C includes no-object, last).
        boxes: ``[L, B, N, 4]`` cxcywh in 0..1 of the un-padded image.
        states: ``[L, B, N, D]`` decoder states as the heads see them.
        queries: the inference queries that went in.
        memory: encoder output by level; empty for families without an encoder.
        neck: projected backbone features by level, before the encoder.
        backbone: backbone features by level.
        context: whatever ``Detector.decode`` needs again; opaque to callers.
        aux: training-only groups.
        activation: sigmoid (C classes) or softmax (C + 1, no-object last).
        attentions: where the family has them and they were asked for (``Detector.collecting_attentions``).
        box_distribution: ``[L, B, N, 4, bins]`` logits over the distance of each edge from the query's reference box, where the family
            regresses boxes so.
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
    """Class probabilities without the no-object column: ``[..., B, N, C]``."""
    logits = output.logits[layer].float()
    return logits.sigmoid() if output.activation == "sigmoid" else logits.softmax(-1)[..., :-1]
