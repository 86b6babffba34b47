"""Numbers of pages that come from a benchmark are those of its committed result."""

import json
from typing import Any

from tests.conftest import ROOT

ROWS = {
    "all parts of DETRDistill, live teacher": "live distillation, all parts / undistilled step",
    "logits and features, teacher read from the cache": "logits and features from the cache / undistilled step",
    "query-prior assignment, teacher read from the cache": "query-prior assignment alone from the cache / undistilled step",
}
PAIRS = ("demo pair", "ResNet-18 at 320 pixels")


def figures_of(name: str) -> dict[str, dict[str, Any]]:
    lines = (ROOT / "benchmarks" / "results" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return {figure["name"]: figure for figure in map(json.loads, lines)}


def results_page() -> str:
    return (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def test_the_costs_of_a_step_on_the_page_are_those_of_the_benchmark():
    figures, page = figures_of("step"), results_page()
    for row, name in ROWS.items():
        cells = []
        for pair in PAIRS:
            figure = figures[f"{pair}: {name}"]
            low, high = figure["interval"]
            cells.append(f"{figure['value']:.2f} [{low:.2f}, {high:.2f}]")
        assert f"| {row} | {' | '.join(cells)} |" in page


def test_what_is_said_of_the_teacher_cache_is_what_the_benchmark_found():
    figures, page = figures_of("cache"), " ".join(results_page().split())

    def value(name: str) -> float:
        return figures[name]["value"]

    warm, cold = (value(f"demo pair: reading {state} / an epoch of plain training") for state in ("warm", "cold"))
    assert f"takes {100 * warm:.1f} % of an epoch of plain training when the files are in memory, and {100 * cold:.1f} % when" in page
    many, few = (value(f"peak memory of building for {count} images") for count in (100000, 1000))
    assert f"Building for 100,000 images peaks at {many:.0f} MB, for 1,000 at {few:.0f} MB." in page
    one, three, ten = (value(f"(building / {n} students + distilling from the cache) / distilling live") for n in (1, 3, 10))
    assert f"takes {one:.2f} of the processor time of distilling live with one student, {three:.2f} with three and {ten:.2f} with" in page
    ahead = "demo pair: an epoch of plain training with one loading process"
    assert f"({value(f'{ahead}, without reading'):.2f} s an epoch without reading, {value(f'{ahead}, with reading'):.2f} s with)" in page
    bytes_, ratio = value("demo pair: bytes of an image and variant"), value("demo pair: bytes on disk / raw size of what is stored")
    assert f"takes {bytes_:.0f} bytes, {ratio:.3f} times the raw size" in page


def test_what_is_said_of_dense_detectors_is_what_the_benchmark_found():
    figures, page = figures_of("dense"), results_page()
    detections = "detections of 2000 images with 1000 candidates"

    def row(text: str, name: str, digits: int) -> str:
        low, high = figures[name]["interval"]
        return f"| {text} | {figures[name]['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}] |"

    assert row("student step / bare loop", "student step / bare loop with torchvision's loss", 2) in page
    assert row("assignment and losses / student step", "assignment and losses / student step", 3) in page
    text = "detections of 2,000 images with 1,000 candidates each / torchvision's post-processing"
    assert row(text, f"{detections} / torchvision's post-processing", 2) in page
    step, suppression = figures["student step"]["value"], figures[detections]["value"]
    assert f"The step takes {step:.0f} ms and the suppression {suppression / 2:.2f} ms an image." in page
    assert all(figure["holds"] is not False for figure in figures.values())
    formats = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    maps, predictions = (
        figures[f"cache of an FCOS teacher, {what}: bytes of an image and variant"]["value"]
        for what in ("feature maps", "logits and boxes")
    )
    assert f"| FCOS on shapes, 96x96 pixels, 4 classes, width 64 | {maps:,.0f} | | {predictions:,.0f} |" in formats


def test_what_each_method_adds_on_the_page_is_what_the_benchmark_found():
    page, ending = results_page(), " / (student step + teacher forward)"
    shares = {name.removesuffix(ending): figure["value"] for name, figure in figures_of("methods").items() if name.endswith(ending)}
    assert len(shares) >= 12
    for name, share in shares.items():
        assert f"| {name} | {100 * share:.1f} % |" in page


def test_what_is_said_of_fiftyone_is_what_the_benchmark_found():
    figures, page = figures_of("fiftyone"), " ".join(results_page().split())

    def value(start: str) -> float:
        (name,) = [name for name in figures if name.startswith(start)]
        return figures[name]["value"]

    (whole,) = [name for name in figures if name.startswith("5000 images and ")]
    boxes = int(whole.split()[3])
    assert f"{boxes:,} boxes of three models are in FiftyOne after {figures[whole]['value']:.0f} s" in page
    assert f"The process and MongoDB take {value('memory'):.1f} GB at most" in page
    assert f"in {value('the same after'):.0f} s; if nothing is new it takes {value('the same when'):.0f} s" in page
    assert f"took {value('FiftyOne'):.0f} s and ours {value('ours, 100 '):.1f} s" in page
    assert f"1,000 images take {value('ours, 1000'):.0f} s" in page
    assert all(figure["holds"] is not False for figure in figures.values())


def test_what_is_said_of_the_dashboard_is_what_the_benchmark_found():
    figures, page = figures_of("app"), " ".join(results_page().split())
    values = {name: figure["value"] for name, figure in figures.items()}
    paint, marks = (max(value for name, value in values.items() if name.startswith(start)) for start in ("first paint", "marks"))
    assert f"First paint of every page takes at most {paint:.2f} s (aim 2 s), with at most {marks:,.0f} marks (20,000)" in page
    first, again = values["scatter of 1,500,000 queries, the first time"], values["scatter of all queries, again"]
    assert f"queries takes {first:.2f} s the first time (6 s) and {again:.2f} s again (0.5 s)" in page
    assert f"holds {values['memory of the server, at most']:.2f} GB at most (1.5 GB)" in page
    changes = {name.removeprefix("change of ").replace("'", ""): value for name, value in values.items() if name.startswith("change of ")}
    assert len(changes) == 13 and all(value <= 0.5 for value in changes.values())
    for name, value in changes.items():
        assert f"| {name} | {value:.2f} s |" in page
    assert all(figure["holds"] is not False for figure in figures.values())
