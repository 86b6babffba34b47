"""Imports all that a worker needs; the server that workers are forked from imports this once."""

from tests.search.examples import PLAN
from workbench.recipe.loading import load_recipe, recipe_path

load_recipe(recipe_path(PLAN["recipe"]))  # imports the families of its detectors
