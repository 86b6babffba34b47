"""Draws differences between two models with their intervals, coloured by the verdict."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.views.style import GREY, VERDICTS, Chart, interval


def differences(table: pd.DataFrame, texts: Sequence[str]) -> go.Figure:
    """Draws one mark for each row, from the top to the bottom, over a line at 0.

    Args:
        table: ``difference``, ``low`` and ``high`` as shares, drawn in points, and ``verdict``.
        texts: what is shown where a mark is pointed at, by row; names in it are escaped.
    """
    figure = Chart()
    for word, (colour, symbol, _) in VERDICTS.items():
        rows = np.flatnonzero(table["verdict"] == word)
        value, low, high = (100 * table[column].to_numpy(float)[rows] for column in ("difference", "low", "high"))
        figure.add_scatter(
            x=value, y=rows, mode="markers", name=word, showlegend=True, marker={"color": colour, "symbol": symbol, "size": 10},
            error_x=interval((value, low, high), colour), text=[texts[int(row)] for row in rows], hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    figure.add_vline(0, line={"color": GREY, "width": 1})  # pyright: ignore[reportArgumentType] - numbers are allowed
    return figure
