"""Lays the training curves of several runs over each other: loss, detection loss, distillation terms, gradients, rate and speed."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.views.style import DASHES, GREY, GRID, Chart, faded, plain, quiet, reach, run_style
from workbench.views.training import REST, Panel

DETECTION = f"weighted/{REST}"
_COLUMNS = ["run", "panel", "term", "step", "value", "smoothed"]
PANELS = (
    Panel("loss", "Loss", "loss", "The sum of all weighted terms, which training minimises. That of a distilled run has more terms."),
    Panel(DETECTION, "Detection loss", "loss", "All terms of the detection loss with their weights, which is the whole loss of an "
          "undistilled run. It means the same in every run, so distilled and undistilled runs compare here."),
    Panel("weighted/", "Distillation terms, weighted", "loss", "What each term of the method adds to the loss.", True),
    Panel("raw/", "Distillation terms, raw", "loss", "The terms of the method before their weights.", True),
    Panel("share/", "Gradient share", "% of detection", "The gradient norm of a weighted term, divided by that of the weighted detection "
          "loss. Both are taken on the student's parameters.", scale=100),
    Panel("cosine/", "Cosine with detection", "cosine", "The cosine between the gradients of a term and of the detection loss. Below 0 the "
          "term works against detection."),
    Panel("gradient_norm", "Gradient norm", "norm", "The norm of the gradient of the whole loss, before clipping.", True),
    Panel("learning_rate", "Learning rate", "rate", "The learning rate of the step."),
    Panel("steps_per_second wall", "Speed", "steps/s", "Optimiser steps per second of the clock, without evaluation and checkpoints."),
)  # fmt: skip
_WORDS = {"solid": "solid", "dash": "dashed", "dot": "dotted", "dashdot": "dash-dotted"}
_HEIGHT, _GAP = 118, 26  # pixels of a panel, and between two


def curves(lines: Mapping[str, pd.DataFrame], window: int = 1) -> pd.DataFrame:
    """Returns the curves of several runs as one frame.

    Args:
        lines: ``training.training_lines`` of each run, by its name.
        window: number of logged values that ``smoothed`` is the mean of, the value itself in their middle; fewer at the ends. 1 leaves
            the values as they are.

    Returns:
        One row per logged value: ``run``, ``panel`` (title), ``term`` ("" where a panel has one curve a run), ``step``, ``value`` and
        ``smoothed``, both in the unit of the panel.
    """
    frames: list[pd.DataFrame] = []
    for run, own in lines.items():
        for panel, column, term in _shown(own):
            values = own[["step", column]].dropna()
            value = values[column].astype(float) * panel.scale
            smoothed = value.rolling(window, center=True, min_periods=1).mean()
            frames.append(pd.DataFrame({"run": run, "panel": panel.title, "term": term, "step": values["step"], "value": value,
                                        "smoothed": smoothed}))  # fmt: skip
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=_COLUMNS)


def _shown(lines: pd.DataFrame) -> Iterator[tuple[Panel, str, str]]:
    """Yields the panel, the column and the term of each curve of a run."""
    names = list(map(str, lines.columns))
    for panel in PANELS:
        if panel.prefix == DETECTION:
            found = DETECTION if DETECTION in names else "loss" if "loss" in names else None
            yield from [(panel, found, "")] if found else []
        elif not panel.prefix.endswith("/"):
            yield from [(panel, panel.prefix, "")] if panel.prefix in names else []
        else:
            yield from ((panel, name, name.partition("/")[2]) for name in names if name.startswith(panel.prefix) and name != DETECTION)


def curves_figure(points: pd.DataFrame, runs: Sequence[str]) -> go.Figure:
    """Draws the curves of several runs, panels below each other over one axis of steps, so that pointing at a step shows it in all.

    Args:
        points: rows of ``curves``. Where values are smoothed, they are drawn faintly behind the smoothed ones.
        runs: names of the runs in the order of their colours; terms differ in their dash.
    """
    panels = [panel for panel in PANELS if (points["panel"] == panel.title).any()]
    dashes = _dashes(points)
    rows = max(len(panels), 1)
    height = 70 + rows * (_HEIGHT + _GAP)
    figure = make_subplots(rows, 1, subplot_titles=[panel.title for panel in panels], vertical_spacing=_GAP / (rows * (_HEIGHT + _GAP)),
                           figure=Chart())  # fmt: skip
    named: set[str] = set()
    for row, panel in enumerate(panels, 1):
        own = points[points["panel"] == panel.title]
        for (run, term), curve in own.groupby(["run", "term"], sort=False):
            colour, dash = run_style(list(runs).index(str(run)))
            name = plain(f"{run} · {term}" if term else run)
            line = {"color": colour, "width": 1.6, "dash": dashes.get(str(term), dash)}
            if not np.array_equal(curve["value"], curve["smoothed"]):
                figure.add_scatter(x=curve["step"], y=curve["value"], mode="lines", line={**line, "color": faded(colour, 0.28), "width": 1},
                                   showlegend=False, legendgroup=plain(run), hoverinfo="skip", row=row, col=1)  # fmt: skip
            figure.add_scatter(
                x=curve["step"], y=curve["smoothed"], mode="lines", name=plain(run), line=line, legendgroup=plain(run), row=row, col=1,
                showlegend=str(run) not in named, hovertemplate=f"{plain(panel.title)} %{{y:.4g}}<extra>{name}</extra>",
            )  # fmt: skip
            named.add(str(run))
        positive = panel.logarithmic and bool((own["value"] > 0).all())
        ends = reach(np.log10(own["value"])) if positive else reach(own["value"].to_numpy(float), zero=panel.prefix.startswith("steps"))
        figure.update_yaxes(type="log" if positive else "linear", range=ends, title_text=panel.unit, nticks=4, row=row, col=1)
        if panel.prefix == "cosine/":
            figure.add_hline(0, line={"color": GREY, "width": 1}, row=row, col=1)  # pyright: ignore[reportArgumentType] - numbers are allowed
    for term, dash in dashes.items() if len(dashes) > 1 else ():
        figure.add_scatter(x=[None], y=[None], mode="lines", name=plain(term), line={"color": GREY, "width": 1.6, "dash": dash},
                           hoverinfo="skip", hovertemplate="<extra></extra>", row=1, col=1)  # fmt: skip
    quiet(figure, height, legend_y=1 + 34 / max(height - 100, 1), hovermode="x unified", hoversubplots="axis")
    # one axis of steps for all panels: plotly shows one hover label for the panels of an axis
    last = float(points["step"].max()) if len(points) else 1.0
    figure.update_traces(xaxis="x").update_yaxes(anchor="x")
    figure.update_xaxes(visible=False, range=[0, last]).layout.xaxis.update(
        visible=True, anchor=f"y{rows}" if rows > 1 else "y", title_text="step", range=[0, last], showticklabels=True, gridcolor=GRID,
        showspikes=True, spikemode="across", spikecolor=GREY, spikethickness=1, spikedash="dot",
    )  # fmt: skip
    return figure


def curve_meanings(points: pd.DataFrame) -> str:
    """Returns the dash of each term, and titles and definitions of the panels that ``curves_figure`` draws."""
    shown = [panel for panel in PANELS if (points["panel"] == panel.title).any()]
    terms = [f"{term} {_WORDS[dash]}" for term, dash in _dashes(points).items()]
    lines = [f"Lines of terms: {', '.join(terms)}."] if len(terms) > 1 else []
    return " ".join([*lines, *(f"{panel.title}: {panel.meaning[0].lower()}{panel.meaning[1:]}" for panel in shown)])


def _dashes(points: pd.DataFrame) -> dict[str, str]:
    return {term: DASHES[number % len(DASHES)] for number, term in enumerate(sorted(set(points["term"]) - {""}))}
