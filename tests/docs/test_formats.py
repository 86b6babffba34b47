"""The page of formats says what is on disk."""

import pyarrow as pa
import pytest

from tests.conftest import ROOT
from workbench.store.detections import DETECTION_SCHEMA
from workbench.training.query_rows import QUERY_SCHEMA


def documented(section: str) -> list[tuple[str, str]]:
    """Column and type of each row of the table below a heading."""
    text = (ROOT / "docs" / "formats.md").read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [(row[0].strip(), row[1].strip()) for row in rows[2:]]


@pytest.mark.parametrize(("section", "schema"), [("Query table", QUERY_SCHEMA), ("Detections", DETECTION_SCHEMA)])
def test_the_documented_columns_and_types_are_those_of_the_files_in_their_order(section: str, schema: pa.Schema):
    assert documented(section) == [(field.name, str(field.type)) for field in schema]
