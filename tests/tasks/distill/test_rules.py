"""Settings chosen from the data: sizes at which boxes stay visible, levels that reach the large ones, queries for all of them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.datasets.base import Dataset
from workbench.datasets.opening import open_dataset
from workbench.errors import DataError
from workbench.tasks.distill.rules import LARGEST, LEAST_SIDE, MULTIPLE, Choice, Facts, choose, facts_of

GFL = {"family": "gfl", "backbone": {"levels": [2, 3]}, "extra_levels": 1, "anchor_scale": 4.0}


def facts(width: float = 640, height: float = 480, shorter: float = 0.1, longer: float = 0.2, **others: object) -> Facts:
    sides = [np.full(20, share) for share in (shorter, longer)]
    return replace(Facts(100, width, height, ("cell",), sides[0], sides[1], 7), **others)  # pyright: ignore[reportArgumentType]


def chosen(found: Facts, student: dict[str, object] = GFL) -> dict[str, Choice]:
    return {choice.key: choice for choice in choose(found, student)}


def test_facts_are_read_from_the_boxes_that_are_trained_on():
    data = open_dataset("shapes", "train", train=12, val=4, test=4)
    found = facts_of(data)
    sides = [sorted((box[2:] - box[:2]) / 96) for record in data.records for box in record.boxes]
    assert found.images == 12 and (found.width, found.height) == (96, 96) and found.classes == data.classes
    assert np.allclose(found.shorter, [low for low, _ in sides]) and np.allclose(found.longer, [high for _, high in sides])
    assert found.most == max(len(record.boxes) for record in data.records)


def test_data_without_a_box_is_refused():
    data = open_dataset("shapes", "train", train=4, val=4, test=4)
    empty = [replace(record, crowd=np.ones_like(record.crowd)) for record in data.records]
    with pytest.raises(DataError, match="no box to train on"):
        facts_of(Dataset("shapes", "train", data.classes, data.category_ids, empty, [data.image(i) for i in range(4)]))


@given(st.integers(64, 4000), st.integers(64, 4000), st.floats(0.005, 0.9))
def test_small_boxes_stay_visible_unless_the_images_or_the_limit_are_smaller(width: int, height: int, share: float):
    size = chosen(facts(width, height, shorter=share))["data.transform.resize"].value
    longest = max(size.values())
    assert all(side % MULTIPLE == 0 and side >= MULTIPLE for side in size.values()) and longest <= max(LARGEST, 96)
    limited = longest + MULTIPLE > min(max(width, height), LARGEST)
    assert limited or share * longest >= LEAST_SIDE - 1e-6
    # one multiple less would make them too small, or the least size is reached
    assert longest <= 96 or limited or share * (longest - MULTIPLE) < LEAST_SIDE + 1e-6
    # the shape of the images is kept within a multiple, but for sides that would vanish
    shorter = min(size.values())
    assert shorter == MULTIPLE or abs(shorter - longest * min(width, height) / max(width, height)) <= MULTIPLE


def test_a_mirrored_arrow_would_be_of_another_class():
    assert chosen(facts(classes=("cell",)))["data.transform.augment"].value == ["flip"]
    choice = chosen(facts(classes=("sign", "Turn left")))["data.transform.augment"]
    assert choice.value == [] and "Turn left" in choice.rule


@pytest.mark.parametrize(("longer", "levels"), [(0.1, 1), (0.7, 1), (0.99, 2)])
def test_the_last_level_reaches_large_boxes(longer: float, levels: int):
    # 224 pixels: anchors of 4 strides have 128 pixels at stride 32 and 256 at stride 64; one of 1.5 times the anchor is reached
    found = facts(500, 500, shorter=0.11, longer=longer)
    assert chosen(found)["data.transform.resize"].value == {"height": 224, "width": 224}
    assert chosen(found)["student.extra_levels"].value == levels


def test_only_a_student_with_queries_gets_their_number():
    assert "student.queries" not in chosen(facts())
    found = chosen(facts(most=33), {"family": "detr", "queries": 100})
    assert found["student.queries"].value == 50 and "student.extra_levels" not in found


def test_the_batch_is_small_where_images_are_few():
    assert [chosen(facts(images=count))["train.batch_size"].value for count in (399, 400)] == [8, 16]
