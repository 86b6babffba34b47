import numpy as np
import pytest

from tests.analysis.coco_examples import random_coco
from workbench.analysis.detection.ap import coco_ap
from workbench.analysis.detection.contribution import image_contributions


def without(truth, detections, image):
    kept = {
        **truth,
        "images": [one for one in truth["images"] if one["id"] != image],
        "annotations": [one for one in truth["annotations"] if one["image_id"] != image],
    }
    return kept, detections[detections["image_id"] != image]


@pytest.mark.parametrize("seed", range(4))
def test_a_contribution_is_ap50_with_all_images_minus_ap50_of_a_data_set_without_the_image(seed):
    truth, detections = random_coco(seed)
    whole = coco_ap(truth, detections, "pycocotools").ap50
    found = image_contributions(truth, detections).set_index("image_id")["contribution"]
    assert list(found.index) == sorted(image["id"] for image in truth["images"])
    for image in found.index:
        expected = whole - coco_ap(*without(truth, detections, image), "pycocotools").ap50
        assert found[image] == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_images_counted_in_small_tables_give_the_same(monkeypatch):
    truth, detections = random_coco(1)
    at_once = image_contributions(truth, detections)
    monkeypatch.setattr("workbench.analysis.detection.contribution._AT_ONCE", 1)
    assert np.array_equal(image_contributions(truth, detections), at_once, equal_nan=True)
