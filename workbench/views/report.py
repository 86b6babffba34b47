"""Writes a report on one or several runs as one self-contained HTML page: numbers, verdicts, diagnoses and figures."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from markupsafe import Markup

from workbench.analysis.defined import LAYER_NUMBERS, undefined_of
from workbench.analysis.detection.ap_tests import LEAST_SEEDS, lost_to
from workbench.analysis.diagnosis.diagnose import MEANINGS
from workbench.analysis.report.answer import Answer
from workbench.analysis.report.collect import collect
from workbench.analysis.report.summary import table as summary_table
from workbench.analysis.results.detections import data_held
from workbench.analysis.results.stability import StabilityResults
from workbench.files import write_json, write_text
from workbench.store.run import Run
from workbench.views.answers import CAPTION as ANSWER_CAPTION
from workbench.views.answers import answers_html
from workbench.views.forest import MEANINGS as NUMBERS
from workbench.views.forest import forest_figure, verdict_rows
from workbench.views.overview import LAYERS_CAPTION, PROGRESS_CAPTION, layer_points, layers_figure, progress_figure, progress_points
from workbench.views.rendering import render
from workbench.views.report_blocks import Block, Column, Figure, Table, figure, share
from workbench.views.run_report import errors_part, gain_part, lost_part, slots_part, stability_part
from workbench.views.style import saying
from workbench.views.summary import readable
from workbench.views.training import panel_meanings, thinned, training_figure, training_lines

_POINTS = 30_000  # of the training curves of all runs together, so that the page stays small


def write_report(runs: Sequence[Run], out: Path, split: str = "val") -> Path:
    """Writes the page, and beside it all its numbers as JSON.

    Args:
        runs: runs in the order in which they are shown.
        out: path of the page. The numbers are written under the same name with ``.json``.
        split: split whose queries are analysed, val or test.

    Returns:
        The path of the numbers.

    Raises:
        RunError: a file cannot be written.
    """
    numbers, summary = collect(runs, split), _summary(runs, split)
    parts = [_part(part, numbers[key]) for key, part in _PARTS.items() if numbers[key]]
    told = {"Answer": numbers["answers"], "Results": True, "Verdicts": numbers["comparisons"], "Seeds": numbers["seeds"], "Diagnosis": True,
            "Training": True, **{part["heading"]: True for part in parts}}  # fmt: skip
    page = render(
        "report.html.j2",
        split=split,
        runs=[run.name for run in runs],
        numbers=numbers,
        answer=Markup(answers_html([Answer.from_json(one) for one in numbers["answers"]])) if numbers["answers"] else "",
        answer_caption=ANSWER_CAPTION,
        verdicts=[_verdicts(found, numbers["runs"]) for found in numbers["comparisons"]],
        summary=summary,
        columns=[(column.title, column.meaning) for column in summary.columns],
        least_seeds=LEAST_SEEDS,
        seeds=[_seeds(side) for side in numbers["seeds"]],
        causes=list(MEANINGS.items()),
        diagnoses={name: _diagnosis(diagnosis) for name, diagnosis in numbers["diagnoses"].items()},
        progress=list(_progress(runs, split)),
        training=dict(_training(runs)),
        parts=parts,
        chapters=[chapter for chapter, there in told.items() if there],
    )
    write_text(out, page + "\n")
    beside = out.with_suffix(".json")
    write_json(beside, numbers)
    return beside


class _Part(NamedTuple):
    """A chapter of the page that has the same blocks for every run."""

    heading: str
    meaning: str
    blocks: Callable[[Mapping[str, Any]], Iterable[Block]]


_PARTS = {
    "stability": _Part(
        "Match stability",
        "Churn is the share of targets whose matched query changes between two evaluations or layers, counted over the targets matched at "
        "both. Instability (the score IS of DN-DETR) is the number of queries whose target changes, averaged over images. Found-by churn "
        "is the share of targets that another candidate (a query, an anchor, a proposal) detects, counted over the targets detected at "
        "both evaluations; it is defined for every detector. Brackets hold 95 % intervals over resampled images.",
        stability_part,
    ),
    "lost": _Part(
        "Lost to the teacher",
        "Targets that the teacher found, and whether the student did: a detection of their class with at least the least score overlaps "
        "them by IoU 0.5 or more (COCO's matching). Both are read from the query tables, one class a candidate. Brackets hold 95 % "
        "intervals over resampled images.",
        lost_part,
    ),
    "gain": _Part(
        "Gain",
        "The gain of a target is the score x IoU of its matched query in this run, minus the same product in the undistilled run. It is "
        "positive where distillation helped. Brackets hold 95 % intervals over resampled images.",
        gain_part,
    ),
    "slots": _Part(
        "Query value",
        "The AP drop of a query slot is the AP of all detections minus the AP without those of the slot. The drops of several slots do not "
        "add up.",
        slots_part,
    ),
    "errors": _Part(
        "Errors",
        "Errors are sorted into the types of TIDE. A classification error overlaps a target of another class by IoU 0.5 or more. A "
        "localisation error overlaps a target of its own class by IoU 0.1 to 0.5. A duplicate overlaps a target that another detection has "
        "already taken. A background error overlaps no target by more than IoU 0.1. The cost of a type is the AP50 that would be gained if "
        "all errors of that type, and no others, were corrected.",
        errors_part,
    ),
}


def _part(part: _Part, found: Mapping[str, Any]) -> dict[str, Any]:
    runs = {name: (numbers["split"], list(part.blocks(numbers))) for name, numbers in found.items()}
    return {"heading": part.heading, "meaning": part.meaning, "runs": runs}


def _verdicts(found: Mapping[str, Any], summary: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the verdicts of one comparison as a figure and a table; ``summary`` has a row for every run."""
    errors = [{**row, "quantity": lost_to(row["error"])} for row in found["errors"]]
    verdicts = [*found["verdicts"], *errors]
    columns = [
        Column("number", "quantity", meanings=NUMBERS), Column("unit", "unit"), Column("undistilled", "baseline", 1, "digits"),
        Column("this arm", "other", 1, "digits"), Column("difference", "difference", 1, "digits", meaning="This arm minus undistilled."),
        Column("low", "low", 1, "digits", meaning="Lower end of the difference's 95 % interval."),
        Column("high", "high", 1, "digits", meaning="Upper end of the difference's 95 % interval."), Column("verdict", "verdict"),
    ]  # fmt: skip
    drawn = forest_figure(verdicts)
    first = next((verdict for verdict in found["verdicts"] if verdict["seeds"]), None)
    about = ""
    if first is not None:
        sides = f"{first['seeds'][1]} run{'s' * (first['seeds'][1] > 1)} against {first['seeds'][0]}"
        about = f"{first['images']:,} images of split {found['split']}, {sides}. The verdicts are about {first['about']}."
    caption = f"Differences with their 95 % intervals. {about} Triangles that point up are better, those that point down are worse."
    names = {row["run"]: f"{row['arm']}, {row['schedule']}" for row in summary}
    return {**found, "title": names[found["other"][0]], "figure": figure(drawn, caption), "table": Table(verdict_rows(verdicts), columns)}


