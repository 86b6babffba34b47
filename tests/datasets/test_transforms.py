"""Augmentation: replayable, and boxes that follow the pixels."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from workbench.datasets.base import Record
from workbench.datasets.transforms import Crop, Op, Sample, Transform, TransformConfig

EVERYTHING = Transform(
    TransformConfig.model_validate(
        {
            "augment": ["flip", "dihedral", {"op": "crop", "probability": 1.0, "min": 0.2}, "color"],
            "resize": {"shortest": [20, 33], "longest": 50},
        }
    )
)


def record(width: int, height: int, boxes: np.ndarray) -> Record:
    count = len(boxes)
    none = np.zeros(count, bool)
    return Record(1, "a.png", width, height, boxes, np.arange(count), none, none, np.arange(1, count + 1), np.ones(count))


def xyxy(sample: Sample) -> np.ndarray:
    """Boxes in pixels of the sample's image."""
    height, width = sample.image.shape[:2]
    centre, half = sample.boxes[:, :2].astype(float), sample.boxes[:, 2:].astype(float) / 2
    return np.concatenate([centre - half, centre + half], axis=1) * [width, height, width, height]


def picture(width: int, height: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """Black, white inside ``box``."""
    image = np.zeros((height, width, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    return image


def extent(image: np.ndarray) -> list[int]:
    """The box of what is white, by looking at every pixel."""
    rows, columns = np.nonzero(image[..., 0])
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@st.composite
def pictures(draw: st.DrawFn) -> tuple[np.ndarray, Record]:
    width, height = draw(st.integers(5, 40)), draw(st.integers(5, 40))
    image = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (height, width, 3), dtype=np.uint8)
    boxes = []
    for _ in range(draw(st.integers(0, 4))):
        x, y = (sorted(draw(st.tuples(st.floats(0, side), st.floats(0, side)))) for side in (width, height))
        boxes.append([x[0], y[0], x[1], y[1]])
    return image, record(width, height, np.array(boxes, float).reshape(-1, 4))


@given(pictures(), st.integers(0, 10_000))
def test_operations_written_as_json_give_the_same_bytes_again(data: tuple[np.ndarray, Record], seed: int) -> None:
    image, rec = data
    ops = EVERYTHING.draw(np.random.default_rng(seed), rec.width, rec.height)
    first, again = EVERYTHING.apply(image, rec, ops), EVERYTHING.apply(image, rec, json.loads(json.dumps(ops)))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.boxes.tobytes() == again.boxes.tobytes()
    assert (first.valid == again.valid).all() and (first.labels == again.labels).all()


@given(pictures(), st.integers(0, 10_000))
def test_every_target_keeps_its_index_and_boxes_stay_inside_the_image(data: tuple[np.ndarray, Record], seed: int) -> None:
    image, rec = data
    sample = EVERYTHING.apply(image, rec, EVERYTHING.draw(np.random.default_rng(seed), rec.width, rec.height))
    assert len(sample.boxes) == len(sample.valid) == len(rec.boxes)
    assert sample.labels.tolist() == rec.labels.tolist()
    corners = xyxy(sample) / ([sample.image.shape[1], sample.image.shape[0]] * 2)
    assert (corners >= -1e-6).all() and (corners <= 1 + 1e-6).all()
    assert (sample.boxes[:, 2:] >= 0).all() and sample.boxes.dtype == np.float32
    assert sample.image.dtype == np.uint8


@given(pictures(), st.integers(0, 10_000))
def test_drawn_sizes_are_those_that_applying_gives(data: tuple[np.ndarray, Record], seed: int) -> None:
    image, rec = data
    ops = EVERYTHING.draw(np.random.default_rng(seed), rec.width, rec.height)
    height, width = EVERYTHING.apply(image, rec, ops).image.shape[:2]
    assert min(height, width) in (20, 33) or max(height, width) == 50


@given(pictures())
def test_flipping_twice_changes_nothing(data: tuple[np.ndarray, Record]) -> None:
    image, rec = data
    once, twice = (Transform().apply(image, rec, [{"op": "flip"}] * times) for times in (1, 2))
    nothing = Transform().apply(image, rec, [])
    assert (twice.image == image).all()
    np.testing.assert_allclose(twice.boxes, nothing.boxes, atol=1e-7)
    np.testing.assert_allclose(once.boxes[:, 0], 1 - nothing.boxes[:, 0], atol=1e-7)


@pytest.mark.parametrize("move", range(8))
def test_each_dihedral_move_takes_the_box_where_the_pixels_go(move: int) -> None:
    for box in [(2, 1, 5, 3), (0, 0, 1, 7), (6, 4, 11, 7)]:
        rec = record(11, 7, np.array([box], float))
        sample = Transform().apply(picture(11, 7, box), rec, [{"op": "dihedral", "move": move}])
        assert sample.image.shape[:2] == ((11, 7) if move >= 4 else (7, 11))
        np.testing.assert_allclose(xyxy(sample)[0], extent(sample.image), atol=1e-5)


def test_the_eight_dihedral_moves_are_eight_different_pictures() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    rec = record(2, 2, np.zeros((0, 4)))
    assert len({Transform().apply(image, rec, [{"op": "dihedral", "move": move}]).image.tobytes() for move in range(8)}) == 8


def test_dihedral_and_flip_draw_every_move_about_equally_often() -> None:
    transform = Transform(TransformConfig.model_validate({"augment": ["flip", "dihedral"]}))
    rng = np.random.default_rng(0)
    drawn = [tuple(op.get("move", "flip") for op in transform.draw(rng, 9, 9)) for _ in range(1600)]
    counts = [drawn.count(tuple(flip + move)) for flip, move in itertools.product(([], ["flip"]), ([], *([m] for m in range(1, 8))))]
    assert sum(counts) == 1600
    assert all(60 < count < 145 for count in counts)


@given(st.integers(0, 7), st.integers(0, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 8), st.integers(0, 6), st.integers(1, 3))
def test_a_crop_cuts_boxes_as_it_cuts_pixels_and_marks_absent_what_it_takes_away(
    x: int, y: int, width: int, height: int, bx: int, by: int, side: int
) -> None:
    box = (bx, by, bx + side, by + side)
    op: Op = {"op": "crop", "x": x, "y": y, "width": width, "height": height}
    sample = Transform().apply(picture(11, 9, box), record(11, 9, np.array([box], float)), [op])
    assert sample.image.shape[:2] == (height, width)
    assert sample.valid[0] == sample.image.any()
    if sample.valid[0]:
        np.testing.assert_allclose(xyxy(sample)[0], extent(sample.image), atol=1e-5)


def test_less_than_one_pixel_left_by_a_crop_is_absent_but_a_small_target_is_not_absent_by_itself() -> None:
    rec = record(20, 20, np.array([[0, 0, 5.9, 10], [0, 0, 6.1, 10], [6, 6, 6.5, 9]]))
    image = np.zeros((20, 20, 3), np.uint8)
    assert Transform().apply(image, rec, [{"op": "crop", "x": 5, "y": 0, "width": 15, "height": 20}]).valid.tolist() == [False, True, False]
    assert Transform().apply(image, rec, [{"op": "resize", "width": 5, "height": 5}]).valid.all()


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 1000))
def test_crops_lie_inside_the_image_and_have_sides_between_min_and_max(width: int, height: int, seed: int) -> None:
    transform = Transform(TransformConfig(augment=(Crop(probability=1.0, min=0.3, max=0.8),)))
    (op,) = transform.draw(np.random.default_rng(seed), width, height)
    assert 0 <= op["x"] <= width - op["width"] and 0 <= op["y"] <= height - op["height"]
    for side, whole in ((op["width"], width), (op["height"], height)):
        assert max(1, round(0.3 * whole)) <= side <= max(1, round(0.8 * whole))


