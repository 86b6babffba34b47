"""Committed tables belong to the recipes as they are, and the pages show exactly them."""

import pytest

from benchmarks.evidence import RESULTS, SHOWN_IN, TABLES, load, recipe_hashes, with_table

COMMITTED = sorted(path.stem for path in RESULTS.glob("*.json"))


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
def test_the_pages_show_the_committed_table(name: str):
    shown = [page for page in SHOWN_IN if f"<!-- table:{name} -->" in page.read_text(encoding="utf-8")]
    assert shown
    for page in shown:
        text = page.read_text(encoding="utf-8")
        assert with_table(text, name, load(name)["markdown"]) == text
