"""Committed tables belong to the recipes as they are, the page of results shows exactly them, and the README quotes that page."""

import re

import pandas as pd
import pytest

from benchmarks.evidence import (
    FAMILY_RECIPES,
    OTHERS,
    PAGE,
    RESULTS,
    TABLES,
    cache_line,
    family_table,
    in_order,
    kept_rows,
    load,
    recipe_hashes,
    rows_of,
    with_table,
)
from tests.conftest import ROOT
from workbench.detectors.registry import FAMILIES
from workbench.errors import ConfigError
from workbench.recipe.loading import load_recipe, recipe_path


def sections(page: str) -> list[tuple[str, str]]:
    """The heading of each section and its text, with that of the sections below it."""
    starts = [(found.start(), len(found[1]), found[2]) for found in re.finditer(r"^(#+) (.+)$", page, re.MULTILINE)]
    ends = [next((start for start, depth, _ in starts[place + 1 :] if depth <= own), len(page)) for place, (_, own, _) in enumerate(starts)]
    return [(title, page[start:end]) for (start, _, title), end in zip(starts, ends, strict=True)]


SHOWN = PAGE.read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
# the last two cells of the rows that link to a section of the results
QUOTED = re.findall(r"^\|[^|]*\| ([^|]*) \| \[[^|]*\]\(docs/results\.md#([\w-]+)\) \|$", README, re.MULTILINE)
SECTIONS = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-"): text for title, text in sections(SHOWN)}
COMMITTED = sorted(path.stem for path in RESULTS.glob("*.json") if path.stem not in OTHERS)


def test_there_are_committed_tables_and_each_has_a_definition():
    assert COMMITTED
    assert set(COMMITTED) <= set(TABLES)


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_table_was_made_with_the_recipes_as_they_are_now(name: str):
    assert load(name)["recipe_hashes"] == recipe_hashes(TABLES[name])


@pytest.mark.parametrize("name", COMMITTED)
def test_every_seed_and_arm_of_a_committed_table_has_its_row_commit_and_command(name: str):
    record, table = load(name), TABLES[name]
    rows = {(row["arm"], row["schedule"], row["seed"]) for row in record["rows"]}
    assert rows >= {(arm, "equal steps", seed) for arm in table.arms for seed in table.seeds}
    assert rows >= {(arm, "equal compute", seed) for arm in table.equal_compute for seed in table.seeds}
    assert record["commits"] and record["command"].startswith("python -m benchmarks.evidence")


@pytest.mark.parametrize("name", COMMITTED)
def test_the_page_of_results_shows_the_committed_table(name: str):
    assert f"<!-- table:{name} -->" in SHOWN
    assert with_table(SHOWN, name, load(name)["markdown"]) == SHOWN


@pytest.mark.parametrize(("sentence", "anchor"), QUOTED)
def test_every_number_of_a_sentence_of_the_readme_stands_in_the_section_that_it_links_to(sentence: str, anchor: str):
    assert anchor in SECTIONS
    numbers = re.findall(r"\d+\.\d+", sentence)
    assert (
        numbers and {number for number in numbers if not re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.])", SECTIONS[anchor])} == set()
    )


def test_the_readme_quotes_each_part_of_the_results_and_holds_no_table_of_its_own():
    assert len(QUOTED) == 12 and len({anchor for _, anchor in QUOTED}) == 10
    assert "<!-- table:" not in README, "nothing would compare it with docs/results"


def test_every_family_has_a_recipe_in_the_table_of_families():
    families = [load_recipe(recipe_path(name)).student.family for name in FAMILY_RECIPES]
    # the table shows AP of boxes, and what there is to know of Mask R-CNN is AP of masks
    assert sorted([*families, "mask_rcnn"]) == sorted(FAMILIES)


def test_a_line_of_the_table_of_families_is_worked_out_from_its_run():
    frame = pd.DataFrame([{
        "run": "a", "arm": "undistilled", "family": "dino", "parameters": 424_944, "ap": 0.46669, "ap_low": 0.45, "ap_high": 0.48149,
        "ap50": 0.609, "compute_seconds": 198.28, "steps": 1500, "commit": "70187f92483b",
    }])  # fmt: skip
    assert family_table(frame).splitlines()[2] == "| dino | 0.42 M | 46.7 [45.0, 48.1] | 60.9 | 1500 | 132 | 198 | 70187f92483b |"


def test_rows_of_other_recipes_are_kept_and_stand_in_the_order_of_the_table():
    table, record = TABLES["families"], load("families")
    kept = kept_rows(record, table, ["families/d_fine", "families/detr"])
    assert {row["recipe"] for row in record["rows"]} - {row["recipe"] for row in kept} == {"d_fine", "detr"}
    assert in_order(reversed(record["rows"]), table) == record["rows"]
    assert [row.recipe.stem for row in rows_of(table, ["families/d_fine"])] == ["d_fine"]
    with pytest.raises(ConfigError, match="no recipe families/retina;"):
        rows_of(table, ["families/retina"])


def test_what_building_a_cache_costs_each_student_is_its_share():
    assert cache_line(120.4).endswith("took 120 s of the processor, once. To each student that is 120 s of 1, 40 s of 3, 12 s of 10.")


def test_the_arms_of_the_cached_comparison_share_their_variants_but_for_those_that_say_so():
    recipes = {arm: load_recipe(recipe_path("shapes_cached"), arm=arm) for arm in TABLES["shapes_cached"].arms}
    assert {arm: recipe.cache.variants if recipe.cache else None for arm, recipe in recipes.items()} == {
        "undistilled": 8, "distilled": 8, "unlimited": None, "live": None,
    }  # fmt: skip
    same = {**load_recipe(recipe_path("shapes")).model_dump(), "name": "", "cache": None, "arms": {}}
    assert {**recipes["live"].model_dump(), "name": "", "arms": {}} == same, "but for the cache it is the main job"
