"""Numbers of pages that come from a benchmark are those of its committed result."""

import json

from tests.conftest import ROOT

ROWS = {
    "all parts of DETRDistill, live teacher": "live distillation, all parts / undistilled step",
    "logits and features, teacher read from the cache": "logits and features from the cache / undistilled step",
    "query-prior assignment, teacher read from the cache": "query-prior assignment alone from the cache / undistilled step",
}
PAIRS = ("demo pair", "ResNet-18 at 320 pixels")


def test_the_costs_of_a_step_on_the_page_are_those_of_the_benchmark():
    lines = (ROOT / "benchmarks" / "results" / "step.jsonl").read_text(encoding="utf-8").splitlines()
    figures = {figure["name"]: figure for figure in map(json.loads, lines)}
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for row, name in ROWS.items():
        cells = []
        for pair in PAIRS:
            figure = figures[f"{pair}: {name}"]
            low, high = figure["interval"]
            cells.append(f"{figure['value']:.2f} [{low:.2f}, {high:.2f}]")
        assert f"| {row} | {' | '.join(cells)} |" in page
