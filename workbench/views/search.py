"""Shows a search for a distiller: its trials with their rungs, the best means, what survives, the space, and what rungs tell.

The tables come from ``workbench.search.shown``; AP is in points.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.duration import duration
from workbench.views.style import (
    COLOURS,
    GREY,
    Chart,
    faded,
    interval,
    laid_out,
    plain,
    quiet,
    reach,
    run_style,
    saying,
    with_names,
)

TRIALS_CAPTION = (
    "A large mark is a trial's AP on the held-out images at its end, or at the rung that ended it; small marks joined to it are its rungs "
    "before. Crosses at the bottom were refused by a gate before they had an AP. Diamonds repeat one of the best candidates with a fresh "
    "seed. The line is the best mean over fresh seeds with its 95 % interval (Student's t, spread of all repeated candidates "
    "together); the best single trial is not shown as the best, because luck helped to pick it."
)
MEANS_CAPTION = (
    "Candidates that were trained again. Filled marks are fresh seeds, bars their mean with its 95 % interval. The open mark is the trial "
    "that made the candidate one of the best; it does not count, and tends to lie too high."
)
SURVIVORS_CAPTION = (
    "Share of each choice among the best 20 % of the trials that had been trained by then (to their end, repeats left out), in canonical "
    "form. A choice whose colour fades does not survive; one whose colour grows strong is what the search keeps."
)
RUNGS_CAPTION = (
    "The first trials of the study, which run to their end whatever a rung says. A rung may end later trials only if Spearman's rank "
    "correlation with the end reaches the limit of the plan."
)
OUTCOMES = {
    "trained": ("trained to its end", COLOURS[0], "circle"),
    "rung": ("ended at a rung", COLOURS[4], "circle"),
    "refused": ("refused by a gate", COLOURS[1], "x-thin"),
    "failed": ("failed", GREY, "x-thin"),
}
KINDS = {kind: name for kind, (name, *_) in OUTCOMES.items()} | {"repeat": "repeat with a fresh seed"}
_BEST = COLOURS[2]
_REPEAT = COLOURS[3]
_MANY = 1500  # trials and rungs; above it most trials are counted in cells
_PICKED = 300  # trials that have a mark even then
_CELLS = 100, 40  # along the order of the trials and along AP
OFFERED = 100  # trials that a list offers


def trials_figure(trials: pd.DataFrame, rungs: pd.DataFrame, leaders: pd.DataFrame, chosen: int | None = None) -> go.Figure:
    """Draws the trials of a study in the order in which they ended.

    Args:
        trials: ``shown.trial_table``.
        rungs: ``shown.rung_table``.
        leaders: ``shown.leader_table``.
        chosen: number of a trial to point at; left out where there are too many marks to draw them anew for it. Of so many trials all
            but those of ``picked`` are counted in cells: the browser draws one picture where thousands of marks took it seconds.
    """
    if trials.empty:
        return saying("No trial has ended yet.")
    figure = Chart()
    many = without_rungs(trials, rungs)
    size, picks = 5 if many else 8, picked(trials)
    measured = trials.dropna(subset=["ap"])
    bottom, top = reach(measured["ap"].to_numpy(), rungs["ap"].to_numpy(), leaders[["mean", "low", "high"]].to_numpy(float), zero=True)
    floor = bottom - 0.04 * (top - bottom)
    if many:
        _add_cells(figure, trials[~trials["repeat"]].drop(picks), (bottom, top), floor, int(trials["place"].max()))
    _add_leaders(figure, leaders, len(trials))
    if not many:
        _add_rungs(figure, measured, rungs)
    for kind, (name, colour, symbol) in OUTCOMES.items():
        own = trials[(trials["outcome"] == kind) & ~trials["repeat"]]
        if len(own):
            marker = {"color": colour, "size": size if symbol == "circle" else size - 1, "symbol": symbol, "line": {"width": 0}}
            marker |= {"line": {"width": 1.4, "color": colour}} if symbol != "circle" else {}
            shown = own[own.index.isin(picks)] if many else own
            _add_trials(figure, shown, shown["ap"].fillna(floor), f"{name} ({len(own)})", marker)
    again = trials[trials["repeat"]].dropna(subset=["ap"])
    if len(again):
        marker = {"color": _REPEAT, "size": 8, "symbol": "diamond", "line": {"width": 0}}
        _add_trials(figure, again, again["ap"], f"repeat with a fresh seed ({len(again)})", marker)
    pointed = trials[~trials["repeat"] & (trials["number"] == chosen)]
    if len(pointed) and not many:
        ring = {"color": "rgba(0,0,0,0)", "size": 16, "line": {"width": 2, "color": COLOURS[1]}}
        figure.add_scatter(
            x=pointed["place"], y=pointed["ap"].fillna(floor), mode="markers", marker=ring, showlegend=False, hoverinfo="skip"
        )
    figure.update_xaxes(title_text="trials and repeats, in the order in which they ended", range=reach(trials["place"].to_numpy()))
    figure.update_yaxes(title_text="AP", range=[floor - 0.03 * (top - bottom), top])
    return quiet(figure, 430, legend_y=1.02)


def without_rungs(trials: pd.DataFrame, rungs: pd.DataFrame) -> bool:
    """True if ``trials_figure`` leaves out rungs, because there are too many marks to tell them apart and to draw them quickly."""
    return len(trials) + len(rungs) > _MANY


def offered(firsts: pd.DataFrame, chosen: int) -> pd.DataFrame:
    """Returns the trials that a list offers: all or, of many, the ``OFFERED`` best and the chosen one. The browser needs a third of a
    second for a list of thousands.

    Args:
        firsts: rows of ``shown.trial_table`` by number, without repeats.
        chosen: number of the chosen trial.
    """
    if len(firsts) <= OFFERED:
        return firsts
    best = firsts.sort_values("ap", ascending=False, kind="stable").index[:OFFERED]
    return firsts.loc[best.union([chosen])]


def picked(trials: pd.DataFrame) -> pd.Index:
    """Returns the rows of the trials that ``trials_figure`` always draws as marks: all or, of many, the best and every n-th other."""
    ranked = trials[~trials["repeat"]].sort_values("ap", ascending=False, kind="stable")
    if len(ranked) <= _PICKED:
        return ranked.index
    best, others = ranked.index[: _PICKED // 5], ranked.index[_PICKED // 5 :].sort_values()
    return best.append(others[np.linspace(0, len(others) - 1, _PICKED - len(best)).round().astype(int)])


def _add_cells(figure: go.Figure, own: pd.DataFrame, limits: tuple[float, float], floor: float, last: int) -> None:
    """Adds how many trials lie in each cell of a grid over the order and AP, and in each cell at the bottom how many have no AP."""
    across, up = _CELLS
    edges = np.linspace(0.5, last + 0.5, across + 1)
    measured = own.dropna(subset=["ap"])
    counts, _, heights = np.histogram2d(measured["place"], measured["ap"], bins=(edges, np.linspace(*limits, up + 1)))
    refused, _ = np.histogram(own.loc[own["ap"].isna(), "place"], bins=edges)
    kinds = (
        (counts.T, heights, GREY, "trials around AP %{y:.1f}"),
        (refused[None], floor + 0.012 * (limits[1] - limits[0]) * np.array([-1, 1]), OUTCOMES["refused"][1], "trials without an AP"),
    )
    for numbers, places, colour, what in kinds:
        if not numbers.any():
            continue
        figure.add_heatmap(
            x=edges, y=places, z=np.where(numbers > 0, numbers, np.nan), zmin=0, zmax=float(numbers.max()), showscale=False,
            colorscale=((0, faded(colour, 0.15)), (1, faded(colour, 0.85))),
            hovertemplate=f"%{{z}} {what}<br>of those around %{{x:.0f}} in order<extra></extra>",
        )  # fmt: skip


def _add_leaders(figure: go.Figure, leaders: pd.DataFrame, last: int) -> None:
    """Adds the best mean as steps over the band of its interval."""
    if leaders.empty:
        return
    steps = pd.concat([leaders, leaders.tail(1).assign(place=max(last, int(leaders["place"].iloc[-1])))])
    known = steps.dropna(subset=["low"])
    if len(known):
        edges = [_stairs(known["place"].to_numpy(), known[name].to_numpy()) for name in ("low", "high")]
        (x, low), (_, high) = edges
        figure.add_scatter(x=np.concatenate([x, x[::-1]]), y=np.concatenate([low, high[::-1]]), fill="toself", fillcolor=faded(_BEST, 0.18),
                           line_width=0, mode="lines", hoverinfo="skip", showlegend=False)  # fmt: skip
    texts = [f"{plain(row.candidate)}<br>mean {row.mean:.2f}{_between(row.low, row.high)}<br>n = {row.n} fresh seeds"
             for row in _rows(steps)]  # fmt: skip
    figure.add_scatter(x=steps["place"], y=steps["mean"], mode="lines", line={"color": _BEST, "width": 2.2, "shape": "hv"},
                       name="best mean over fresh seeds", hovertext=texts, hovertemplate="%{hovertext}<extra></extra>")  # fmt: skip


def _stairs(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the corners of a line that keeps each value until the next."""
    return np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]


