"""The recipes of a job: choices and changes go in, the teacher shares what it has to, what comes out is a recipe."""

from pathlib import Path

import pytest
import yaml

from workbench.errors import ConfigError
from workbench.recipe.loading import load_recipe
from workbench.tasks.distill.recipes import SIZES, TEACHER, make_pair, scheduled, shipped, write_recipe
from workbench.tasks.distill.rules import Choice

DATA = {"path": "shapes", "format": "shapes", "train": "train", "val": "val", "test": "test"}
CHOICES = [
    Choice("data.transform.resize", {"height": 64, "width": 96}, "rule"),
    Choice("data.transform.augment", ["dihedral"], "rule"),
    Choice("student.extra_levels", 2, "rule"),
    Choice("train.batch_size", 4, "rule"),
]


@pytest.mark.parametrize("size", SIZES)
def test_both_recipes_hold_data_choices_and_changes(size: str, tmp_path: Path):
    pair = make_pair("job", shipped(size), None, DATA, CHOICES, {"data": {"options": {"train": 8}}, "train": {"learning_rate": 0.01}})
    assert pair.teacher is not None
    student = write_recipe(scheduled(pair.student, 400), tmp_path / "student.yaml", "heading")
    teacher = write_recipe(scheduled(pair.teacher, 800), tmp_path / TEACHER, "heading")
    for recipe, steps in ((student, 400), (teacher, 800)):
        assert recipe.data.path == "shapes" and recipe.data.options == {"train": 8}
        assert recipe.data.transform.model_dump()["resize"] == {"height": 64, "width": 96}
        assert recipe.train.batch_size == 4 and recipe.student.model_dump()["extra_levels"] == 2
        assert (recipe.train.steps, recipe.train.evaluate_every) == (steps, steps // 8)
    assert student.train.learning_rate == 0.01 != teacher.train.learning_rate, "a change of training is the student's"
    assert student.name == "job" and teacher.name == "job-teacher"
    assert student.methods and not load_recipe(tmp_path / "student.yaml", arm="undistilled").methods


def test_a_given_teacher_takes_the_place_of_the_recipe_that_would_train_it():
    pair = make_pair("job", shipped("small"), "some-run", DATA, CHOICES, {})
    assert pair.teacher is None and pair.student["teacher"] == {"checkpoint": "some-run"}


def test_a_choice_replaces_another_kind_of_size(tmp_path: Path):
    path = tmp_path / "own.yaml"
    values = yaml.safe_load(shipped("tiny").read_text())
    path.write_text(yaml.safe_dump(values | {"data": {"transform": {"resize": {"shortest": [64], "longest": 96}}}}))
    pair = make_pair("job", path, None, DATA, CHOICES[:1], {})
    assert pair.student["data"]["transform"]["resize"] == {"height": 64, "width": 96}


def test_a_recipe_without_methods_is_refused(tmp_path: Path):
    path = tmp_path / "own.yaml"
    path.write_text((shipped("tiny").parent / "teacher.yaml").read_text())
    with pytest.raises(ConfigError, match="no 'methods:'"):
        make_pair("job", path, None, DATA, [], {})


def test_the_warm_up_fits_a_short_schedule():
    assert scheduled({"train": {"warmup": 100}}, 200)["train"]["warmup"] == 20
    assert scheduled({"train": {"warmup": 100}}, 4000)["train"]["warmup"] == 100


def test_a_wrong_change_is_named_by_its_key(tmp_path: Path):
    pair = make_pair("job", shipped("tiny"), None, DATA, CHOICES, {"train": {"stepps": 3}})
    with pytest.raises(ConfigError, match=r"train.*stepps.*did you mean 'steps'"):
        write_recipe(pair.student, tmp_path / "student.yaml", "heading")
