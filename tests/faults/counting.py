"""Prints docs/reliability.md with what its tests have tried: ``make faults`` runs pytest with this as a plugin.

A test is one fault that was tried, or as many as it says by ``tried``. A fault is survived if its test has passed.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
INPUTS = "inputs tried"
_counted = 0


def tried(inputs: int = 1) -> None:
    """Counts inputs, or faults, that the running test tries."""
    global _counted
    _counted += inputs


def rows(page: str) -> list[tuple[str, str, list[str]]]:
    """Returns section, fault and names of the tests of each row of the page's tables."""
    found, section = [], ""
    for line in page.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        if line.startswith("| ") and not line.startswith("| fault"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found.append((section, cells[0], re.findall(r"`(test_\w+)`", cells[-1])))
    return found


def table(page: str, results: Iterable[tuple[str, bool, int]]) -> list[str]:
    """Returns the lines of the table: each fault with the inputs tried and survived, a row without a test that ran as 0, and the sums.

    Args:
        page: text of docs/reliability.md.
        results: name of a test without its parameters, whether it has passed, and how many inputs it tried.
    """
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, passed, inputs in results:
        counts[name][0] += inputs
        counts[name][1] += inputs if passed else 0
    lines, sums, before, seen = [f"{'tried':>9} {'survived':>9}  fault"], [0, 0], "", set[str]()
    for section, fault, names in rows(page):
        if section != before:
            lines += ["", f"{'':19}  {section}"]
            before = section
        own = [sum(counts[name][part] for name in names) for part in (0, 1)]
        lines.append(f"{own[0]:9,} {own[1]:9,}  {fault.replace('`', '')}" + ("" if own[0] == own[1] and own[0] else "  <-- NOT HELD"))
        sums = [total + sum(counts[name][part] for name in set(names) - seen) for part, total in enumerate(sums)]
        seen |= set(names)
    lost = sums[0] - sums[1]
    return [*lines, "", f"{sums[0]:,} inputs tried, {sums[1]:,} survived, " + ("nothing lost" if not lost else f"{lost:,} NOT HELD")]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the tests that the page names."""
    named = {name for _, _, names in rows(PAGE.read_text(encoding="utf-8")) for name in names}
    chosen = [item for item in items if getattr(item, "originalname", item.name) in named]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    """Notes how many inputs a test has tried, where the reports of other processes carry it too."""
    global _counted
    _counted = 0
    try:
        return (yield)
    finally:
        item.user_properties.append((INPUTS, max(_counted, 1)))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints the table."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, []) if report.when == "call"]
    results = [
        (report.nodeid.rsplit("::", 1)[-1].split("[")[0], report.passed, int(dict(report.user_properties).get(INPUTS, 1)))
        for report in reports
    ]
    terminalreporter.section("docs/reliability.md")
    for line in table(PAGE.read_text(encoding="utf-8"), results):
        terminalreporter.write_line(line)
