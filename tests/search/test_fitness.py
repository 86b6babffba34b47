"""The images that a search holds out of training."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from workbench.datasets.base import Dataset
from workbench.datasets.shapes import ShapesConfig, generate_shapes
from workbench.errors import ConfigError, DataError
from workbench.files import hash_json
from workbench.search.fitness import FITNESS, fitness_split


def shapes(count: int = 50) -> Dataset:
    return generate_shapes(ShapesConfig(train=count, val=1, test=1), "train")


def rearranged(data: Dataset, order: list[int]) -> Dataset:
    return Dataset(data.name, data.split, data.classes, data.category_ids, [data.records[i] for i in order], [data.image(i) for i in order])


def test_every_image_is_held_out_or_kept(tmp_path: Path):
    data = shapes()
    split = fitness_split(data, 0.2, 0, tmp_path)
    assert len(split.held) == 10 and sorted(split.held + split.kept) == list(range(50))
    assert split.image_ids == tuple(data.records[index].image_id for index in split.held)


def test_the_draw_depends_on_seed_and_ids_and_not_on_the_order_of_the_images(tmp_path: Path):
    data = shapes()
    one = fitness_split(data, 0.2, 0, tmp_path / "one")
    assert one.image_ids == fitness_split(rearranged(data, list(range(49, -1, -1))), 0.2, 0, tmp_path / "two").image_ids
    assert one.image_ids != fitness_split(data, 0.2, 1, tmp_path / "three").image_ids


def test_the_recorded_list_is_what_counts(tmp_path: Path):
    data = shapes()
    split = fitness_split(data, 0.2, 0, tmp_path)
    values = json.loads((tmp_path / FITNESS).read_text())
    assert values["image_ids"] == list(split.image_ids) and values["hash"] == split.hash == hash_json(list(split.image_ids))
    others = [record.image_id for record in data.records if record.image_id not in split.image_ids][:10]
    (tmp_path / FITNESS).write_text(json.dumps(values | {"image_ids": others, "hash": hash_json(others)}))
    assert fitness_split(data, 0.2, 0, tmp_path).image_ids == tuple(others)


def test_a_list_of_another_search_is_refused_with_all_differences(tmp_path: Path):
    fitness_split(shapes(), 0.2, 0, tmp_path)
    before = (tmp_path / FITNESS).read_text()
    with pytest.raises(ConfigError, match=r"dataset_hash .*; share 0.2, now 0.3; seed 0, now 4"):
        fitness_split(shapes(60), 0.3, 4, tmp_path)
    assert (tmp_path / FITNESS).read_text() == before


def test_a_list_that_was_changed_by_hand_is_refused(tmp_path: Path):
    fitness_split(shapes(), 0.2, 0, tmp_path)
    values = json.loads((tmp_path / FITNESS).read_text())
    (tmp_path / FITNESS).write_text(json.dumps(values | {"image_ids": values["image_ids"][:-1]}))
    with pytest.raises(ConfigError, match="damaged"):
        fitness_split(shapes(), 0.2, 0, tmp_path)


def one_cross(data: Dataset) -> Dataset:
    """Returns the data with a single cross, on the first image."""
    records = [replace(r, labels=np.where(r.labels == 3, 0, r.labels)) for r in data.records]
    records[0] = replace(records[0], labels=np.full_like(records[0].labels, 3))
    return Dataset(data.name, data.split, data.classes, data.category_ids, records, [data.image(i) for i in range(len(data))])


@pytest.mark.parametrize("seed", range(8))
def test_a_class_must_have_boxes_on_both_sides(tmp_path: Path, seed: int):
    with pytest.raises(DataError, match=r"none has a box of cross\. Choose another seed") as error:
        fitness_split(one_cross(shapes()), 0.2, seed, tmp_path)
    assert not (tmp_path / FITNESS).exists()
    assert ("held out to measure" in str(error.value)) or ("trained on" in str(error.value))


def test_crowd_regions_and_ignore_regions_do_not_count_as_boxes(tmp_path: Path):
    data = shapes()
    records = [replace(r, crowd=r.labels == 2) for r in data.records]
    crowded = Dataset(data.name, data.split, data.classes, data.category_ids, records, [data.image(i) for i in range(len(data))])
    with pytest.raises(DataError, match="box of triangle"):
        fitness_split(crowded, 0.2, 0, tmp_path)


def test_a_share_too_small_for_one_image_holds_one_out(tmp_path: Path):
    data = generate_shapes(ShapesConfig(train=6, val=1, test=1, classes=("circle",)), "train")
    assert len(fitness_split(data, 0.01, 0, tmp_path / "a").held) == 1
    assert len(fitness_split(data, 0.99, 0, tmp_path / "b").kept) == 1
