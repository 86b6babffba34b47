"""Masks in COCO's results and over the drawn images."""

import json
from pathlib import Path

import numpy as np
import pycocotools.mask
from PIL import Image

from tests.families import tiny
from workbench.datasets.shapes import ShapesConfig, draw_image
from workbench.tasks.mask_drawing import outline, with_masks
from workbench.tasks.predict import predict


def test_results_of_a_detector_of_masks_have_the_mask_of_each_detection_on_the_original_image(tmp_path: Path):
    tiny("mask_rcnn").save(tmp_path)
    (tmp_path / "images").mkdir()
    picture = Image.fromarray(draw_image(ShapesConfig(), "val", 0)[0]).resize((120, 80))
    picture.save(tmp_path / "images" / "a.png")
    predict(str(tmp_path), tmp_path / "images", tmp_path / "out", 0.0, "cpu")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results) > 5
    for row in results:
        assert set(row) == {"image_id", "category_id", "bbox", "score", "segmentation"} and row["segmentation"]["size"] == [80, 120]
        rows, columns = np.nonzero(pycocotools.mask.decode(row["segmentation"]))
        x, y, w, h = row["bbox"]
        if len(rows):
            assert columns.min() >= x - 3 and columns.max() <= x + w + 3 and rows.min() >= y - 3 and rows.max() <= y + h + 3
    masks = np.stack([pycocotools.mask.decode(row["segmentation"]) for row in results]).any(0)
    drawn = np.asarray(Image.open(tmp_path / "out" / "drawn" / "a.png.png").convert("RGB"))
    enlarged = np.asarray(picture.resize((drawn.shape[1], drawn.shape[0]), Image.Resampling.NEAREST))
    factor = drawn.shape[0] // 80
    shown = np.kron(masks, np.ones((factor, factor), np.uint8)).astype(bool)
    assert (drawn != enlarged).any(-1)[shown].mean() > 0.95


def test_a_mask_is_filled_lightly_under_an_outline_and_the_rest_of_the_image_stays():
    image = np.full((12, 20, 3), 100, np.uint8)
    mask = np.zeros((6, 10), bool)
    mask[1:5, 2:8] = True
    drawn = with_masks(image, [(mask, "#FF0000")])
    inside = np.kron(mask, np.ones((2, 2), bool))
    border = np.zeros_like(inside)
    for y, x in np.argwhere(inside):
        border[y, x] = not (inside[y - 1, x] and inside[y + 1, x] and inside[y, x - 1] and inside[y, x + 1])
    assert (outline(inside) == border).all() and (outline(np.ones((4, 4), bool)).sum(), outline(np.ones((6, 6), bool), 2).sum()) == (12, 32)
    assert (drawn[border] == (255, 0, 0)).all() and (drawn[~inside] == 100).all() and (image == 100).all()
    assert (drawn[inside & ~border] == (143, 72, 72)).all(), "28 parts in 100 of the colour"
