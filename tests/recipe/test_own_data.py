"""A dataset that is read, checked and divided in one go."""

from pathlib import Path

import pytest

from workbench.datasets.coco import write_coco
from workbench.datasets.shapes import ShapesConfig, generate_shapes
from workbench.errors import ConfigError, DataError
from workbench.files import read_json, write_json
from workbench.recipe.own_data import own_data
from workbench.recipe.schema import Recipe
from workbench.recipe.setup import open_split


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(folder: Path, *splits: str, count: int = 20) -> Path:
    for split in splits:
        write_coco(generate_shapes(ShapesConfig(train=count, val=count, test=count), split), folder)
    return folder


def change(file: Path, **lists: list) -> None:
    write_json(file, {**read_json(file), **lists})


def test_one_split_becomes_three_and_a_recipe_with_them_opens_the_same_images(tmp_path: Path) -> None:
    found = own_data(write(tmp_path / "data", "train"), val=0.2, test=0.1, seed=2)
    assert found.images == {"train": 14, "val": 4, "test": 2} and found.config.format == "coco"
    values = {"name": "own", "data": found.config.model_dump(), "student": {"checkpoint": "shapes_teacher"}, "train": {"steps": 1}}
    recipe = Recipe.model_validate(values)
    for role in ("train", "val", "test"):
        opened = open_split(recipe, role)
        assert len(opened) == found.images[role]
        assert sum(found.boxes[role].values()) == sum(len(record.boxes) for record in opened.records)
    assert found.notes[0].startswith("splits made of 'all', near-duplicates together, seed 2: train 14, val 4, test 2 images.")


def test_only_a_missing_test_split_is_made_of_training_images(tmp_path: Path) -> None:
    found = own_data(write(tmp_path / "data", "train", "val"))
    assert found.images == {"train": 16, "val": 20, "test": 4}
    assert found.config.splits is not None and found.config.splits.of == "train" and found.config.splits.val == 0


def test_splits_of_the_files_are_taken_as_they_are(tmp_path: Path) -> None:
    found = own_data(write(tmp_path / "data", "train", "val", "test"))
    assert found.config.splits is None and found.notes == [] and found.images == {"train": 20, "val": 20, "test": 20}


def test_a_class_that_a_split_lacks_is_noted(tmp_path: Path) -> None:
    file = write(tmp_path / "data", "train", "val", "test") / "annotations" / "instances_val.json"
    cross = next(c["id"] for c in read_json(file)["categories"] if c["name"] == "cross")
    change(file, annotations=[box for box in read_json(file)["annotations"] if box["category_id"] != cross])
    assert own_data(tmp_path / "data").notes == ["val has no box of cross."]


def test_what_cannot_be_trained_on_is_refused_with_one_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="an empty folder"):
        (tmp_path / "empty").mkdir()
        own_data(tmp_path / "empty")
    file = write(tmp_path / "data", "train") / "annotations" / "instances_train.json"
    whole = read_json(file)
    change(file, annotations=[])
    with pytest.raises(DataError, match="20 images and not one box"):
        own_data(tmp_path / "data")
    write_json(file, {**whole, "images": whole["images"][:1], "annotations": [b for b in whole["annotations"] if b["image_id"] == 1]})
    with pytest.raises(DataError, match="cannot be made of 1 image"):
        own_data(tmp_path / "data")
    write_json(file, whole)
    (tmp_path / "data" / "images" / "train" / whole["images"][0]["file_name"]).unlink()
    with pytest.raises(DataError, match="missing image: 1 refused"):
        own_data(tmp_path / "data")
    write(tmp_path / "odd", "val", "test")
    with pytest.raises(ConfigError, match="none of them is called train"):
        own_data(tmp_path / "odd")


def test_one_class_is_no_problem(tmp_path: Path) -> None:
    write_coco(generate_shapes(ShapesConfig(train=12, classes=("ring",)), "train"), tmp_path / "data")
    found = own_data(tmp_path / "data")
    assert list(found.boxes["train"]) == ["ring"] and all(found.boxes[role]["ring"] for role in found.boxes)


@pytest.mark.parametrize("name", ["bccd", "neu_det"])
def test_real_data_with_three_splits_is_taken_as_it_is(shared_data: Path, name: str) -> None:
    found = own_data(shared_data / name)
    assert found.config.splits is None and set(found.images) == {"train", "val", "test"}
