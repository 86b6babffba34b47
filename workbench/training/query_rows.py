"""Turns one batch of predictions into rows of the query table: prediction, match and quality of every query."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from workbench.boxes import cxcywh_to_xyxy, pairwise_iou_and_giou
from workbench.datasets.targets import TargetBatch
from workbench.detectors.output import DetectorOutput, scores
from workbench.methods.selection import QUALITY_GAMMA
from workbench.store.query_schema import QUERY_SCHEMA

Model = Literal["student", "teacher", "teacher_group"]
_TERMS = ("class", "bbox", "giou")


@dataclass(frozen=True)
class Mates:
    """Teacher queries that the analysis's full Hungarian assignment gives to the student's queries.

    Attributes:
        query: ``[L, B, N]`` teacher query, -1 if the student's query has none.
        layer: For each of the L student layers, the teacher layer it is compared with.
        costs: ``[L, B, N, 3]`` class, L1 and GIoU cost of each pair, unweighted; ignored where ``query`` is -1.
    """

    query: Tensor
    layer: Sequence[int]
    costs: Tensor


@dataclass(frozen=True)
class RowsOf:
    """Identifies the model and the images that rows belong to.

    Attributes:
        image_ids: Ids of the B images.
        model: The model whose queries these are.
        epoch: Training epoch of the weights.
    """

    image_ids: Sequence[int]
    model: Model
    epoch: int = 0


@dataclass(frozen=True, kw_only=True)
class RowExtras:
    """Columns that only some rows have; a column that is None stays null.

    Attributes:
        mates: For student rows, the teacher queries that the analysis assigns to them.
        train_mate: ``[L, B, N]`` teacher query that the method trains the student's query on, -1 if there is none.
        losses: ``[L, B, N, 3]`` class, L1 and GIoU loss of every query.
        selected: ``[L, B, N]`` bool, for teacher rows: True if the method distils from this query.
        query: ``[B, N]`` index of each candidate in its image, where not all of them get rows.
    """

    mates: Mates | None = None
    train_mate: Tensor | None = None
    losses: Tensor | None = None
    selected: Tensor | None = None
    query: Tensor | None = None


NO_EXTRAS = RowExtras()


@torch.no_grad()
def query_rows(
    output: DetectorOutput,
    source: Tensor,
    targets: TargetBatch,
    match: Tensor,
    said_by: RowsOf,
    extras: RowExtras = NO_EXTRAS,
    gamma: float = QUALITY_GAMMA,
) -> pa.Table:
    """Returns the rows of one batch and one model, ordered by image, then layer, then query.

    ``quality`` is ``score(class of the target)^gamma * IoU^(1 - gamma)`` with the matched target, 0 if unmatched (DETRDistill, ICCV
    2023, equation 8).

    Args:
        output: predictions of L layers for B images with N queries each.
        source: ``[B, N]`` or ``[N]``, the place that each of them comes from, or -1.
        targets: targets of the B images; best_target and best_iou consider the valid ones.
        match: ``[L, B, N]`` target index, -1 if unmatched, -2 if ignored.
        said_by: model, images and epoch.
        extras: further columns.
        gamma: exponent of the score in ``quality``.

    Returns:
        A table of ``QUERY_SCHEMA`` with ``B * L * N`` rows.
    """
    logits, boxes = output.logits.float(), output.boxes.float()
    shape = logits.shape[:3]
    by_class = scores(output)
    score, label = by_class.max(-1)
    match_iou, target_score, best_iou, best_target = _against_targets(by_class, boxes, match.to(boxes.device), targets)
    columns: dict[str, Any] = {
        "epoch": said_by.epoch,
        "image_id": np.asarray(said_by.image_ids)[:, None],
        "layer": np.arange(shape[0])[:, None, None],
        "query": np.arange(shape[2]) if extras.query is None else extras.query,
        "source": source,
        "label": label,
        "score": score,
        **{name: boxes[..., k] for k, name in enumerate(("cx", "cy", "w", "h"))},
        "match": match,
        "match_iou": match_iou,
        "best_target": best_target,
        "best_iou": best_iou,
        "quality": target_score**gamma * match_iou ** (1 - gamma),
    }
    absent: dict[str, np.ndarray] = {}
    if extras.mates is not None:
        mates = extras.mates
        costs = {f"mate_cost_{name}": mates.costs[..., k] for k, name in enumerate(_TERMS)}
        columns |= {"mate": mates.query, "mate_layer": np.asarray(mates.layer)[:, None, None], **costs}
        absent = dict.fromkeys(costs, (mates.query < 0).cpu().numpy())
    if extras.losses is not None:
        columns |= {f"loss_{name}": extras.losses[..., k] for k, name in enumerate(_TERMS)}
    columns |= {name: value for name, value in (("train_mate", extras.train_mate), ("selected", extras.selected)) if value is not None}
    rows = int(np.prod(shape))

    def column(field: pa.Field) -> pa.Array:
        if field.name == "model":
            return pa.repeat(said_by.model, rows)
        if field.name not in columns:
            return pa.nulls(rows, field.type)
        values = _flat(columns[field.name], shape).astype(field.type.to_pandas_dtype())
        return pa.array(values, field.type, mask=_flat(absent[field.name], shape) if field.name in absent else None)

    return pa.Table.from_arrays([column(field) for field in QUERY_SCHEMA], schema=QUERY_SCHEMA)


def _against_targets(by_class: Tensor, boxes: Tensor, match: Tensor, targets: TargetBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns IoU with the matched target, score of its class, best IoU with a valid target, and that target; each ``[L, B, N]``.

    The first two are 0 for unmatched queries. The last two are 0 and -1 where no valid target overlaps.
    """
    if targets.labels.shape[1] == 0:
        nothing = boxes.new_zeros(match.shape)
        return nothing, nothing, nothing, torch.full_like(match, -1)
    # IoU does not change when boxes are normalised by the image size
    iou = pairwise_iou_and_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets.boxes.to(boxes.device)))[0]
    matched, index = match >= 0, match.clamp(min=0)[..., None]
    target_label = targets.labels.to(match.device)[:, None, :].expand(iou.shape).gather(-1, index)
    match_iou = iou.gather(-1, index)[..., 0].where(matched, 0.0)
    target_score = by_class.gather(-1, target_label)[..., 0].where(matched, 0.0)
    best_iou, best_target = iou.masked_fill(~targets.valid.to(iou.device)[:, None, :], 0.0).max(-1)
    return match_iou, target_score, best_iou, best_target.where(best_iou > 0, -1)


def _flat(value: Any, shape: Sequence[int]) -> np.ndarray:
    """Broadcasts a value to ``[L, B, N]`` and flattens it in the order image, layer, query."""
    array = value.cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    return np.broadcast_to(array, tuple(shape)).transpose(1, 0, 2).reshape(-1)