def _progress(runs: Sequence[Run], split: str) -> Iterator[Figure]:
    """Yields the figures that show all runs together."""
    names, results = [run.name for run in runs], StabilityResults(data_held())
    points = pd.concat([progress_points(run, split, results) for run in runs])
    yield figure(progress_figure(points, names), f"{PROGRESS_CAPTION} {undefined_of(runs, 'churn')}".strip())
    layers = pd.concat([layer_points(run, split) for run in runs])
    why = " ".join(said for number in LAYER_NUMBERS if (said := undefined_of(runs, number)))
    if len(layers) or why:
        drawn = layers_figure(layers, names) if len(layers) else saying(why)
        yield figure(drawn, f"{LAYERS_CAPTION} {why}".strip())


def _training(runs: Sequence[Run]) -> Iterator[tuple[str, Figure]]:
    """Yields the name of each run that logged something, with the curves of what it logged."""
    for run in runs:
        lines = training_lines(run)
        if len(lines):
            shown, together = thinned(lines, _POINTS // len(runs))
            means = f" Each point is the mean of {together} logged lines." if together > 1 else ""
            yield run.name, figure(training_figure(shown), panel_meanings(shown) + means)


_MEASURES = {"churn": "churn (0 to 1)", "instability": "instability (queries)",
             "instability_normalised": "instability, share of maximum (0 to 1)",
             "found_by_churn": "found-by churn (0 to 1)"}  # fmt: skip


def _seeds(side: Mapping[str, Any]) -> dict[str, Any]:
    spread = [
        Column("step", "step"), Column("measure", "measure"), Column("mean", "mean", 1, 3, "low", "high"), Column("minimum", "minimum"),
        Column("maximum", "maximum"), Column("standard deviation", "deviation"), Column("runs", "n"),
    ]  # fmt: skip
    found = [
        Column("first run", "first"), Column("second run", "second"), share("detected by both %", "share"), Column("by both", "both"),
        Column("by the first only", "only_first"), Column("by the second only", "only_second"), Column("by neither", "neither"),
        Column("targets", "n"), Column("images", "images"),
    ]  # fmt: skip
    rows = [{**row, "measure": _MEASURES[row["measure"]]} for row in side["spread"]]
    return {"runs": side["runs"], "not_defined": side["not_defined"], "spread": Table(rows, spread), "found": Table(side["found"], found)}


def _summary(runs: Sequence[Run], split: str) -> Table:
    frame, shown = readable(summary_table(runs, split, with_teacher=True))
    # whole numbers have the digits of their column too
    frame = frame.astype({name: float for name, column in shown.items() if column.digits is not None})
    columns = [Column(column.title, name, 1, column.digits or 0, meaning=column.meaning) for name, column in shown.items()]
    return Table([{str(name): value for name, value in row.items()} for row in frame.to_dict("records")], columns)


def _diagnosis(diagnosis: Mapping[str, Any]) -> dict[str, Any]:
    evidence = [Column("evidence", "what"), Column("value", "value", 1, 3, "low", "high"), Column("n", "n"), Column("n counts", "of")]
    unchecked: dict[str, list[str]] = {}  # causes by the reason that they have in common
    for check in diagnosis["checks"]:
        if check["outcome"] == "not judged":
            unchecked.setdefault(check["why"].rstrip("."), []).append(check["cause"])
    return {
        "baseline": diagnosis["baseline"],
        "findings": [{**finding, "table": Table(finding["evidence"], evidence)} for finding in diagnosis["findings"]],
        "not_found": [check["cause"] for check in diagnosis["checks"] if check["outcome"] == "clear"],
        "unchecked": unchecked,
    }
