"""Quality by slice, in loops; the released code's against the method's own."""

import math

import numpy as np
import pandas as pd
import pytest

from tests.analysis.answer_examples import random_answers, random_truth
from workbench.analysis.detection.bootstrap import draws
from workbench.analysis.detection.targets import target_frame
from workbench.analysis.queries.quality import quality_by
from workbench.analysis.stability.churn import mean_quality


@pytest.mark.parametrize("by", ["label", "size", "query", None])
def test_mean_quality_of_a_slice_is_over_its_matched_queries(by: str | None):
    queries, targets = random_answers(3, images=6, teacher_layers=2), target_frame(random_truth(3, images=6))
    value = {(t.image_id, t.target): t for t in targets.itertuples()}
    frame = quality_by(queries, by=by, targets=None if by == "query" else targets, samples=20, seed=4)
    rows = [(r.layer, r if by == "query" else value[r.image_id, r.match], r) for r in queries.itertuples()
            if r.model == "teacher" and r.match >= 0]  # fmt: skip
    ids = sorted({row.image_id for *_, row in rows})
    assert frame["n"].sum() == len(rows) and set(frame["step"]) == {-1}
    for found in frame.itertuples():
        own = [(ids.index(r.image_id), r.quality) for layer, of, r in rows
               if layer == found.layer and (by is None or getattr(of, by) == getattr(found, by))]  # fmt: skip
        assert found.quality == pytest.approx(math.fsum(q for _, q in own) / len(own))
        assert (found.n, found.images) == (len(own), len({image for image, _ in own}))
        sums = [(sum(c[i] for i, _ in own), math.fsum(c[i] * q for i, q in own)) for c in draws(len(ids), 20, 4)]
        wanted = np.percentile([total / n for n, total in sums if n], [2.5, 97.5])
        assert (found.low, found.high) == pytest.approx(tuple(wanted))
    if by is None:
        pd.testing.assert_frame_equal(frame[["step", "layer", "quality", "n"]], mean_quality(queries))
