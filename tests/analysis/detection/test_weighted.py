"""AP of many resamples at once has every digit of the slow way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.analysis.coco_examples import random_coco
from tests.analysis.slow_ap import slow_class_aps, slow_matches, slow_mean_ap
from workbench.analysis.detection import intervals, slices, weighted
from workbench.analysis.detection.bootstrap import draws, interval, with_all
from workbench.analysis.detection.cells import Cells
from workbench.analysis.detection.slices import CROWDING, SIZES
from workbench.analysis.detection.weighted import by_image, class_aps


@given(seed=st.integers(0, 10_000), area=st.sampled_from(["all", "medium"]), poisson=st.booleans(), block=st.sampled_from([1, 40, 1 << 19]))
@hypothesis_settings(max_examples=25)
def test_every_class_threshold_and_resample_has_the_same_bits(seed: int, area: str, poisson: bool, block: int):
    truth, detections = random_coco(seed, images=25, classes=2)
    counts = np.random.default_rng(seed).poisson(1, (9, 25)) if poisson else with_all(draws(25, 9, seed))
    counts = counts * (np.arange(25) % 3 > 0) * 1.0  # as by crowding: a third of the images never counts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weighted, "_BLOCK", block)
        for own in Cells(truth, detections).classes(area):
            assert (class_aps(own, by_image(counts)) == slow_class_aps(own, counts)).all()


def ends(values: np.ndarray, images: int) -> tuple[float, float, float]:
    found = interval(values, images)
    return found.value, found.low, found.high


@pytest.mark.parametrize("seed", [1, 2])
def test_slices_and_intervals_have_the_digits_of_the_slow_way(seed: int):
    truth, detections = random_coco(seed, images=30, classes=4, ties=False)
    counts = with_all(draws(30, 40, 5))
    found = slices.slices(truth, detections, samples=40, seed=5).set_index(["by", "slice"])
    asked = [a["image_id"] for a in truth["annotations"] if not a["iscrowd"]]
    per_image = np.array([asked.count(image["id"]) for image in truth["images"]])
    wanted = {("size", size): slow_mean_ap(slow_matches(truth, detections, size), counts) for size in SIZES}
    for name, (least, most) in CROWDING.items():
        wanted["crowding", name] = slow_mean_ap(slow_matches(truth, detections), counts * ((per_image >= least) & (per_image <= most)))
    for key, values in wanted.items():
        np.testing.assert_array_equal(found.loc[key, ["ap", "ap_low", "ap_high"]].to_numpy(float), ends(values, 30))
    numbers = intervals.coco_intervals(truth, detections, samples=40, seed=5)
    for name, area in {"ap": "all", "ap_small": "small", "ap_medium": "medium", "ap_large": "large"}.items():
        values = slow_mean_ap(slow_matches(truth, detections, area), counts)
        np.testing.assert_array_equal((numbers[name].value, numbers[name].low, numbers[name].high), ends(values, 30))
