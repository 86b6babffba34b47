"""Matching of all cells at once is hotcoco's and pycocotools'."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.analysis.coco_examples import random_coco
from tests.analysis.slow_ap import slow_matches
from workbench.analysis.detection.ap import AREAS
from workbench.analysis.detection.cells import Cells


@given(seed=st.integers(0, 10_000), area=st.sampled_from(list(AREAS)))
@hypothesis_settings(max_examples=25)
def test_every_class_and_size_is_matched_as_the_reference_does(seed: int, area: str):
    truth, detections = random_coco(seed, ties=False, classes=4)
    found, wanted = list(Cells(truth, detections).classes(area)), list(slow_matches(truth, detections, area))
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert (one.image == other.image).all() and (one.targets == other.targets).all()
        assert (one.hit == other.hit).all() and (one.counted == other.counted).all()


@pytest.mark.parametrize("most", [10, 100])
def test_the_cut_keeps_the_best_of_each_image_and_class(most: int):
    truth, detections = random_coco(2, images=3, classes=1, ties=False)
    rng = np.random.default_rng(0)
    many = detections.loc[rng.integers(0, len(detections), 90)].reset_index(drop=True).assign(score=rng.random(90))
    (found,), (wanted,) = Cells(truth, many, most).classes(), slow_matches(truth, many, most=most)
    assert np.bincount(found.image).max() == min(most, many.groupby("image_id").size().max())
    assert (found.image == wanted.image).all() and (found.hit == wanted.hit).all()


def test_a_split_without_detections_or_targets_has_nothing_to_match():
    truth, detections = random_coco(3)
    for own in Cells(truth, detections.iloc[:0]).classes():
        assert own.hit.shape == (10, 0) and own.targets.sum() > 0
    assert all(not own.hit.any() and not own.targets.any() for own in Cells({**truth, "annotations": []}, detections).classes())
