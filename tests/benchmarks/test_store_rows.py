"""The rows that the benchmark of the store is measured on are those of a real table in shape."""

import pandas as pd

from benchmarks.store_rows import LAYERS, QUERIES, query_chunks
from workbench.analysis.stability.churn import churn_over_layers, pooled
from workbench.store.query_schema import QUERY_SCHEMA


def test_rows_are_sorted_matched_one_to_one_and_churn_by_a_fifth():
    (table,) = query_chunks(1, images=40)
    assert table.schema == QUERY_SCHEMA and table.num_rows == 40 * LAYERS * QUERIES
    rows = table.to_pandas()
    keys = ["image_id", "model", "layer", "query"]
    pd.testing.assert_frame_equal(rows, rows.sort_values(keys))
    matched = rows[rows["match"] >= 0]
    assert not matched.duplicated(["image_id", "layer", "match"]).any()
    assert 3 < len(matched) / 40 / LAYERS < 12
    assert ((rows["quality"] > 0) <= (rows["match"] >= 0)).all()
    churn = pooled(churn_over_layers(rows.assign(step=1)))["churn"]
    assert 0.15 < churn < 0.25
