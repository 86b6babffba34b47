"""The reference of a recipe's keys says what the code says."""

from tools.recipe_page import PAGE, page


def test_the_page_of_recipes_is_the_one_that_the_fields_make():
    assert PAGE.read_text(encoding="utf-8") == page(), "docs/recipe.md is out of date: run python -m tools.recipe_page"
