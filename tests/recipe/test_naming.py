"""The default name of a run says which data it is of."""

import pytest

from tests.flows import TINY
from workbench.recipe.loading import merge, parse_recipe
from workbench.recipe.naming import data_name, run_name, written_name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("shapes", ""),
        (None, ""),
        ("/home/me/hard-hats", "hard-hats"),
        ("/home/me/hard hats (v2)/", "hard-hats-v2"),
        ("/home/me/hats/data.yaml", "hats"),
        ("/home/me/hats/annotations/instances_train2017.json", "hats"),
        ("/home/me/hats/_annotations.coco.json", "hats"),
        ("/home/me/cells.json", "cells"),
        ("/srv/data/train_stations", "train_stations"),
        ("/data", ""),
        ("/srv/" + "long" * 20, "longlonglonglonglonglong"),
    ],
)
def test_data_is_named_by_the_first_part_of_its_path_that_says_something(path: str | None, name: str) -> None:
    assert data_name(path) == name


@pytest.mark.parametrize(
    ("recipe", "path", "name"),
    [
        ("any", "/srv/cells", "any-cells-undistilled-seed3"),
        ("any", "shapes", "any-undistilled-seed3"),
        ("bccd_teacher", "/srv/BCCD", "bccd_teacher-undistilled-seed3"),
    ],
)
def test_a_name_holds_recipe_data_arm_and_seed_and_the_data_once(recipe: str, path: str, name: str) -> None:
    values = merge(TINY, {"name": recipe, "seed": 3, "data": {"path": path}})
    assert run_name(parse_recipe(values, "test")) == name
    assert written_name(values, "undistilled") == name
    assert run_name(parse_recipe(values, "test"), "small", equal_compute=True) == name.replace("undistilled", "small-equal-compute")
