"""Shows the formulas that a search has trained as lines across the positions of a formula, and keeps those that pass chosen places.

The lines are ordinary ones of a plot with axes of its own. Plotly's parallel coordinates tell a page nothing of what is brushed
(Streamlit passes on marks and boxes that are selected, and a brush is neither), so that they could filter nothing beside them, and drawing
them takes seconds where no graphics card does it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.views.style import AXIS, GREY, Chart, faded, plain, quiet, reach, saying

SPACE_CAPTION = (
    "One line for each trial that was trained to its end, coloured by its AP, which the last axis shows. Drag a box over a piece of one or "
    "more axes to keep the trials that pass there: the lists above the figure show what is kept, and the table below has the trials. Lines "
    "are moved a little within a choice, so that they can be told apart. The choice with the highest mean AP is at the top of its axis."
)
AP = "AP"
_MOST_LINES, _MOST_LEFT_OUT = 800, 200
# from the lowest AP to the highest: each stands out from the ground of both themes by 3 to 1, as thin lines only do without opacity
COLOURS = ("#7B55B5", "#9A55B0", "#BE4C92", "#D45565", "#D96B2E", "#C07C14", "#B88A00")
_SPREAD = 0.2  # of a choice's room, to each side of its middle
_HEIGHT = 520


@dataclass(frozen=True)
class Kept:
    """Which trials are kept.

    Attributes:
        choices: The choices that pass, by position; all pass at a position that is missing.
        low, high: Ends of the AP (points) that pass; None for no limit.
    """

    choices: Mapping[str, Sequence[Any]] = field(default_factory=dict[str, Sequence[Any]])
    low: float | None = None
    high: float | None = None

    def of(self, table: pd.DataFrame) -> pd.DataFrame:
        """Returns the rows of ``shown.space_table`` that pass everywhere."""
        passes = np.ones(len(table), dtype=bool)
        for position, choices in self.choices.items():
            passes &= table[position].isin(list(choices)).to_numpy()
        for limit, sign in ((self.low, 1), (self.high, -1)):
            if limit is not None:
                passes &= (sign * (table["ap"] - limit)).to_numpy() >= 0
        return table[passes]


class SpaceAxes:
    """The axes of the figure: one for each position at x = 0, 1, ..., and that of AP behind them; all reach from 0 to 1.

    Args:
        table: all trials, ``shown.space_table``.
        positions: its positions.

    Attributes:
        choices: The choices at each position, the one with the lowest mean AP first; shares in their own order.
        ends: AP at the ends of its axis.
    """

    def __init__(self, table: pd.DataFrame, positions: Sequence[str]):
        self.choices = {position: _worst_first(table, position) for position in positions}
        self.ends = reach(table["ap"].to_numpy(float))

    def middle(self, position: str) -> dict[Any, float]:
        """Returns the height of the middle of each choice."""
        choices = self.choices[position]
        return {choice: (place + 0.5) / len(choices) for place, choice in enumerate(choices)}

    def height(self, ap: Any) -> Any:
        """Returns the height of an AP on its axis."""
        return (ap - self.ends[0]) / (self.ends[1] - self.ends[0])

    def boxed(self, boxes: Sequence[Mapping[str, Sequence[float]]], kept: Kept) -> Kept:
        """Returns what is kept after boxes were drawn over axes; an axis that no box crosses keeps what it kept.

        Args:
            boxes: ends ``x`` and ``y`` of each box.
            kept: what was kept before.
        """
        choices, limits = dict(kept.choices), (kept.low, kept.high)
        for box in boxes:
            (left, right), (bottom, top) = sorted(box["x"]), sorted(box["y"])
            for place, position in enumerate(self.choices):
                half = _SPREAD / len(self.choices[position])
                inside = [one for one, middle in self.middle(position).items() if bottom <= middle + half and middle - half <= top]
                if left <= place <= right and inside:
                    choices[position] = inside
            if left <= len(self.choices) <= right:
                low, high = (self.ends[0] + min(max(end, 0.0), 1.0) * (self.ends[1] - self.ends[0]) for end in (bottom, top))
                limits = (low if bottom > 0 else None, high if top < 1 else None)
        return Kept(choices, *limits)


def space_figure(table: pd.DataFrame, positions: Sequence[str], kept: Kept | None = None) -> go.Figure:
    """Draws the trials of ``shown.space_table`` as lines across the positions, those that are not kept in grey."""
    if table.empty:
        return saying("No trial has been trained to its end yet.")
    axes, figure = SpaceAxes(table, positions), Chart()
    passing = (kept or Kept()).of(table)
    shift = pd.DataFrame(np.random.default_rng(0).uniform(-_SPREAD, _SPREAD, (len(table), len(positions))), table.index, list(positions))
    left_out = table.drop(passing.index)
    _add_lines(figure, axes, _thinned(left_out, _MOST_LEFT_OUT), shift, faded(GREY, 0.25))
    drawn = drawn_of(passing).sort_values("ap", kind="stable")  # the best are drawn last, over the others
    bins = np.linspace(axes.ends[0], axes.ends[1], len(COLOURS) + 1)
    for colour, own in zip(COLOURS, _split(drawn, bins), strict=True):
        _add_lines(figure, axes, own, shift, colour)
    _add_axes(figure, axes)
    titles = [*map(plain, positions), AP]
    figure.update_xaxes(range=[-0.2, len(positions) + 0.12], tickvals=list(range(len(titles))), ticktext=titles, side="top", showgrid=False,
                        showline=False, fixedrange=True)  # fmt: skip
    figure.update_yaxes(range=[-0.01, 1.03], visible=False, fixedrange=True)
    drawn_figure = quiet(figure, _HEIGHT, margin={"l": 8, "r": 8, "t": 40, "b": 8}, dragmode="select", showlegend=False)
    return drawn_figure.update_xaxes(tickfont_size=13, ticks="")


def drawn_of(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the trials that ``space_figure`` draws: all of them or, of very many, the best fifth of what fits and every n-th other."""
    if len(table) <= _MOST_LINES:
        return table
    ranked = table.sort_values("ap", ascending=False, kind="stable")
    best = _MOST_LINES // 5
    return pd.concat([ranked.head(best), _thinned(ranked.iloc[best:], _MOST_LINES - best)])