def test_resizing_keeps_boxes_relative_to_the_image_and_shrinks_with_a_wide_filter() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, ::2] = 255  # stripes of one pixel must average out, not alias
    sample = Transform().apply(image, record(64, 64, np.array([[16, 8, 48, 24.0]])), [{"op": "resize", "width": 16, "height": 8}])
    np.testing.assert_allclose(sample.boxes, [[0.5, 0.25, 0.5, 0.25]], atol=1e-7)
    assert abs(sample.image.astype(int) - 127).max() < 40


@pytest.mark.parametrize(
    ("size", "expected"), [((640, 480), (1067, 800)), ((480, 640), (800, 1067)), ((1000, 300), (1333, 400)), ((800, 800), None)]
)
def test_the_shorter_side_is_resized_as_in_detr(size: tuple[int, int], expected: tuple[int, int] | None) -> None:
    transform = Transform(TransformConfig.model_validate({"resize": {"shortest": [480, 800], "longest": 1333}}))
    wanted = [] if expected is None else [{"op": "resize", "width": expected[0], "height": expected[1]}]
    assert transform.evaluation_ops(*size) == wanted


def test_training_draws_every_listed_size_and_evaluation_takes_the_largest() -> None:
    transform = Transform(TransformConfig.model_validate({"resize": {"shortest": [30, 10, 20], "longest": 99}}))
    rng = np.random.default_rng(0)
    drawn = {op["width"] for _ in range(60) for op in transform.draw(rng, 50, 50)}
    assert drawn == {10, 20, 30}
    assert transform.evaluation_ops(50, 50) == [{"op": "resize", "width": 30, "height": 30}]


@settings(max_examples=30)
@given(st.integers(820, 1228), st.integers(820, 1228), st.integers(820, 1228))
def test_colour_factors_do_what_the_formulas_say(brightness: int, contrast: int, saturation: int) -> None:
    image = np.random.default_rng(0).integers(60, 170, (6, 5, 3), dtype=np.uint8)  # far enough from 0 and 255 that nothing is cut
    op: Op = {"op": "color", "brightness": brightness, "contrast": contrast, "saturation": saturation}
    got = Transform().apply(image, record(5, 6, np.zeros((0, 4))), [op]).image
    bright = image * (brightness / 1024)
    contrasted = bright.mean() + (bright - bright.mean()) * (contrast / 1024)
    grey = (contrasted * [0.299, 0.587, 0.114]).sum(2, keepdims=True)
    expected = np.clip(grey + (contrasted - grey) * (saturation / 1024), 0, 255)
    assert abs(got - expected).max() < 5


def test_neutral_colour_factors_change_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    op: Op = {"op": "color", "brightness": 1024, "contrast": 1024, "saturation": 1024}
    assert (Transform().apply(image, record(5, 6, np.zeros((0, 4))), [op]).image == image).all()


def test_the_source_image_is_never_written_to() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    image.flags.writeable = False
    rec = record(20, 30, np.array([[1, 2, 10, 20.0]]))
    before = rec.boxes.copy()
    for seed in range(20):
        EVERYTHING.apply(image, rec, EVERYTHING.draw(np.random.default_rng(seed), 20, 30))
    assert (rec.boxes == before).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"augment": ["spin"]},
        {"augment": [{"op": "crop", "size": 3}]},
        {"augment": [{"op": "crop", "min": 0.9, "max": 0.5}]},
        {"resize": {"height": 3}},
        {"resize": {"shortest": [], "longest": 9}},
        {"resize": {"height": 3, "width": 3, "longest": 9}},
        {"std": [1, 0, 1]},
        {"flip": True},
    ],
)
def test_a_wrong_configuration_is_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        TransformConfig.model_validate(wrong)
