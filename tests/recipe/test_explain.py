"""What a recipe can hold is explained from its models, and what one holds is shown so that it loads again."""

import json
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, Field

from tests.flows import command
from workbench.errors import ConfigError
from workbench.files import read_json
from workbench.methods import registry
from workbench.methods.method import BaseMethodConfig, Method
from workbench.methods.registry import METHODS, register
from workbench.recipe.explain import Row, as_yaml, explain, sections
from workbench.recipe.loading import load_recipe, parse_recipe
from workbench.recipe.schema import Recipe, TrainConfig
from workbench.recipe.writing import DEFAULT, recipe_yaml
from workbench.resources import share_path

RECIPES = share_path("recipes")
SHIPPED = sorted(path for path in RECIPES.rglob("*.yaml") if path.parent.name not in ("checkpoints", "search"))


def test_a_key_is_explained_with_its_type_default_bounds_and_text():
    assert explain("train.steps") == [Row("train.steps", "whole number", "required", "> 0", "Number of optimiser steps.")]
    (ema,) = explain("train.ema")
    assert (ema.type, ema.default, ema.bounds) == ("number", "0.0", ">= 0, < 1")
    assert ema.text.startswith("Decay of the averaged weights; 0 turns averaging off.")


def test_a_section_is_explained_with_the_keys_right_below_it():
    assert [row.key for row in explain()] == list(Recipe.model_fields)
    assert [row.key for row in explain("train")] == ["train", *(f"train.{name}" for name in TrainConfig.model_fields)]


@pytest.mark.parametrize(
    ("key", "type", "default", "bounds"),
    [
        ("train.schedule", "cosine, step or constant", "cosine", ""),
        ("train.class_weight", "number or null", "null", "> 0"),
        ("layer_map", "list of lists of whole numbers or null", "null", ""),
        ("data.transform.std", "list of 3 numbers", "[0.229, 0.224, 0.225]", "each > 0"),
        ("data.transform.resize.shortest", "list of whole numbers", "required", "at least 1 entry, each >= 1, each <= 8192"),
        ("data.transform.augment.crop.min", "number", "0.64", "> 0, <= 1"),
        ("data.options.shapes.classes", "list of circle, square, triangle, cross, ring or bar", "[circle, square, triangle, cross]",
         "at least 1 entry"),
        ("student.checkpoint", "text", "required", ""),
        ("student.detr.family", "detr", "required", ""),
        ("student.dino.queries", "whole number", "900", ">= 1"),
        ("student.d_fine.points", "whole number or list of whole numbers", "4", ""),
        ("student.deimv2.bins", "whole number", "32", ">= 4, a multiple of 2"),
        ("teacher.recipe", "text", "required", ""),
        ("methods.fgd.balance", "number, mapping of names to numbers or null", "null", ">= 0"),
        ("methods.detrdistill.features.mask_padding", "true or false", "true", ""),
        ("arms", "mapping of names to mappings", "{}", ""),
    ],
)  # fmt: skip
def test_types_defaults_and_bounds_are_in_plain_words(key: str, type: str, default: str, bounds: str):
    row, *below = explain(key)
    assert (row.type, row.default, row.bounds, below) == (type, default, bounds, [])


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("trian", "did you mean 'train'?"),
        ("train.stesp", "did you mean 'train.steps'?"),
        ("student.dnio", "did you mean 'student.dino'?"),
        ("methods.detrdistil.features", "did you mean 'methods.detrdistill'?"),
        ("zzz", "keys there: name, note"),
        ("train.steps.more", "train.steps has no keys below it"),
        ("methods.temperature", "explain one of methods.fgd.temperature"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, words: str):
    with pytest.raises(ConfigError) as caught:
        explain(key)
    assert words in str(caught.value)


def test_every_default_that_is_shown_is_the_default():
    """Read from the shown YAML, each section is what its model makes of nothing but its required values."""
    shown = {row.key: row for _, rows, _ in sections() for row in rows}
    assert len(shown) > 300
    defaults = {key: yaml.safe_load(row.default) for key, row in shown.items() if row.default not in ("", "required")}
    names = TrainConfig.model_fields.keys() - {"steps"}
    assert TrainConfig(steps=1) == TrainConfig(steps=1, **{name: defaults[f"train.{name}"] for name in names})
    for name in METHODS:
        values = {key.rpartition(".")[2]: value for key, value in defaults.items() if key.rpartition(".")[0] == f"methods.{name}"}
        (method,) = parse_recipe(minimal() | {"methods": [{"method": name, **values}]}, "test").methods
        (plain,) = parse_recipe(minimal() | {"methods": [{"method": name}]}, "test").methods
        assert method == plain


