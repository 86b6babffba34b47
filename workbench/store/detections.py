"""Detections of a run on disk: the best (query, class) pairs of each image in the last layer, before AP's limit of 100."""

from collections.abc import Callable
from typing import TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.errors import RunError
from workbench.files import replacing
from workbench.store.intact import check_hash, forget_hash, write_hash
from workbench.store.run import Run

_T = TypeVar("_T")
_AGAIN = "Restore it from a copy, or train the run again. The run's other files are not affected."
DETECTION_SCHEMA = pa.schema([
    ("image_id", pa.int64()), ("query", pa.int32()), ("category_id", pa.int64()), ("score", pa.float32()),
    ("x1", pa.float32()), ("y1", pa.float32()), ("x2", pa.float32()), ("y2", pa.float32()),
])  # fmt: skip
MASK = pa.field("mask", pa.string())  # COCO's compressed RLE on the original image, of a detector of masks


def write_detections(run: Run, split: str, step: int, table: pa.Table) -> None:
    """Writes detections of one split and step.

    Args:
        run: the run they belong to.
        split: split of the data.
        step: training step of the weights.
        table: a table of ``DETECTION_SCHEMA``, perhaps with ``MASK``, with the data's own category ids and boxes xyxy in pixels of the
            original image.
    """
    final = run.detections_path(split, step)
    forget_hash(final)
    with replacing(final) as path:
        pq.write_table(_typed(table), path, compression="zstd")
    write_hash(final)


def read_detections(run: Run, split: str, step: int) -> pd.DataFrame:
    """Returns the detections that ``write_detections`` wrote.

    Raises:
        RunError: this split and step have no detections, or they are damaged.
    """
    return _read(run, split, step, lambda file: _typed(file.read()).to_pandas())


def has_object_masks(run: Run, split: str, step: int) -> bool:
    """Returns whether these detections have masks, without reading them.

    Raises:
        RunError: this split and step have no detections, or they are damaged.
    """
    return _read(run, split, step, lambda file: MASK.name in file.schema_arrow.names)


def _read(run: Run, split: str, step: int, of: Callable[[pq.ParquetFile], _T]) -> _T:
    path = run.detections_path(split, step)
    if not path.is_file():
        there = ", ".join(map(str, run.detection_steps(split))) or "none"
        raise RunError(f"run '{run.name}' has no detections of split '{split}' at step {step}. Steps with detections: {there}.")
    check_hash(path, _AGAIN)
    try:
        with path.open("rb") as file:
            return of(pq.ParquetFile(file))
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise RunError(f"{path} is damaged: {error}. {_AGAIN}") from error


def _typed(table: pa.Table) -> pa.Table:
    """Returns a table of detections in its schema, with masks if it has them."""
    return table.cast(DETECTION_SCHEMA.append(MASK) if MASK.name in table.column_names else DETECTION_SCHEMA)
