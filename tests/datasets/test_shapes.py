"""The embedded generator: the same bytes everywhere, boxes that fit what is drawn."""

import hashlib
import math

import numpy as np
import pytest
from pydantic import ValidationError

from workbench.datasets import shapes
from workbench.datasets.shapes import SPLITS, ShapesConfig, draw_image, generate_shapes
from workbench.errors import DataError

GOLDEN = {
    "train": "835342a78f4375517e94fa27aaaa78e2fd9d1a1138fcc2452e8ba79f9e70d8e8",
    "val": "4a113dafec81728f5450fd7330d6316eb166e8f088280a8d9fa549c7d4f34fda",
    "test": "8db4a4719b1db6f2c0e81da1945d34d1626b0a79f66473d845955eb21dbdfa1e",
}


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """No texture, no noise: what differs from the ground colour is shape."""
    monkeypatch.setattr(shapes, "_NOISE", 0)
    monkeypatch.setattr(shapes, "_texture", lambda random, size, bits, amplitude: np.zeros((size, size, 3), np.int32))


@pytest.mark.parametrize("split", SPLITS)
def test_a_seed_gives_the_same_bytes_on_every_machine(split: str) -> None:
    digest = hashlib.sha256()
    for index in (0, 1, 2, 299):
        for array in draw_image(ShapesConfig(), split, index):
            digest.update(array.tobytes())
    assert digest.hexdigest() == GOLDEN[split]


def test_an_image_does_not_depend_on_how_many_are_made() -> None:
    few, more = (generate_shapes(ShapesConfig(train=count), "train") for count in (3, 6))
    for i in range(3):
        assert (few.image(i) == more.image(i)).all()
        assert (few.records[i].boxes == more.records[i].boxes).all()
    assert few.hash() != more.hash()


def test_seeds_and_splits_differ() -> None:
    drawn = {draw_image(ShapesConfig(seed=seed), split, 0)[0].tobytes() for seed in (0, 1) for split in SPLITS}
    assert len(drawn) == 6


def test_the_default_has_2000_300_and_500_images_of_96_pixels_and_four_classes() -> None:
    config = ShapesConfig()
    assert (config.train, config.val, config.test, config.size, len(config.classes)) == (2000, 300, 500, 96, 4)
    dataset = generate_shapes(config, "val")
    assert len(dataset) == 300
    counts = [len(record.boxes) for record in dataset.records]
    assert min(counts) >= 1 and max(counts) == 6
    labels = np.concatenate([record.labels for record in dataset.records])
    assert (np.bincount(labels, minlength=4) / len(labels) > 0.2).all()
    assert all(dataset.image(i).shape == (96, 96, 3) and dataset.image(i).dtype == np.uint8 for i in range(10))


@pytest.mark.usefixtures("flat")
@pytest.mark.parametrize("name", ["circle", "square", "triangle", "cross", "ring", "bar"])
def test_a_box_is_tight_around_what_is_drawn(name: str) -> None:
    config = ShapesConfig(classes=(name,), max_objects=1)  # type: ignore[arg-type]
    for index in range(30):
        image, boxes, labels = draw_image(config, "train", index)
        values, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
        rows, columns = np.nonzero((image != values[counts.argmax()]).any(2))
        assert boxes.tolist() == [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]
        assert labels.tolist() == [0]


@pytest.mark.usefixtures("flat")
@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("circle", math.pi / 4),
        ("square", 1),
        ("triangle", 1 / 2),
        ("cross", 1 - (5 / 8) ** 2),
        ("ring", math.pi / 4 * 3 / 4),
        ("bar", 1 / 3),
    ],
)
def test_a_shape_has_the_area_of_its_formula_narrowed_by_at_most_a_quarter(name: str, share: float) -> None:
    config = ShapesConfig(classes=(name,), max_objects=1, min_size=40, max_size=40)  # type: ignore[arg-type]
    checked = 0
    for index in range(60):
        image, boxes, _ = draw_image(config, "train", index)
        if boxes.min() < 1 or boxes.max() > 95:
            continue  # cut by the border
        values, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
        weight = abs(image.astype(int) - values[counts.argmax()]).sum(2)
        area = (weight / weight.max()).sum()
        assert 0.72 * share * 1600 < area < 1.03 * share * 1600
        checked += 1
    assert checked > 5


@pytest.mark.usefixtures("flat")
def test_of_every_shape_about_30_percent_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    painted: list[int] = []

    def paint(random: object, canvas: np.ndarray, texture: np.ndarray, coverage: np.ndarray) -> None:
        painted.append(int((coverage >= 2).sum()))
        canvas[coverage >= 2] = (len(painted), 255, 0)

    monkeypatch.setattr(shapes, "_paint", paint)
    hidden = 0
    for index in range(150):
        painted.clear()
        image, boxes, _ = draw_image(ShapesConfig(min_objects=6), "train", index)
        assert len(painted) == len(boxes)
        for k, (area, box) in enumerate(zip(painted, boxes.astype(int), strict=True), start=1):
            x1, y1, x2, y2 = box
            shown = (image[y1:y2, x1:x2] == (k, 255, 0)).all(2)
            assert shown.sum() == (image == (k, 255, 0)).all(2).sum(), "drawn outside its box"
            assert shown.sum() >= 0.26 * area
            hidden += shown.sum() < area
    assert hidden > 50, "shapes are meant to occlude each other"


def test_size_classes_object_sizes_and_counts_can_be_chosen() -> None:
    config = ShapesConfig(size=64, classes=("ring", "bar"), min_objects=2, max_objects=2, min_size=8, max_size=12, test=40)
    dataset = generate_shapes(config, "test")
    assert dataset.classes == ("ring", "bar") and dataset.category_ids == (1, 2)
    assert dataset.image(0).shape == (64, 64, 3)
    assert {len(record.boxes) for record in dataset.records} == {2}
    sides = np.concatenate([record.boxes[:, 2:] - record.boxes[:, :2] for record in dataset.records])
    assert sides.max() <= 12 * math.sqrt(2) + 2


def test_a_large_image_is_drawn_without_overflow() -> None:
    image, boxes, _ = draw_image(ShapesConfig(size=1024, classes=("ring",), max_objects=1, min_size=1000, max_size=1024), "train", 1)
    assert image.shape == (1024, 1024, 3)
    assert (boxes[0, 2:] - boxes[0, :2] > 500).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"sizes": 3},
        {"classes": ("star",)},
        {"classes": ()},
        {"classes": ("bar", "bar")},
        {"min_objects": 7},
        {"max_size": 97},
        {"min_size": 50},
        {"train": -1},
    ],
)
def test_a_wrong_configuration_is_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        ShapesConfig(**wrong)


def test_an_unknown_split_is_refused_with_the_names_of_those_there_are() -> None:
    with pytest.raises(DataError, match="train, val, test"):
        generate_shapes(ShapesConfig(), "valid")