def minimal() -> dict[str, object]:
    return {"name": "a", "data": {}, "student": {"checkpoint": "x"}, "teacher": {"checkpoint": "y"}, "train": {"steps": 1}}


def test_a_place_of_models_that_were_explained_before_leads_there():
    places = [place for place, _, _ in sections()]
    assert len(places) == len(set(places))
    links = {key: target for _, _, links in sections() for key, target in links.items()}
    assert links["data.evaluation_transform"] == "data.transform" and links["train"] == "train"
    assert set(links.values()) | {""} == set(places)


def test_a_method_of_a_notebook_is_explained_like_the_others():
    class MineConfig(BaseMethodConfig, frozen=True):
        """Configures a method of one's own."""

        method: str = "mine"
        heat: float = Field(2.0, gt=1)
        """Temperature of everything."""

    mine = type("Mine", (Method,), {"name": "mine", "Config": MineConfig})
    register(mine)
    try:
        assert explain("methods.mine.heat") == [Row("methods.mine.heat", "number", "2.0", "> 1", "Temperature of everything.")]
        assert "methods.mine" in {row.key for row in explain("methods")}
    finally:
        registry._registered.pop("mine")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(RECIPES).with_suffix("")))
def test_a_resolved_recipe_loads_as_the_same_recipe(path: Path):
    for arm in (*load_recipe(path).arms, None):
        recipe = load_recipe(path, arm=arm)
        again = parse_recipe(yaml.safe_load(recipe_yaml(recipe)), "shown")
        assert again == recipe.model_copy(update={"arms": {}}) and again.hash() == recipe.hash()


def test_a_shown_recipe_holds_every_value_and_marks_the_defaults():
    recipe = load_recipe(RECIPES / "shapes.yaml", ['note="one: # two"'])
    lines = recipe_yaml(recipe).splitlines()
    assert "  steps: 1200" in lines and f"  workers: 0{DEFAULT}" in lines and "    assignment: null" in lines
    assert len([line for line in lines if line.lstrip().startswith("arms:")]) == 0
    keys = [line.split(":")[0] for line in lines if not line.startswith(" ")]
    assert keys == [name for name in Recipe.model_fields if name != "arms"]


def test_the_name_of_a_family_comes_first():
    recipe = load_recipe(RECIPES / "families" / "detr.yaml")
    lines = recipe_yaml(recipe).splitlines()
    assert lines[lines.index("student:") + 1] == "  family: detr"
    assert explain("student.detr")[1].key == "student.detr.family"


def test_a_text_with_line_breaks_stays_on_its_line():
    for value in ("one\ntwo", "a: b # c", "'", "", "off", "1e-3", ["x", None, 2e-5]):
        text = as_yaml(value)
        assert "\n" not in text and yaml.safe_load(text) == value


def test_the_command_explains_a_key_and_shows_an_arm(tmp_path: Path):
    table = tmp_path / "t.json"
    code, out, err = command("recipe", "explain", "train.clip_norm", "--json", str(table))
    assert code == 0, out + err
    assert out.splitlines() == [
        "train.clip_norm  number; default: 0.1; >= 0",
        "    Largest norm of the gradient; a longer gradient is scaled down to it. 0 turns clipping off.",
    ]
    (row,) = read_json(table)
    assert row["key"] == "train.clip_norm" and row["bounds"] == ">= 0"
    code, out, err = command("recipe", "show", "shapes", "--arm", "longer", "--set", "train.batch_size=8", "--json", str(table))
    assert code == 0, out + err
    recipe = load_recipe(RECIPES / "shapes.yaml", ["train.batch_size=8"], "longer")
    assert out.splitlines()[0] == f"# arm longer of shapes.yaml, hash {recipe.hash()}"
    assert yaml.safe_load(out) == json.loads(table.read_text()) == without_arms(recipe)


def without_arms(recipe: BaseModel) -> dict[str, object]:
    return recipe.model_dump(mode="json", exclude={"arms"})