def _add_rungs(figure: go.Figure, measured: pd.DataFrame, rungs: pd.DataFrame) -> None:
    """Adds a small mark for each rung, and a thin line from a trial's first rung to its end."""
    if rungs.empty:
        return
    first = rungs.sort_values("step").groupby("place", sort=True)["ap"].first()
    ends = measured.set_index("place")["ap"]
    both = pd.concat([first.rename("rung"), ends], axis=1, join="inner")
    x = np.column_stack([both.index, both.index, np.full(len(both), np.nan)]).ravel()
    y = np.column_stack([both["rung"], both["ap"], np.full(len(both), np.nan)]).ravel()
    line = {"color": faded(GREY, 0.45), "width": 1}
    figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False)
    figure.add_trace({
        "type": "scatter", "x": rungs["place"], "y": rungs["ap"], "mode": "markers", "name": "at a rung",
        "marker": {"color": faded(GREY, 0.9), "size": 4, "line": {"width": 0}}, "unselected": {"marker": {"opacity": 1}},
        "customdata": rungs[["number", "step"]].to_numpy(),
        "hovertemplate": "trial %{customdata[0]}, step %{customdata[1]}<br>AP %{y:.2f}<extra></extra>",
    })  # fmt: skip


def _add_trials(figure: go.Figure, own: pd.DataFrame, y: pd.Series, name: str, marker: dict[str, Any]) -> None:
    texts = [
        f"{'repeat of trial' if row.repeat else 'trial'} {int(row.repeat_of if row.repeat else row.number)}"
        f"{'' if np.isnan(row.ap) else f', AP {row.ap:.2f}'}<br>{plain(row.candidate)}"
        + (f"<br>{plain(row.gate)}: {plain(row.reason)}" if row.gate else f"<br>{plain(row.reason)}" if row.reason else "")
        for row in _rows(own)
    ]
    shown = own["repeat_of"].fillna(own["number"]).astype(int)
    figure.add_trace({
        "type": "scatter", "x": own["place"], "y": y, "mode": "markers", "name": name, "marker": marker, "hovertext": texts,
        "customdata": shown.to_numpy()[:, None], "hovertemplate": "%{hovertext}<extra></extra>",
        "unselected": {"marker": {"opacity": 1}},
    })  # fmt: skip