def _thinned(table: pd.DataFrame, most: int) -> pd.DataFrame:
    """Returns every n-th row, ``most`` at most, the last among them."""
    return table if len(table) <= most else table.iloc[np.linspace(0, len(table) - 1, most).round().astype(int)]


def _split(table: pd.DataFrame, bins: np.ndarray) -> list[pd.DataFrame]:
    place = np.clip(np.digitize(table["ap"], bins) - 1, 0, len(bins) - 2)
    return [table[place == number] for number in range(len(bins) - 1)]


def _add_lines(figure: go.Figure, axes: SpaceAxes, own: pd.DataFrame, shift: pd.DataFrame, colour: str) -> None:
    """Adds trials as one path, broken between them."""
    if own.empty:
        return
    moved = shift.loc[own.index]
    heights = [own[name].map(axes.middle(name)) + moved[name] / len(choices) for name, choices in axes.choices.items()]
    y = np.column_stack([*heights, axes.height(own["ap"]), np.full(len(own), np.nan)])
    x = np.tile([*map(float, range(y.shape[1] - 1)), np.nan], len(own))
    figure.add_trace({"type": "scatter", "x": x, "y": y.ravel().round(4), "mode": "lines", "line": {"color": colour, "width": 1},
                      "hoverinfo": "skip"})  # fmt: skip


def _add_axes(figure: go.Figure, axes: SpaceAxes) -> None:
    """Adds a line for each axis, the names of its choices above their places, and the colours and numbers of AP."""
    last = len(axes.choices)
    x = np.repeat(np.arange(last, dtype=float), 3)
    figure.add_trace({"type": "scatter", "x": x, "y": np.tile([0.0, 1.0, np.nan], last), "mode": "lines", "hoverinfo": "skip",
                      "line": {"color": AXIS, "width": 1.5}})  # fmt: skip
    for place, colour in enumerate(COLOURS):
        figure.add_trace({"type": "scatter", "x": [last, last], "y": [place / len(COLOURS), (place + 1) / len(COLOURS)], "mode": "lines",
                          "line": {"color": colour, "width": 7}, "hoverinfo": "skip"})  # fmt: skip
    names = [(place, middle + (_SPREAD + 0.03) / len(axes.choices[name]), plain(choice))
             for place, name in enumerate(axes.choices) for choice, middle in axes.middle(name).items()]  # fmt: skip
    for places, where, size in ((names, "top center", 11), (_ticks(axes, last), "middle right", 11)):
        figure.add_trace({
            "type": "scatter", "x": [x for x, _, _ in places], "y": [y for _, y, _ in places], "text": [text for _, _, text in places],
            "mode": "text", "textposition": where, "textfont": {"size": size}, "hoverinfo": "skip", "cliponaxis": False,
        })  # fmt: skip


def _ticks(axes: SpaceAxes, x: int) -> list[tuple[float, float, str]]:
    """Returns place and text of five numbers of AP."""
    values = np.linspace(axes.ends[0], axes.ends[1], 5)
    return [(x + 0.01, float(axes.height(value)), f"{value:.1f}") for value in values]


def _worst_first(table: pd.DataFrame, position: str) -> list[Any]:
    """Returns the choices of a position from the lowest mean AP to the highest; shares in their own order."""
    means = table.groupby(position)["ap"].mean()
    return list(means.sort_values(kind="stable").index) if all(isinstance(one, str) for one in means.index) else sorted(means.index)
