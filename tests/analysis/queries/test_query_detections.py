"""Candidates of a many-to-one detector without their duplicates, against a loop."""

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.analysis.queries.query_detections import DUPLICATE_IOU, without_duplicates
from workbench.overlap import centred_iou


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(0, 40))
def test_the_best_of_overlapping_candidates_of_a_class_is_kept(seed: int, count: int):
    rng = np.random.default_rng(seed)
    centre = rng.integers(1, 4, (count, 2)) / 4 + rng.normal(0, 0.03, (count, 2))
    rows = pd.DataFrame({
        "image_id": rng.integers(0, 2, count), "query": rng.permutation(count), "label": rng.integers(0, 2, count),
        "score": rng.integers(0, 10, count) / 10, "cx": centre[:, 0], "cy": centre[:, 1], "w": 0.3, "h": 0.3,
    })  # fmt: skip
    kept: list[int] = []
    for index in sorted(rows.index, key=lambda i: (-rows["score"][i], rows["query"][i])):
        own = rows.loc[index]
        rivals = [rows.loc[other] for other in kept if (rows.loc[other, ["image_id", "label"]] == own[["image_id", "label"]]).all()]
        box = own[["cx", "cy", "w", "h"]].to_numpy(float)
        if all(centred_iou(box, rival[["cx", "cy", "w", "h"]].to_numpy(float)) <= DUPLICATE_IOU for rival in rivals):
            kept.append(index)
    assert without_duplicates(rows).index.tolist() == sorted(kept)
