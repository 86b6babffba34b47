"""Columns of the query table; their file does not import torch, so that a reader need not (meanings: docs/formats.md)."""

import pyarrow as pa

QUERY_SCHEMA = pa.schema([
    ("epoch", pa.int32()), ("image_id", pa.int64()), ("model", pa.string()), ("layer", pa.int8()), ("query", pa.int32()),
    ("source", pa.int32()), ("label", pa.int16()), ("score", pa.float32()),
    ("cx", pa.float32()), ("cy", pa.float32()), ("w", pa.float32()), ("h", pa.float32()),
    ("match", pa.int16()), ("match_iou", pa.float32()), ("best_target", pa.int16()), ("best_iou", pa.float32()),
    ("quality", pa.float32()),
    ("mate", pa.int32()), ("mate_layer", pa.int8()),
    ("mate_cost_class", pa.float32()), ("mate_cost_bbox", pa.float32()), ("mate_cost_giou", pa.float32()),
    ("train_mate", pa.int32()), ("loss_class", pa.float32()), ("loss_bbox", pa.float32()), ("loss_giou", pa.float32()),
    ("selected", pa.bool_()),
])  # fmt: skip
