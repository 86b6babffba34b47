"""Recipes: what is refused, what an arm and an override change, and what the hash of a table depends on."""

import copy
from pathlib import Path

import pytest

from workbench.errors import ConfigError
from workbench.methods.detrdistill.config import DETRDistillConfig
from workbench.recipe.loading import load_recipe, stored_recipe
from workbench.resources import share_path

SHAPES = share_path("recipes") / "shapes.yaml"
SHIPPED = sorted(path for path in share_path("recipes").rglob("*.yaml") if path.parent.name not in ("checkpoints", "search"))


@pytest.mark.parametrize(("override", "near"), [
    ("train.stesp=100", "did you mean 'steps'"),
    ("student.widht=32", "did you mean 'width'"),
    ("student.backbone.widhts=[16]", "did you mean 'widths'"),
    ("data.transform.agument=[flip]", "did you mean 'augment'"),
    ("techer.checkpoint=x", "did you mean 'teacher'"),
])  # fmt: skip
def test_an_unknown_key_is_refused_with_the_nearest_valid_name(override: str, near: str):
    with pytest.raises(ConfigError, match=near):
        load_recipe(SHAPES, [override])


def test_a_wrong_type_is_refused_with_its_place_and_value():
    with pytest.raises(ConfigError, match=r"train\.steps: .*'many'"):
        load_recipe(SHAPES, ["train.steps=many"])


def test_an_override_reads_numbers_lists_and_the_exponents_that_yaml_takes_for_text():
    recipe = load_recipe(SHAPES, ["train.learning_rate=2e-3", "train.drops=[0.5, 0.9]", "train.steps=7"])
    assert (recipe.train.learning_rate, recipe.train.drops, recipe.train.steps) == (2e-3, (0.5, 0.9), 7)
    with pytest.raises(ConfigError, match="must look like"):
        load_recipe(SHAPES, ["train.steps"])


def test_methods_without_a_teacher_are_refused():
    with pytest.raises(ConfigError, match="methods need a teacher"):
        load_recipe(SHAPES, ["teacher=null"])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_with_each_of_its_arms(path: Path):
    recipe = load_recipe(path)
    for arm in (*recipe.arms, recipe.own_arm):
        assert load_recipe(path, arm=arm).name == recipe.name


def test_the_hash_follows_what_decides_a_result_and_not_the_seed_the_place_or_other_arms():
    base = load_recipe(SHAPES).hash()
    same = [["seed=5"], ["data.path=elsewhere"], ["train.workers=2"], ["arms.new.train.steps=1"], ["note=other"], ["train.optimizer=adamw"]]
    assert {load_recipe(SHAPES, change).hash() for change in same} == {base}
    assert base not in {
        load_recipe(SHAPES, [change]).hash() for change in ("train.steps=1", "student.width=64", "methods=[]", "train.optimizer=sgd")
    }


def test_a_checkpoint_given_by_override_takes_the_place_of_a_described_student():
    recipe = load_recipe(SHAPES, ["student.checkpoint=shapes_teacher", "student.head=reset"])
    assert recipe.student.model_dump() == {"checkpoint": "shapes_teacher", "head": "reset"}


def test_a_stored_recipe_is_without_the_parts_it_does_not_name_and_at_the_defaults_of_other_settings_that_came_later():
    recipe = load_recipe(share_path("recipes") / "shapes.yaml")
    stored = recipe.model_dump(mode="json")
    assert stored_recipe(stored, "run") == recipe
    older = copy.deepcopy(stored)
    (method,) = older["methods"]
    for settings, key in ((older, "class_map"), (method, "assignment"), (method, "depth"), (older["train"], "keep")):
        del settings[key]
    assert stored_recipe(older, "run") == recipe, "the recipe says 'assignment: null', and the rest is at its defaults"
    with pytest.raises(ConfigError, match=r"run:\n.*train\.stepz"):
        stored_recipe({**stored, "train": {**stored["train"], "stepz": 3}}, "run")


def test_a_profile_fills_in_nothing_that_a_stored_run_was_made_without():
    today = load_recipe(share_path("recipes") / "published" / "coco_adamixer_detrdistill.yaml")
    older = today.model_dump(mode="json")
    (method,) = older["methods"]
    assert method["profile"] == "paper" and method["logits"].pop("negative_cost") == "box"
    (then,) = stored_recipe(older, "run").methods
    assert isinstance(then, DETRDistillConfig) and then.logits is not None and then.logits.negative_cost == "class_and_box"
    assert stored_recipe(older, "run").hash() != today.hash()
    released = load_recipe(share_path("recipes") / "published" / "coco_deformable_detr_detrdistill.yaml").model_dump(mode="json")
    del released["methods"][0]["depth"]
    (then,) = stored_recipe(released, "run").methods
    assert isinstance(then, DETRDistillConfig) and then.depth == "groups", "the default of the setting, not the profile's 'first'"
