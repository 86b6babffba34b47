"""The page of formats says what is on disk."""

import pyarrow as pa
import pytest
import torch

from tests.conftest import ROOT
from workbench.detectors.detector import InputSpec
from workbench.detectors.registry import FAMILIES
from workbench.store.detections import DETECTION_SCHEMA
from workbench.teacher_cache.cached_outputs import pack
from workbench.teacher_cache.fields import CacheFields
from workbench.training.query_rows import QUERY_SCHEMA


def documented(section: str) -> list[tuple[str, str]]:
    """Column and type of each row of the table below a heading."""
    text = (ROOT / "docs" / "formats.md").read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [(row[0].strip(), row[1].strip()) for row in rows[2:]]


@pytest.mark.parametrize(("section", "schema"), [("Query table", QUERY_SCHEMA), ("Detections", DETECTION_SCHEMA)])
def test_the_documented_columns_and_types_are_those_of_the_files_in_their_order(section: str, schema: pa.Schema):
    assert documented(section) == [(field.name, str(field.type)) for field in schema]


# 800x1333 pixels at strides 8, 16, 32, 64 and 128
CELLS = 100 * 167 + 50 * 84 + 25 * 42 + 13 * 21 + 7 * 11
MAPS = 2 * 256 + 1  # 256 channels in halves, a byte for padding
SCORES, BOX = 2 * 80, 4 * 4 + 2 * 4  # 80 classes in halves; a box in float32 and its four numbers in halves
DISTRIBUTION = 4 * 17 * 2
SIDES = 8
# by the rows' names: the family, and what an image takes by hand: feature maps, LD, logits and boxes
PUBLISHED = {
    "FCOS": ("fcos", CELLS * MAPS, None, CELLS * (SCORES + 2 + BOX)),
    "RetinaNet": ("retinanet", CELLS * MAPS, None, CELLS * 9 * (SCORES + BOX)),
    "GFL": ("gfl", CELLS * MAPS, CELLS * (SCORES + DISTRIBUTION), CELLS * (SCORES + 4 * 4 + DISTRIBUTION)),
}
KEPT = (
    CacheFields(maps={"neck": (8, 16, 32, 64, 128)}),
    CacheFields(dense_logits=True, dense_distribution=True),
    CacheFields(dense_logits=True, dense_boxes=True),
)


def dense_cache_rows() -> dict[str, list[int | None]]:
    """Bytes of an image in the table of the page, by teacher."""
    text = (ROOT / "docs" / "formats.md").read_text().split("<!-- dense-cache -->\n")[1].split("<!-- /dense-cache -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    return {name.split(",")[0]: [int(cell.replace(",", "")) if cell else None for cell in cells] for name, *cells in rows}


@pytest.mark.parametrize("teacher", sorted(PUBLISHED))
def test_the_bytes_that_a_dense_cache_takes_are_those_of_a_published_teachers_output(teacher: str):
    family, *by_hand = PUBLISHED[teacher]
    assert dense_cache_rows()[teacher] == [None if count is None else count + SIDES for count in by_hand]
    if family not in FAMILIES:
        return
    row = FAMILIES[family]
    spec = InputSpec(tuple(f"class {index}" for index in range(80)), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    # on this device tensors have sizes and no values
    with torch.device("meta"), torch.no_grad():
        detector = row.detector.build(row.config.model_validate({"family": family, "backbone": row.backbone}), spec).eval()
        output = detector(torch.empty(1, 3, 800, 1333), torch.empty(1, 800, 1333, dtype=torch.bool))
    for contents, count in zip(KEPT, by_hand, strict=True):
        assert count is None or sum(value.nbytes for value in pack(output, contents, "meta").values()) == count + SIDES