def means_figure(table: pd.DataFrame) -> go.Figure:
    """Draws the candidates of ``shown.mean_table``, the best at the top."""
    if table.empty:
        return saying("No candidate has been trained with fresh seeds yet.")
    figure, place = Chart(), np.arange(len(table))
    texts = [f"{plain(row.candidate)}<br>mean {row.mean:.2f}{_between(row.low, row.high)}<br>n = {row.n} fresh seeds"
             for row in _rows(table)]  # fmt: skip
    figure.add_scatter(
        x=table["mean"], y=place, mode="markers", name="mean over fresh seeds",
        hovertext=texts, hovertemplate="%{hovertext}<extra></extra>",
        marker={"symbol": "line-ns", "size": 16, "line": {"width": 3, "color": _BEST}},
        error_x=interval([table[name].to_numpy(float) for name in ("mean", "low", "high")], _BEST),
    )  # fmt: skip
    seeds = [(index, value) for index, values in enumerate(table["values"]) for value in values]
    figure.add_scatter(x=[value for _, value in seeds], y=[index for index, _ in seeds], mode="markers", name="fresh seed",
                       marker={"color": _REPEAT, "size": 8, "symbol": "diamond"}, hovertemplate="AP %{x:.2f}<extra></extra>")  # fmt: skip
    figure.add_scatter(
        x=table["first"], y=place, mode="markers", name="first trial, not counted", hovertemplate="AP %{x:.2f}<extra></extra>",
        marker={"color": COLOURS[0], "size": 9, "symbol": "circle-open", "line": {"width": 1.6}},
    )  # fmt: skip
    values = [table[name].to_numpy(float) for name in ("low", "high", "mean", "first")]
    figure.update_xaxes(title_text="AP", range=reach(*values, np.array([value for _, value in seeds])))
    names = [plain(f"{row.number} · {_short(str(row.candidate))}") for row in _rows(table)]
    return with_names(quiet(figure, 110 + 30 * len(table), legend_y=1.02), names)


