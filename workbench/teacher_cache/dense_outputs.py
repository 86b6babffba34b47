"""Converts the output of a teacher without queries to rows of tensors, and such rows back to its output.

Its candidates are as many as the anchors of an image, so of their predictions only those are kept that a method reads. Where they lie is
the same for every image of a cache, because all are padded to one canvas: the anchors are stored once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.detectors.grid import flat, make_grid
from workbench.detectors.output import DenseOutput, DetectorOutput, Grid, HeadMap, TwoStageOutput
from workbench.matching import Activation
from workbench.teacher_cache.class_logits import Convert, pack_logits, unpack_logits
from workbench.teacher_cache.fields import CacheFields

DENSE, ROIS = "dense/", "rois/"
MAP = f"{DENSE}map/"
ANCHORS = "grid/anchors"
# what a head predicts beside the logits: what boxes are decoded from, and the quality, which belongs to the logits
_MAPS = tuple(field.name for field in fields(HeadMap) if field.name not in ("stride", "logits"))


def dense_part(output: DetectorOutput) -> DenseOutput | None:
    """Returns the output of a dense detector, or that of a two-stage detector's first stage; None for queries."""
    if isinstance(output, TwoStageOutput):
        return output.first
    return output if isinstance(output, DenseOutput) else None


def dense_form(output: DetectorOutput) -> dict[str, Any]:
    """Returns what reading needs to know of a teacher without queries, as JSON has it: its kind and its grid without the anchors."""
    dense = dense_part(output)
    if dense is None:
        return {}
    grid = dense.grid
    form = {"strides": list(grid.strides), "sizes": [list(size) for size in grid.sizes], "shapes": grid.shapes}
    if not isinstance(output, TwoStageOutput):
        return {"kind": "dense", **form}
    return {"kind": "two_stage", **form, "pooled": None if output.pooled is None else list(output.pooled)}


