"""Detections on disk."""

import numpy as np
import pyarrow as pa
import pytest

from workbench.errors import RunError
from workbench.store.detections import DETECTION_SCHEMA, read_detections, write_detections
from workbench.store.run import Run


def test_detections_come_back_as_they_were_with_the_types_of_the_format():
    run = Run.create("detections", {})
    table = pa.table(
        {
            name: pa.array([3, 1, 2]) if name in ("image_id", "query", "category_id") else np.array([0.5, 0.25, 7.75])
            for name in DETECTION_SCHEMA.names
        }
    )
    write_detections(run, "test", 40, table)
    frame = read_detections(run, "test", 40)
    assert list(frame.columns) == DETECTION_SCHEMA.names
    assert frame["image_id"].tolist() == [3, 1, 2] and frame["x2"].tolist() == [0.5, 0.25, 7.75]
    assert frame["score"].dtype == np.float32 and frame["query"].dtype == np.int32


def test_a_step_that_is_not_there_is_named_with_those_that_are():
    run = Run.create("absent", {})
    write_detections(run, "val", 40, DETECTION_SCHEMA.empty_table())
    with pytest.raises(RunError, match=r"'val' at step 50. Steps with detections: 40"):
        read_detections(run, "val", 50)
