"""A report as one HTML page that needs nothing else: numbers, verdicts, diagnoses and figures of one run or several."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from plotly.offline import get_plotlyjs

from workbench.analysis.report.collect import collect
from workbench.analysis.report.summary import table as summary_table
from workbench.files import write_json, write_text
from workbench.store.run import Run
from workbench.views.overview import LAYERS_CAPTION, PROGRESS_CAPTION, layer_points, layers_figure, progress_figure, progress_points
from workbench.views.page import STYLE, Column, cell, figure, names, share, table
from workbench.views.run_report import errors_part, gain_part, slots_part, stability_part
from workbench.views.summary import readable
from workbench.views.training import panel_meanings, thinned, training_figure, training_lines


def write_report(runs: Sequence[Run], out: Path, split: str = "val") -> Path:
    """Writes the page, and beside it all numbers as JSON.

    Args:
        runs: in the order they are shown.
        out: the page; the numbers get its name with ``.json``.
        split: whose queries are looked at.

    Returns:
        The file of the numbers.

    Raises:
        RunError: it cannot be written.
    """
    numbers = collect(runs, split)
    write_text(out, "".join(_page(runs, numbers, split)))
    beside = out.with_suffix(".json")
    write_json(beside, numbers)
    return beside


def _page(runs: Sequence[Run], numbers: Mapping[str, Any], split: str) -> Iterable[str]:
    title = escape("Report: " + ", ".join(run.name for run in runs))
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    yield f"<script>{get_plotlyjs()}</script></head><body><h1>{title}</h1>"
    yield f"<p class=note>Queries, matchings and diagnoses are of split {escape(split)}.</p>"
    yield "<h2>Results</h2>" + _summary(runs, split)
    if numbers["comparisons"]:
        yield "<h2>Verdicts</h2>"
    for found in numbers["comparisons"]:
        yield f"<h3>{names(found['other'])} against {names(found['baseline'])}</h3><ul>"
        yield "".join(f"<li>{escape(verdict['sentence'])}</li>" for verdict in found["verdicts"])
        yield "".join(f"<li>{escape(row['sentence'])}</li>" for row in found["errors"]) + "</ul>"
    yield from _seeds(numbers["seeds"])
    yield "<h2>Diagnosis</h2>"
    for name, diagnosis in numbers["diagnoses"].items():
        yield from _diagnosis(name, diagnosis)
    yield "<h2>Training</h2>"
    shown_runs = [run.name for run in runs]
    yield figure(progress_figure(pd.concat([progress_points(run, split) for run in runs]), shown_runs), PROGRESS_CAPTION)
    layers = pd.concat([layer_points(run, split) for run in runs])
    yield figure(layers_figure(layers, shown_runs), LAYERS_CAPTION) if len(layers) else ""
    for run in runs:
        lines = training_lines(run)
        if len(lines):
            shown, together = thinned(lines)
            means = f" Each point is the mean of {together} logged lines." if together > 1 else ""
            yield f"<h3>{escape(run.name)}</h3>" + figure(training_figure(shown), panel_meanings(shown) + means)
    for key, (head, meaning, part) in _PARTS.items():
        if numbers[key]:
            yield f"<h2>{head}</h2><p class=note>{escape(meaning)}</p>"
        for place, (name, found) in enumerate(numbers[key].items()):
            # the first run is open, the others are a click away
            yield f"<details{' open' * (place == 0)}><summary>{escape(name)}, {escape(found['split'])} split</summary>"
            yield from part(found)
            yield "</details>"
    for note in numbers["notes"]:
        yield f"<p class=note>{escape(note)}</p>"
    yield "</body></html>\n"


_PARTS: dict[str, tuple[str, str, Callable[[Mapping[str, Any]], Iterable[str]]]] = {
    "stability": (
        "Match stability",
        "Churn: of the targets matched at both of two moments, the share whose query changed. IS: mean over images of the number of "
        "queries whose target changed. Intervals of 95 % over resampled images.",
        stability_part,
    ),
    "gain": (
        "Gain",
        "Score x IoU of the query matched to a target in this run minus the same in the undistilled run. Intervals of 95 % over resampled "
        "images.",
        gain_part,
    ),
    "slots": ("Query value", "ap_drop: AP with all detections minus AP without any of the slot; drops do not add up.", slots_part),
    "errors": ("Errors", "TIDE's types at IoU 0.5; cost: AP50 gained if the errors of a type alone were mended.", errors_part),
}


def _seeds(sides: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    if sides:
        yield "<h2>Seeds</h2><p class=note>Slots of different seeds share no identity: shown are the spread of churn and IS over seeds "
        yield "(mean with Student's interval), and the targets that two runs both find (right class, IoU 0.5).</p>"
    for side in sides:
        yield f"<h3>{names(side['runs'])}</h3>" + table(side["spread"], [
            Column("step", "step"), Column("measure", "measure"), Column("mean", "mean", 1, 3, "low", "high"),
            Column("least", "minimum"), Column("most", "maximum"), Column("deviation", "deviation"), Column("runs", "n"),
        ]) + table(side["found"], [
            Column("first", "first"), Column("second", "second"), share("found by both %", "share"), Column("both", "both"),
            Column("only the first", "only_first"), Column("only the second", "only_second"), Column("neither", "neither"),
            Column("targets", "n"), Column("images", "images"),
        ])  # fmt: skip


def _summary(runs: Sequence[Run], split: str) -> str:
    frame, columns = readable(summary_table(runs, split, with_teacher=True))
    heads = "".join(f'<th title="{escape(column.meaning)}">{escape(column.title)}</th>' for column in columns.values())
    rows = []
    for record in frame.to_dict("records"):
        cells = [cell(record[name], columns[str(name)].digits) for name in frame.columns]
        rows.append("<tr>" + "".join(cells) + "</tr>")
    meanings = "; ".join(f"{column.title}: {column.meaning}" for column in columns.values())
    return f"<div class=wide><table><tr>{heads}</tr>{''.join(rows)}</table></div><p class=note>{escape(meanings)}</p>"


def _diagnosis(name: str, diagnosis: Mapping[str, Any]) -> Iterable[str]:
    against = f" against {escape(diagnosis['baseline'])}" if diagnosis["baseline"] else ""
    yield f"<h3>{escape(name)}{against}</h3>"
    if not diagnosis["findings"]:
        yield "<p>No cause was found.</p>"
    for finding in diagnosis["findings"]:
        yield f"<p><b class={escape(finding['severity'])}>{escape(finding['severity'])}: {escape(finding['cause'])}</b>. "
        yield f"{escape(finding['statement'])} <i>{escape(finding['advice'])}</i></p>"
        yield table(finding["evidence"], [Column("evidence", "what"), Column("value", "value", 1, 3, "low", "high"), Column("n", "n"),
                                          Column("of", "of")])  # fmt: skip
    yield "<ul>"
    clear = [check["cause"] for check in diagnosis["checks"] if check["outcome"] == "clear"]
    yield f"<li><small>looked for and not found: {escape(', '.join(clear) or 'nothing')}</small></li>"
    for check in diagnosis["checks"]:
        if check["outcome"] == "not judged":
            yield f"<li><small>not judged: {escape(check['cause'])}, because {escape(check['why'])}</small></li>"
    yield "</ul>"