def pack_dense(output: DetectorOutput, contents: CacheFields, convert: Convert) -> dict[str, Tensor]:
    """Returns the predictions that ``contents`` keeps: ``[B, N, ...]`` by name.

    Args:
        output: output of a teacher without queries.
        contents: the fields to keep.
        convert: see ``Convert``.
    """
    dense = dense_part(output)
    assert dense is not None
    packed = {f"{DENSE}sides": convert(dense.sides, torch.float32)}
    if contents.dense_logits:
        # a first stage only tells objects from background
        packed |= pack_logits(dense.logits[0], contents.top_k if dense is output else None, convert, DENSE)
    if contents.dense_boxes:
        packed[f"{DENSE}boxes"] = convert(dense.boxes[0], torch.float32)
        if dense.first is not None:
            packed[f"{DENSE}first"] = convert(dense.first, torch.float32)
    for name in _MAPS:
        parts: list[Tensor] = [part for level in dense.maps if (part := getattr(level, name)) is not None]
        if parts and (contents.dense_logits if name == "quality" else contents.dense_boxes):
            packed[MAP + name] = convert(flat(parts, parts[0].shape[1] // dense.grid.shapes))
    if contents.dense_distribution and dense.box_distribution is not None:
        packed[f"{DENSE}distribution"] = convert(dense.box_distribution[0])
    if contents.rois and isinstance(output, TwoStageOutput):
        packed |= pack_logits(output.logits[0], contents.top_k, convert, ROIS)
        packed[f"{ROIS}boxes"] = convert(output.boxes[0], torch.float32)
        packed[f"{ROIS}proposals"] = convert(output.proposals, torch.float32)
        valid = torch.ones_like(output.proposals[..., 0]) if output.valid is None else output.valid
        packed[f"{ROIS}valid"] = convert(valid, torch.bool)
    return packed


def filled_up(name: str, values: Sequence[Tensor], axis: int) -> list[Tensor]:
    """Returns the values of proposals with zeros behind them, so that all are equally many along ``axis``; other tensors as they are.

    Batches have different numbers of proposals. Those added here are not ``valid``.
    """
    if not name.startswith(ROIS):
        return list(values)
    most = max(value.shape[axis] for value in values)
    return [F.pad(value, [0, 0] * (value.ndim - 1 - axis) + [0, most - value.shape[axis]]) for value in values]


def dense_names(contents: CacheFields) -> set[str]:
    """Returns the names of the tensors that belong to ``contents``, as far as the teacher is one without queries."""
    names = {f"{DENSE}sides"}
    names |= {f"{DENSE}logits", f"{DENSE}classes", f"{MAP}quality"} if contents.dense_logits else set()
    names |= {f"{DENSE}boxes", f"{DENSE}first", *(MAP + name for name in _MAPS if name != "quality")} if contents.dense_boxes else set()
    names |= {f"{DENSE}distribution"} if contents.dense_distribution else set()
    return names | ({f"{ROIS}{name}" for name in ("logits", "classes", "boxes", "proposals", "valid")} if contents.rois else set())


def read_dense(kept: Mapping[str, Tensor], form: Mapping[str, Any], levels: Mapping[str, Any]) -> DetectorOutput:
    """Returns the output that rows were packed from, in float32; predictions that are not kept have no columns, proposals no rows.

    Args:
        kept: rows and constants by name.
        form: see ``Manifest``.
        levels: the kept feature maps, a tuple of levels by kind.
    """
    if form["kind"] == "dense":
        return _read_grid(kept, form, form["activation"], levels)
    first = _read_grid(kept, form, "sigmoid", {})
    none = torch.empty(len(first.sides), 0, 4, device=first.sides.device)
    there = f"{ROIS}boxes" in kept
    return TwoStageOutput(
        logits=(unpack_logits(kept, form["columns"], ROIS) if there else none.new_empty(len(none), 0, form["columns"]))[None],
        boxes=kept.get(f"{ROIS}boxes", none)[None],
        activation=form["activation"],
        valid=kept.get(f"{ROIS}valid"),
        first=first,
        proposals=kept.get(f"{ROIS}proposals", none),
        pooled=tuple(form["pooled"]) if form.get("pooled") is not None else None,
        **levels,
    )


def _read_grid(kept: Mapping[str, Tensor], form: Mapping[str, Any], activation: Activation, levels: Mapping[str, Any]) -> DenseOutput:
    sides, anchors = kept[f"{DENSE}sides"], kept[ANCHORS]
    grid = make_grid(tuple(form["strides"]), [(height, width) for height, width in form["sizes"]], anchors, form["shapes"])
    nothing = sides.new_empty(len(sides), len(anchors), 0)

    def of(name: str) -> Tensor | None:
        return kept[DENSE + name].float() if DENSE + name in kept else None

    logits = unpack_logits(kept, form["columns"], DENSE) if f"{DENSE}logits" in kept else nothing
    kept_maps = {name: value for name in _MAPS if (value := of(f"map/{name}")) is not None}
    distribution, quality = of("distribution"), kept_maps.get("quality")
    return DenseOutput(
        logits=logits[None],
        boxes=kept.get(f"{DENSE}boxes", nothing)[None],
        activation=activation,
        valid=grid.inside(sides),
        box_distribution=None if distribution is None else distribution[None],
        grid=grid,
        maps=_maps(grid, {"logits": logits, "boxes": nothing, **kept_maps}),
        sides=sides,
        quality=None if quality is None else quality[None, ..., 0],
        first=of("first"),
        **levels,
    )


def _maps(grid: Grid, values: Mapping[str, Tensor]) -> tuple[HeadMap, ...]:
    """Returns predictions ``[B, N, ...]``, by the field of a map that they belong to, as the maps that the head made."""
    counts = [height * width * grid.shapes for height, width in grid.sizes]
    parts = {name: value.split(counts, 1) for name, value in values.items()}

    def level(index: int, height: int, width: int) -> dict[str, Tensor]:
        return {
            name: of[index].reshape(len(of[index]), height, width, grid.shapes * of[index].shape[-1]).permute(0, 3, 1, 2)
            for name, of in parts.items()
        }

    return tuple(HeadMap(stride, **level(index, *size)) for index, (stride, size) in enumerate(zip(grid.strides, grid.sizes, strict=True)))