def survivors_figure(table: pd.DataFrame) -> go.Figure:
    """Draws the share of each choice among the best fifth over the trials of ``shown.survivor_table``, one plot for each position."""
    if table.empty:
        return saying("No trial has been trained to its end yet.")
    positions = list(dict.fromkeys(table["position"]))
    columns = min(len(positions), 2)
    rows = -(-len(positions) // columns)
    orders = {position: _by_end(table[table["position"] == position]) for position in positions}
    tall = [max(len(orders[position]) for position in positions[row * columns : (row + 1) * columns]) for row in range(rows)]
    figure = make_subplots(rows, columns, subplot_titles=[plain(name) for name in positions], row_heights=[max(n, 3) for n in tall],
                           vertical_spacing=0.15 if rows > 1 else 0, horizontal_spacing=0.17, figure=Chart())  # fmt: skip
    moments = sorted(table["trials"].unique())
    for index, position in enumerate(positions):
        row, column = index // columns + 1, index % columns + 1
        own, order = table[table["position"] == position], orders[position]
        grids = [own.pivot(index="choice", columns="trials", values=name).reindex(index=order, columns=moments).fillna(0)
                 for name in ("share", "proposed")]  # fmt: skip
        figure.add_heatmap(
            x=moments, y=list(range(len(order))), z=100 * grids[0].to_numpy(), customdata=100 * grids[1].to_numpy(), zmin=0, zmax=100,
            colorscale=((0, faded(COLOURS[0], 0.06)), (0.25, faded(COLOURS[0], 0.45)), (1, COLOURS[0])), showscale=index == 0,
            hovertext=[[plain(choice)] * len(moments) for choice in order], ygap=1,
            colorbar={"title": {"text": "% of the best fifth", "side": "right"}, "thickness": 10, "outlinewidth": 0, "x": 1.01},
            hovertemplate="%{hovertext} after %{x} trials<br>%{z:.0f} % of the best fifth, %{customdata:.0f} % of all<extra></extra>",
            row=row, col=column,
        )  # fmt: skip
        names = [f"{plain(choice)}  {100 * grids[0].loc[choice].iloc[-1]:.0f} %" for choice in order]
        figure.update_yaxes(tickvals=list(range(len(order))), ticktext=names, range=[len(order) - 0.5, -0.5], showgrid=False,
                            row=row, col=column)  # fmt: skip
        figure.update_xaxes(title_text="trials trained" if row == rows or index + columns >= len(positions) else "", showgrid=False,
                            range=_edges(moments), row=row, col=column)  # fmt: skip
    height = 110 + int(sum(20 * max(n, 3) for n in tall) / (1 - 0.15 * (rows - 1)))
    return quiet(figure, height, margin={"l": 170, "r": 90, "t": 34, "b": 44})


def _by_end(own: pd.DataFrame) -> list[Any]:
    """Returns the choices of a position, the most common among the best at the end first."""
    last = own[own["trials"] == own["trials"].max()]
    first = list(last.sort_values(["share", "proposed"], ascending=False, kind="stable")["choice"])
    return first + [choice for choice in dict.fromkeys(own["choice"]) if choice not in first]


def _edges(moments: Sequence[int]) -> list[float]:
    """Returns the ends of an axis of cells around the moments."""
    if len(moments) == 1:
        return [moments[0] - 0.5, moments[0] + 0.5]
    return [moments[0] - (moments[1] - moments[0]) / 2, moments[-1] + (moments[-1] - moments[-2]) / 2]


def rungs_figure(points: pd.DataFrame, rungs: pd.DataFrame, limit: float, least: int) -> go.Figure:
    """Draws AP at each rung against AP at the end, with the rank correlation.

    Args:
        points: first table of ``shown.calibration_table``.
        rungs: its second table.
        limit: least correlation at which a rung ends trials.
        least: number of trials on which it must have been measured.
    """
    if rungs.empty:
        return saying("No first trial has run to its end yet, so nothing is known about rungs.")
    titles = [f"step {int(row.step)}: {_told(row.correlation, int(row.n), limit, least)}" for row in _rows(rungs)]
    figure = make_subplots(1, len(rungs), subplot_titles=[plain(title) for title in titles], horizontal_spacing=0.08, figure=Chart())
    for column, row in enumerate(_rows(rungs), 1):
        own = points[points["step"] == row.step]
        figure.add_scatter(
            x=own["rung"], y=own["end"], mode="markers", marker={"color": run_style(column - 1)[0], "size": 8}, showlegend=False,
            customdata=own[["number"]].to_numpy(), row=1, col=column,
            hovertemplate="trial %{customdata[0]}<br>AP at the rung %{x:.2f}<br>AP at the end %{y:.2f}<extra></extra>",
        )  # fmt: skip
        figure.update_xaxes(title_text="AP at the rung", range=reach(own["rung"].to_numpy()), row=1, col=column)
        figure.update_yaxes(title_text="AP at the end" if column == 1 else "", range=reach(own["end"].to_numpy()), row=1, col=column)
    return quiet(figure, 320, margin={"l": 56, "r": 12, "t": 34, "b": 44})


def _told(correlation: float, trials: int, limit: float, least: int) -> str:
    if np.isnan(correlation):
        return f"rank correlation not defined, n = {trials}"
    verdict = "ends trials" if correlation >= limit and trials >= least else "ends none"
    return f"rank correlation {correlation:.2f}, n = {trials}; {verdict}"


def rejections_figure(table: pd.DataFrame) -> go.Figure:
    """Draws how many trials each gate ended, by reason (``shown.rejection_table``)."""
    if table.empty:
        return saying("No gate has ended a trial yet.")
    names = [plain(f"{row.gate}: {_short(str(row.reason), 70)}") for row in _rows(table)]
    figure = Chart()
    for index, gate in enumerate(dict.fromkeys(table["gate"])):
        own = np.flatnonzero(table["gate"] == gate)
        figure.add_bar(
            x=table["trials"].iloc[own], y=own, orientation="h", name=plain(gate), hovertext=[plain(table["reason"].iloc[n]) for n in own],
            marker={"color": run_style(index)[0], "line_width": 0}, hovertemplate="%{hovertext}<br>%{x} trials<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="trials", range=reach(table["trials"].to_numpy(float), zero=True))
    drawn = with_names(quiet(figure, 110 + 22 * len(table), barmode="overlay", bargap=0.3, legend_y=1.02), names)
    longest = max(map(len, names))
    return laid_out(drawn, margin={"l": 24 + int(5.9 * longest), "r": 12, "t": 56, "b": 44})


def curves_figure(curves: pd.DataFrame) -> go.Figure:
    """Draws how good the best formula is that samplers have found after each trial, with intervals over their seeds.

    Args:
        curves: ``sampler``, ``trial``, ``ap`` (points), ``low``, ``high``, ``n`` (seeds).
    """
    figure = Chart()
    for position, sampler in enumerate(dict.fromkeys(curves["sampler"])):
        own = curves[curves["sampler"] == sampler].sort_values("trial")
        colour, dash = run_style(position)
        x = own["trial"].to_numpy()
        figure.add_scatter(x=np.concatenate([x, x[::-1]]), y=np.concatenate([own["low"], own["high"][::-1]]), fill="toself",
                           fillcolor=faded(colour, 0.1), line_width=0, mode="lines", hoverinfo="skip", showlegend=False)  # fmt: skip
        figure.add_scatter(
            x=x, y=own["ap"], name=plain(sampler), mode="lines", line={"color": colour, "dash": dash, "width": 2}, customdata=own["n"],
            hovertemplate=f"{plain(sampler)} after %{{x}} trials: AP %{{y:.2f}}<br>%{{customdata}} seeds<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="trials", range=reach(curves["trial"].to_numpy(float)))
    figure.update_yaxes(title_text="best AP so far", range=reach(curves[["ap", "low", "high"]].to_numpy(float)))
    return quiet(figure, 420)


def trial_names(firsts: pd.DataFrame) -> dict[int, str]:
    """Returns the name of each trial in a list: number, formula and AP. The rows of ``shown.trial_table`` are indexed by number."""
    return {
        number: f"{number} · {candidate} · {'not measured' if np.isnan(ap) else f'AP {ap:.2f}'}"
        for number, candidate, ap in zip(firsts.index.tolist(), firsts["candidate"], firsts["ap"], strict=True)
    }


def _rows(table: pd.DataFrame) -> list[Any]:
    """Returns the rows of a table, with its columns as attributes."""
    return list(table.itertuples())


def _between(low: float, high: float) -> str:
    return "" if np.isnan(low) else f" (95 %: {low:.2f} to {high:.2f})"


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def time_told(seconds: float | None) -> str:
    """Returns a time in the unit that suits it, a dash if it is not known."""
    return "–" if seconds is None else duration(seconds)
