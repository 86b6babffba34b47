"""Shows all verdicts on one arm: a forest plot, the same numbers as rows of a table, and what each number means."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.analysis.detection.ap_tests import (
    AGREEMENT,
    CALIBRATION_ERROR,
    CHURN,
    COCO,
    FOUND_BY_CHURN,
    GROUP_AGREEMENT,
    INSTABILITY,
    LAYER_CHURN,
    QUALITY,
    WORTH,
    lost_to,
)
from workbench.analysis.detection.tide import LABELS
from workbench.views.style import GREY, VERDICTS, Chart, interval, plain, quiet, reach, with_names
from workbench.views.summary import COLUMNS

POINTS = "percentage points"
UNITS = {INSTABILITY.name: "queries per image", QUALITY.name: "from 0 to 1", WORTH.name: "from 0 to 1"}  # of numbers that are no shares
_DIGITS = {POINTS: 1, "queries per image": 2, "from 0 to 1": 3}
_COLUMNS = {CHURN.name: "churn", INSTABILITY.name: "instability", AGREEMENT.name: "agreement", FOUND_BY_CHURN.name: "found_by_churn",
            QUALITY.name: "quality", LAYER_CHURN.name: "layers_churn"}  # fmt: skip
MEANINGS = {
    **{name: COLUMNS[column].meaning for name, column in _COLUMNS.items()},
    **{quantity.name: "Average precision of COCO. Higher is better." for quantity in COCO.values() if quantity.name.startswith("AP")},
    **{quantity.name: "Average recall of COCO. Higher is better." for quantity in COCO.values() if quantity.name.startswith("AR")},
    CALIBRATION_ERROR.name: "Mean distance between score and precision, over ranges of scores. Lower is better.",
    GROUP_AGREEMENT.name: "Agreement of the student's own queries with the teacher's queries in the student's decoder. Higher is better.",
    WORTH.name: "Mean over targets of the matched query's score times its IoU. The difference is the gain. Higher is better.",
    **{lost_to(error): "AP50 that would be gained if all errors of this type, and no others, were corrected (TIDE). Lower is better."
       for error in LABELS},
}  # fmt: skip


def verdict_rows(verdicts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns verdicts of ``Verdict.to_json`` as rows in the unit that is shown.

    Each row has ``quantity``, ``unit``, ``digits``, ``baseline``, ``other``, ``difference``, ``low``, ``high``, and the ``verdict``, or why
    there is none.
    """
    rows: list[dict[str, Any]] = []
    for one in verdicts:
        unit = UNITS.get(one["quantity"], POINTS)
        scale = 100 if unit == POINTS else 1
        numbers = {name: None if one[name] is None else scale * one[name] for name in ("baseline", "other", "difference", "low", "high")}
        word = one["verdict"] if one["verdict"] in VERDICTS else one["sentence"].removeprefix(f"{one['quantity']}: ")
        rows.append({"quantity": one["quantity"], "unit": unit, "digits": _DIGITS[unit], **numbers, "verdict": word})
    return rows


def with_units(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a table of ``of_runs.verdict_table`` in words, with the unit of each number and the sign of each verdict before its word."""
    signs = {word: f"{style.sign} {word}" for word, style in VERDICTS.items()}
    units = [UNITS.get(quantity, POINTS) for quantity in table["quantity"]]
    return table.assign(unit=units, verdict=table["verdict"].replace(signs))


def forest_figure(verdicts: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Draws all verdicts on one arm, a row per number: the difference with its interval, right of zero where the number is higher.

    Numbers of one unit share a plot. Marks and hues say which differences are better; lower is better of churn and errors.

    Args:
        verdicts: of ``Verdict.to_json``; those that have no difference are left out.
    """
    units: dict[str, list[Mapping[str, Any]]] = {}
    for verdict in verdicts:
        if verdict["difference"] is not None:
            units.setdefault(UNITS.get(verdict["quantity"], POINTS), []).append(verdict)
    counts = [len(own) for own in units.values()]
    figure = make_subplots(max(len(units), 1), 1, row_heights=[count + 1 for count in counts] or None, figure=Chart(),
                           vertical_spacing=min(0.1, 2.6 / (sum(counts) + 1)))  # fmt: skip
    shown: set[str] = set()
    for row, (unit, own) in enumerate(units.items(), 1):
        scale = 100 if unit == POINTS else 1
        values = scale * np.array([[one[name] for name in ("difference", "low", "high")] for one in own], float)
        for word, (colour, symbol, _) in VERDICTS.items():
            rows = [place for place, one in enumerate(own) if one["verdict"] == word]
            if rows:
                figure.add_scatter(
                    x=values[rows, 0], y=rows, mode="markers", name=word, legendgroup=word, showlegend=word not in shown, row=row, col=1,
                    marker={"color": colour, "symbol": symbol, "size": 9}, error_x=interval(list(values[rows].T), colour),
                    text=[plain(own[place]["sentence"]) for place in rows], hovertemplate="%{text}<extra></extra>",
                )  # fmt: skip
                shown.add(word)
        figure.add_vline(0, line={"color": GREY, "width": 1}, row=row, col=1)  # pyright: ignore[reportArgumentType] - numbers are allowed
        figure.update_xaxes(title_text=f"difference ({unit})", range=reach(np.zeros(1), values), row=row, col=1)
    names = [[plain(one["quantity"]) for one in own] for own in units.values()]
    with_names(quiet(figure, 90 + 22 * sum(counts) + 60 * len(counts)), max(names, key=lambda own: max(map(len, own)), default=[]))
    for row, own in enumerate(names, 1):
        figure.update_yaxes(tickvals=list(range(len(own))), ticktext=own, range=[len(own) - 0.5, -0.5], row=row, col=1)
    return figure
