"""Turns a diagnosis into tables and a figure: the evidence of each finding, the outcome for every cause, and what was measured."""

import math
import textwrap
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlencode

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.analysis.diagnosis.diagnose import MEANINGS
from workbench.analysis.diagnosis.findings import Diagnosis, Finding, Measurement
from workbench.views.style import GREY, VERDICTS, Chart, laid_out, plain, quiet

CAPTION = (
    "Every number that a check compared with a threshold, with its 95 % interval. The line is the threshold, and right of it lies the "
    "cause, which is reported only if the whole interval of each of its numbers lies there. Each row has a scale of its own."
)
_TOP = 30  # pixels above the rows: one line of the legend
_OUTCOMES = {"found": "found", "clear": "not there", "not judged": "not judged"}
_BEYOND, _SHORT = "beyond its threshold", "not beyond it"
_STYLES = {_BEYOND: VERDICTS["worse"], _SHORT: VERDICTS["not distinguishable"]}
_LINE, _LETTER, _WIDEST = 14, 6.2, 56  # pixels of a line and a letter of a label; letters in a line of it


class Shown(NamedTuple):
    """Where the figure behind a cause is.

    Attributes:
        page: address of a page of the dashboard.
        state: choices on that page.
    """

    page: str
    state: Mapping[str, str]


FIGURES = {
    "class map": Shown("errors", {"part": "classes"}),
    "box format": Shown("image", {}),
    "normalisation": Shown("image", {}),
    "resolution": Shown("image", {}),
    "teacher worse": Shown("errors", {"part": "lost"}),
    "weak term": Shown("training", {}),
    "opposing term": Shown("training", {}),
    "drowning term": Shown("training", {}),
    "background selection": Shown("masks", {}),
    "unsettled matching": Shown("stability", {}),
    "absorbing adapter": Shown("training", {}),
}


def evidence_table(finding: Finding) -> pd.DataFrame:
    """Returns one row per number behind a finding: ``evidence``, ``value``, ``low``, ``high``, ``n``, ``of``."""
    return pd.DataFrame([
        {"evidence": e.what, "value": e.value, "low": e.low, "high": e.high, "n": e.n, "of": e.of} for e in finding.evidence
    ])  # fmt: skip


def checks_table(diagnosis: Diagnosis, **state: str) -> pd.DataFrame:
    """Returns one row per cause: ``cause``, ``outcome``, ``figure``, ``what it means``, ``why not`` (why it was not judged).

    Args:
        diagnosis: the diagnosis.
        state: choices that every linked page is opened with, such as the run and its split.
    """
    return pd.DataFrame([
        {"cause": c.cause, "outcome": _OUTCOMES[c.outcome],
         "figure": f"{FIGURES[c.cause].page}?{urlencode({**state, **FIGURES[c.cause].state})}",
         "what it means": MEANINGS[c.cause], "why not": c.why}
        for c in diagnosis.checks
    ])  # fmt: skip


def measures_table(diagnosis: Diagnosis) -> pd.DataFrame:
    """Returns one row per number that was compared with a threshold: ``cause``, ``outcome``, ``measured``, ``value``, ``low``, ``high``,
    ``threshold``, ``beyond`` (the side of the cause), ``is_beyond``; in the order of the causes.
    """
    columns = ["cause", "outcome", "measured", "value", "low", "high", "threshold", "beyond", "is_beyond"]
    return pd.DataFrame([
        (c.cause, _OUTCOMES[c.outcome], m.what, m.value, m.low, m.high, m.threshold, m.beyond, m.is_beyond)
        for c in diagnosis.checks for m in c.measures
    ], columns=columns)  # fmt: skip


def measures_figure(diagnosis: Diagnosis) -> go.Figure:
    """Draws every number that was compared with a threshold as a small bar: its interval, with the threshold in the middle of its row."""
    rows = [(check.cause, measure) for check in diagnosis.checks for measure in check.measures]
    figure = Chart()
    for name, (colour, symbol, _) in _STYLES.items():
        own = [(place, measure) for place, (_, measure) in enumerate(rows) if measure.is_beyond == (name == _BEYOND)]
        ends = np.array([_placed(measure) for _, measure in own]).reshape(-1, 3)
        bars = np.array([[[low, place], [high, place], [math.nan, math.nan]] for (place, _), (_, low, high) in zip(own, ends, strict=True)])
        path = bars.reshape(-1, 2)
        figure.add_scatter(x=path[:, 0], y=path[:, 1], mode="lines", line={"color": colour, "width": 7}, opacity=0.45, hoverinfo="skip",
                           showlegend=False)  # fmt: skip
        figure.add_scatter(
            x=ends[:, 0], y=[place for place, _ in own], mode="markers", name=name, marker={"color": colour, "symbol": symbol, "size": 9},
            text=[f"{plain(measure.what)}<br>{said(measure)}" for _, measure in own], hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    labels = [textwrap.wrap(f"{cause}: {measure.what}", _WIDEST) for cause, measure in rows]
    names = ["<br>".join(map(plain, lines)) for lines in labels]
    count, row = max(len(rows), 1), 10 + _LINE * max(map(len, labels), default=1)
    figure.add_vline(0, line={"color": GREY, "width": 1.5})  # pyright: ignore[reportArgumentType] - numbers are allowed
    figure.update_xaxes(range=[-1.1, 1.1], tickvals=[0], ticktext=["threshold"], title_text="← no sign of the cause | the cause →",
                        showgrid=False)  # fmt: skip
    figure.update_yaxes(range=[count - 0.5, -0.5], tickvals=list(range(len(rows))), ticktext=names)
    for place, (_, measure) in enumerate(rows):
        figure.add_annotation(x=1, y=place, xref="paper", xanchor="left", xshift=8, text=said(measure), showarrow=False, align="left")
    # the figure is high, so that the usual distance of the legend would put it out of sight
    quiet(figure, 56 + _TOP + row * count, legend_y=1)
    figure.update_annotations(font_size=11)
    left = max((len(line) for lines in labels for line in lines), default=0)
    right = max((len(said(measure)) for _, measure in rows), default=0)
    return laid_out(figure, margin={"l": 20 + int(_LETTER * left), "r": 16 + int(_LETTER * right), "t": _TOP, "b": 56, "autoexpand": False})


def said(measure: Measurement) -> str:
    """Returns the number with its interval and its threshold in a few words."""
    digits, limit = (".1f", ".1f") if measure.points else (".3g", "g")
    ends = "" if measure.low is None or measure.high is None else f" [{measure.low:{digits}}, {measure.high:{digits}}]"
    return f"{measure.value:{digits}}{ends}, cause {measure.beyond} {measure.threshold:{limit}}"


def _placed(measure: Measurement) -> tuple[float, float, float]:
    """Returns where value, low and high lie in a row from -1 to 1, with the threshold at 0 and the cause at the right."""
    ends = [measure.value if end is None else end for end in (measure.value, measure.low, measure.high)]
    away = np.nan_to_num([end - measure.threshold for end in ends])
    away = away / (np.abs(away).max() or 1)
    value, low, high = away if measure.beyond == "above" else -away[[0, 2, 1]]
    return float(value), float(low), float(high)
