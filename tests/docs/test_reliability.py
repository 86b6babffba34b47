"""The page on reliability promises what a test shows, and nothing else."""

import re

from tests.conftest import ROOT
from tests.faults.counting import PAGE, rows, table

TESTS = {
    name
    for folder in ("faults", "services", "views")
    for file in (ROOT / "tests" / folder).glob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
}


def test_every_row_of_the_page_names_a_test_that_exists():
    found = rows(PAGE.read_text(encoding="utf-8"))
    assert len(found) > 30
    for _, fault, named in found:
        assert named, fault
        assert set(named) <= TESTS, set(named) - TESTS


def test_the_table_of_make_faults_counts_what_was_tried_and_says_what_was_not_held():
    page = "# A\n\n## Names\n| fault | promised | test |\n|---|---|---|\n| a `x` | b | `test_one`, `test_two` |\n| c | d | `test_two` |\n"
    held = table(page, [("test_one", True, 5), ("test_one", True, 1), ("test_two", True, 1000), ("test_other", False, 9)])
    assert [line.split() for line in held if " a x" in line or " c" in line] == [["1,006", "1,006", "a", "x"], ["1,000", "1,000", "c"]]
    assert held[-1] == "1,006 inputs tried, 1,006 survived, nothing lost"
    broken = table(page, [("test_one", True, 5), ("test_two", False, 2)])
    assert broken[-1] == "7 inputs tried, 5 survived, 2 NOT HELD" and sum("NOT HELD" in line for line in broken) == 3
    assert "NOT HELD" in table(page, [("test_one", True, 1)])[-3], "a row whose test did not run"


def test_make_faults_runs_every_folder_that_holds_a_test_of_the_page():
    command = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "tests.faults.counting" in line)
    assert {"tests/faults", "tests/services", "tests/views"} <= set(command.split())
