"""Quality by slice, in loops; the released code's against the method's own."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from tests.analysis.answer_examples import random_answers, random_truth
from tests.examples import batch_of, random_output
from workbench.analysis.detection.bootstrap import draws
from workbench.analysis.detection.targets import target_frame
from workbench.analysis.queries.quality import official_quality, quality_by
from workbench.analysis.stability.churn import mean_quality
from workbench.matching import match_targets
from workbench.methods.selection import largest_iou, target_ious
from workbench.training.query_rows import RowsOf, query_rows


def test_the_released_codes_quality_is_that_of_the_method():
    output, targets = random_output(2, (3, 7)), batch_of((4, 0, 2), 3, torch.Generator().manual_seed(1))
    match = match_targets(output.logits, output.boxes, targets, output.activation)
    rows = query_rows(output, targets, match, RowsOf([5, 6, 8], "teacher")).to_pandas()
    wanted = output.logits.sigmoid().amax(-1) * largest_iou(target_ious(output, [0, 1], targets), targets)
    assert official_quality(rows).tolist() == pytest.approx(wanted.transpose(0, 1).reshape(-1).tolist(), abs=1e-6)


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
