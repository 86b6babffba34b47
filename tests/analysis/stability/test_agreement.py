"""Agreement target by target, by loops over the definition."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.analysis.answer_examples import random_truth
from tests.analysis.query_examples import random_queries
from workbench.analysis.detection.bootstrap import draws
from workbench.analysis.detection.targets import target_frame
from workbench.analysis.stability.agreement import agreement_by, group_agreement, teacher_agreement
from workbench.analysis.stability.churn import agreement


def with_group(seed: int) -> pd.DataFrame:
    """Student, teacher, and a teacher's group at the student's steps."""
    queries, group = random_queries(seed, steps=2, teacher_layers=4), random_queries(seed + 1, steps=2)
    return pd.concat([queries, group.assign(model="teacher_group", mate=None, mate_layer=None)], ignore_index=True)


@given(seed=st.integers(0, 10_000))
@hypothesis_settings(max_examples=8)
def test_student_and_teacher_or_its_group_agree_where_their_queries_are_mates(seed: int):
    queries = with_group(seed)
    matched = [row for row in queries.itertuples() if row.match >= 0]
    teacher = {(r.image_id, r.layer, r.match): r.query for r in matched if r.model == "teacher"}
    group = {(r.step, r.layer, r.image_id, r.match): r.query for r in matched if r.model == "teacher_group"}
    wanted_teacher, wanted_group = {}, {}
    for row in matched:
        key = row.step, row.layer, row.image_id, row.match
        if row.model == "student" and (row.image_id, row.mate_layer, row.match) in teacher:
            other = teacher[row.image_id, row.mate_layer, row.match]
            wanted_teacher[key] = (row.query, row.mate, other, row.mate == other)
        if row.model == "student" and key in group:
            wanted_group[key] = (row.query, row.mate, group[key], row.mate == group[key])
    for frame, wanted in ((teacher_agreement(queries), wanted_teacher), (group_agreement(queries), wanted_group)):
        found = {(r.step, r.layer, r.image_id, r.target): (r.query, r.mate, r.other_query, r.agrees) for r in frame.itertuples()}
        assert found == wanted


def test_shares_of_all_targets_are_those_of_the_headline():
    queries = with_group(3)
    frame = agreement_by(teacher_agreement(queries), samples=5)
    pd.testing.assert_frame_equal(frame[["step", "layer", "agreement", "n"]], agreement(queries))


@pytest.mark.parametrize("by", ["label", "size", "image_id"])
def test_shares_of_slices_are_of_their_targets_with_resampled_images(by: str):
    queries = random_queries(4, images=7, teacher_layers=4)
    targets = target_frame(random_truth(4, images=7))
    value = {(t.image_id, t.target): getattr(t, by) for t in targets.itertuples()}
    pairs = teacher_agreement(queries)
    frame = agreement_by(pairs, by, None if by == "image_id" else targets, samples=30, seed=2)
    ids = sorted(pairs["image_id"].unique())
    rows = [(r.step, r.layer, value[r.image_id, r.target], ids.index(r.image_id), r.agrees) for r in pairs.itertuples()]
    assert frame["n"].sum() == len(rows)
    for found in frame.itertuples():
        own = [(image, agrees) for *key, image, agrees in rows if key == [found.step, found.layer, getattr(found, by)]]
        assert (found.n, found.images) == (len(own), len({image for image, _ in own}))
        assert found.agreement == pytest.approx(sum(agrees for _, agrees in own) / len(own))
        sums = [(sum(c[i] for i, _ in own), sum(c[i] * a for i, a in own)) for c in draws(len(ids), 30, 2)]
        wanted = np.percentile([agreed / n for n, agreed in sums if n], [2.5, 97.5])
        assert (found.low, found.high) == pytest.approx(tuple(wanted))


def test_without_a_teachers_group_nothing_is_compared():
    pairs = group_agreement(random_queries(5, teacher_layers=4))
    assert pairs.empty and agreement_by(pairs).empty and agreement_by(pairs, "label", target_frame(random_truth(1))).empty
