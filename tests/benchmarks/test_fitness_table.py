"""The committed table of fitness: whole, made with the recipe of today, and what the page says of it."""

from benchmarks.fitness_table import _header, cells, distinct, fitness, read_table
from tests.conftest import ROOT
from workbench.methods.detkds.canonical import canonical
from workbench.search.space import gate


def test_every_cell_of_the_grid_has_a_value_for_both_seeds():
    _, rows = read_table()
    values = fitness(rows)
    assert set(values) == {(cell, seed) for cell in cells() for seed in (0, 1)}
    assert len(rows) == 2 * (len(distinct()) + 1) and len({(row.genotype, row.seed) for row in rows}) == len(rows)
    assert all((row.ap is None) == (row.gate is not None) for row in rows)


def test_cells_of_one_canonical_form_share_a_value():
    values = fitness(read_table()[1])
    for cell in cells():
        assert values[cell, 0] == values[canonical(cell, "corrected"), 0]


def test_the_table_was_made_with_the_plan_and_recipe_of_today():
    assert read_table()[0]["plan_hash"] == _header()["plan_hash"]


def test_every_formula_of_the_grid_passes_the_static_gate():
    assert [str(genotype) for genotype in distinct()[:60] if gate(genotype, "corrected", 16)] == []


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    whole = (ROOT / "benchmarks" / "results" / "fitness_table.jsonl").read_text().splitlines()
    (tmp_path / "table.jsonl").write_text("\n".join(whole[:4]) + "\n" + whole[4][:30])
    assert len(read_table(tmp_path / "table.jsonl")[1]) == 3


def test_the_page_counts_the_grid_as_the_code_does():
    page = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    assert f"The grid has {len(cells())} formulas of whole maps" in page and f"{len(distinct())} are left" in page
