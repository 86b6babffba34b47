"""A report as one HTML page that needs nothing else: numbers, verdicts, diagnoses and figures of one run or several."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from workbench.analysis.report import collect
from workbench.analysis.summary import table
from workbench.files import write_json, write_text
from workbench.runs import Run
from workbench.views.overview import LAYERS_CAPTION, PROGRESS_CAPTION, layer_points, layers_figure, progress_figure, progress_points
from workbench.views.summary import readable
from workbench.views.training import panel_meanings, thinned, training_figure, training_lines

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 1200px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.2rem } h3 { font-size: 1rem; margin-bottom: .2rem }
div.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 13px } th, td { padding: .25rem .6rem; text-align: right }
th, td { border-bottom: 1px solid #ddd; white-space: nowrap } td.text, th.text { text-align: left; white-space: normal }
p.note, caption, small { color: #555; font-size: 13px; text-align: left } li { margin: .3rem 0 } .error { color: #a83200 }
"""


def write_report(runs: Sequence[Run], out: Path) -> Path:
    """Writes the page, and beside it all numbers as JSON.

    Args:
        runs: in the order they are shown.
        out: the page; the numbers get its name with ``.json``.

    Returns:
        The file of the numbers.

    Raises:
        RunError: it cannot be written.
    """
    numbers = collect(runs)
    write_text(out, "".join(_page(runs, numbers)))
    beside = out.with_suffix(".json")
    write_json(beside, numbers)
    return beside


def _page(runs: Sequence[Run], numbers: Mapping[str, Any]) -> Iterable[str]:
    title = escape("Report: " + ", ".join(run.name for run in runs))
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    yield f"<script>{get_plotlyjs()}</script></head><body><h1>{title}</h1>"
    yield "<h2>Results</h2>" + _summary(runs)
    if numbers["comparisons"]:
        yield "<h2>Verdicts</h2>"
    for found in numbers["comparisons"]:
        yield f"<h3>{_names(found['other'])} against {_names(found['baseline'])}</h3><p>{escape(found['verdict']['sentence'])}</p>"
        yield _table(found["errors"], {"sentence": "what an error type costs"})
    yield "<h2>Diagnosis</h2>"
    for name, diagnosis in numbers["diagnoses"].items():
        yield from _diagnosis(name, diagnosis)
    names = [run.name for run in runs]
    yield "<h2>Training</h2>"
    yield _figure(progress_figure(pd.concat([progress_points(run) for run in runs]), names), PROGRESS_CAPTION)
    layers = pd.concat([layer_points(run) for run in runs])
    yield _figure(layers_figure(layers, names), LAYERS_CAPTION) if len(layers) else ""
    for run in runs:
        lines = training_lines(run)
        if len(lines):
            shown, together = thinned(lines)
            means = f" Each point is the mean of {together} logged lines." if together > 1 else ""
            yield f"<h3>{escape(run.name)}</h3>" + _figure(training_figure(shown), panel_meanings(shown) + means)
    yield "<h2>Errors</h2><p class=note>TIDE's types at IoU 0.5; cost: AP50 gained if the errors of a type alone were mended.</p>"
    for name, found in numbers["errors"].items():
        yield f"<h3>{escape(name)}, {escape(found['split'])} split</h3>"
        yield _table(found["rows"], {"error": "type", "count": "count", "cost": "cost (AP50)", "low": "low", "high": "high"}, 100)
    yield "<h2>Query value</h2><p class=note>ap_drop: AP with all detections minus AP without any of the slot; drops do not add up.</p>"
    for name, found in numbers["slots"].items():
        yield f"<h3>{escape(name)}, the {len(found['rows'])} of {found['slots']} slots with the largest drop</h3>"
        columns = {"query": "slot", "n": "detections", "ap_drop": "ap_drop (AP)", "low": "low", "high": "high"}
        yield _table(found["rows"], columns, 100)
    for note in numbers["notes"]:
        yield f"<p class=note>{escape(note)}</p>"
    yield "</body></html>\n"


def _summary(runs: Sequence[Run]) -> str:
    frame, columns = readable(table(runs, with_teacher=True))
    heads = "".join(f'<th title="{escape(column.meaning)}">{escape(column.title)}</th>' for column in columns.values())
    rows = []
    for record in frame.to_dict("records"):
        cells = [_cell(record[name], columns[str(name)].digits) for name in frame.columns]
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
        yield _table(finding["evidence"], {"what": "evidence", "value": "value", "low": "low", "high": "high", "n": "n", "of": "of"})
    yield "<ul>"
    clear = [check["cause"] for check in diagnosis["checks"] if check["outcome"] == "clear"]
    yield f"<li><small>looked for and not found: {escape(', '.join(clear) or 'nothing')}</small></li>"
    for check in diagnosis["checks"]:
        if check["outcome"] == "not judged":
            yield f"<li><small>not judged: {escape(check['cause'])}, because {escape(check['why'])}</small></li>"
    yield "</ul>"


def _table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], scale: float = 1) -> str:
    """Rows with the columns named; shares in percent where ``scale`` is 100, whole numbers and text as they are."""
    heads = "".join(f"<th>{escape(title)}</th>" for title in columns.values())
    body = ""
    for row in rows:
        values = (row.get(name) for name in columns)
        scaled = (value * scale if isinstance(value, float) else value for value in values)
        body += "<tr>" + "".join(_cell(value, 3 if isinstance(value, float) else None) for value in scaled) + "</tr>"
    return f"<div class=wide><table><tr>{heads}</tr>{body}</table></div>"


def _cell(value: Any, digits: int | None) -> str:
    if value is None or value != value:
        return "<td>-</td>"
    if isinstance(value, str):
        return f"<td class=text>{escape(value)}</td>"
    return f"<td>{value:.{digits}f}</td>" if digits is not None else f"<td>{escape(str(value))}</td>"


def _figure(figure: go.Figure, caption: str) -> str:
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
    return f"{drawn}<p class=note>{escape(caption)}</p>"


def _names(runs: Sequence[str]) -> str:
    return escape(", ".join(runs))
