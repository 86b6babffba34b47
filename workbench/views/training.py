"""Shows what a run logged while it trained: every loss term, its gradient, the learning rate and the speed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.store.run import Run
from workbench.views.style import GREY, Chart, plain, quiet, run_style

REST = "detection"  # the part of the loss beside the weighted distillation terms
_MOST_POINTS = 12_000  # of all curves together


class Panel(NamedTuple):
    """Describes one plot: the columns whose names begin with ``prefix``."""

    prefix: str
    title: str
    unit: str
    meaning: str
    logarithmic: bool = False
    scale: float = 1


PANELS = (
    Panel("loss", "Loss", "loss", "The sum of all weighted terms, which training minimises."),
    Panel("detection/", "Detection terms, raw", "loss", "The terms of the detection loss without their weights, summed over "
          "decoder layers."),
    Panel("raw/", "Distillation terms, raw", "loss", "The terms of the method without their weights.", True),
    Panel("weighted/", "Weighted terms", "loss", "What each term adds to the loss. All terms of the detection loss are one curve.", True),
    Panel("share/", "Gradient shares", "% of detection", "The gradient norm of a weighted term, divided by that of the weighted detection "
          "loss. Both are taken on the student's parameters.", scale=100),
    Panel("cosine/", "Cosine with detection", "cosine", "The cosine between the gradients of a term and of the detection "
          "loss. Below 0 the term works against detection."),
    Panel("gradient_norm", "Gradient norm", "norm", "The norm of the gradient of the whole loss, before clipping.", True),
    Panel("learning_rate", "Learning rate", "rate", "The learning rate of the step. Parameter groups with a factor of their own "
          "multiply it."),
    Panel("steps_per_second", "Speed", "steps/s", "Optimiser steps per second between two logged lines, without evaluation and "
          "checkpoints. 'wall' counts seconds of the clock, 'cpu' seconds of the process."),
)  # fmt: skip


def training_lines(run: Run) -> pd.DataFrame:
    """Returns the lines of ``metrics.jsonl`` together with the weighted detection loss and the speed.

    Returns:
        One row per logged step: ``step``, all logged values, ``weighted/detection`` if there are distillation terms, and
        ``steps_per_second wall`` and ``... cpu`` since the line before.
    """
    metrics, timings = pd.DataFrame(run.metrics()), pd.DataFrame(run.timings())
    if metrics.empty:
        return metrics
    weighted = [name for name in map(str, metrics.columns) if name.startswith("weighted/")]
    if weighted:
        metrics[f"weighted/{REST}"] = metrics["loss"] - metrics[weighted].sum(axis=1)
    if {"step", "wall", "cpu"} <= set(timings.columns):
        changes = timings[["step", "wall", "cpu"]].astype(float).diff()
        for clock in ("wall", "cpu"):
            timings[f"steps_per_second {clock}"] = changes["step"] / changes[clock].where(changes[clock] > 0)
        metrics = metrics.merge(timings.drop(columns=["wall", "cpu"]), on="step", how="left")
    return metrics


def thinned(lines: pd.DataFrame, most: int = _MOST_POINTS) -> tuple[pd.DataFrame, int]:
    """Averages consecutive lines so that all curves together have a bounded number of points.

    Args:
        lines: lines of ``training_lines``, with numbers in every column.
        most: points of all curves together; a curve has 50 or more.

    Returns:
        The averaged lines, and how many lines each average is made of.
    """
    rows = max(50, most // max(lines.shape[1], 1))
    together = -(-len(lines) // rows)
    if together <= 1:
        return lines, 1
    return lines.groupby(np.arange(len(lines)) // together).mean().reset_index(drop=True), together


def training_figure(metrics: pd.DataFrame) -> go.Figure:
    """Draws raw and weighted loss terms, gradients, learning rate and speed of one run.

    Args:
        metrics: lines of ``training_lines`` or ``thinned``; panels without a column in them are left out.
    """
    panels = [(panel, [name for name in map(str, metrics.columns) if name.startswith(panel.prefix)]) for panel in PANELS]
    panels = [(panel, names) for panel, names in panels if names]
    columns = min(3, max(len(panels), 1))
    rows = max(-(-len(panels) // columns), 1)
    titles = [panel.title for panel, _ in panels]
    figure = make_subplots(rows, columns, subplot_titles=titles, horizontal_spacing=0.065, vertical_spacing=0.36 / (rows + 0.5),
                           figure=Chart())  # fmt: skip
    terms = _terms([str(name) for name in metrics.columns])
    seen: set[str] = set()
    for index, (panel, names) in enumerate(panels):
        row, column = index // columns + 1, index % columns + 1
        for name in names:
            term = name.partition("/")[2] or name
            known = term in terms
            colour, dash = run_style(terms.index(term)) if known else (GREY, "dot" if term in (REST, "steps_per_second cpu") else "solid")
            shown = plain(term.removeprefix("steps_per_second "))
            values = metrics[["step", name]].dropna()
            figure.add_scatter(
                x=values["step"], y=values[name] * panel.scale, name=shown, mode="lines",
                legendgroup=plain(term), showlegend="/" in name and term not in seen,
                line={"color": colour, "dash": dash, "width": 1.5},
                hovertemplate=f"{shown}<br>step %{{x}}: %{{y:.4g}}<extra>{plain(panel.title)}</extra>", row=row, col=column,
            )  # fmt: skip
            seen.add(term)
        positive = panel.logarithmic and not (metrics[names] <= 0).to_numpy().any()
        scale: dict[str, Any] = {"type": "log", "dtick": "D2", "tickformat": "~g"} if positive else {"type": "linear"}
        figure.update_yaxes({"title_text": panel.unit, **scale}, row=row, col=column)
        if panel.prefix == "steps_per_second":
            figure.update_yaxes(rangemode="tozero", row=row, col=column)
        if panel.prefix == "cosine/":
            figure.add_hline(0, line={"color": GREY, "width": 1}, row=row, col=column)  # pyright: ignore[reportArgumentType] - numbers are allowed
        figure.update_xaxes(title_text="step", rangemode="tozero", matches="x", row=row, col=column)
    return quiet(figure, 90 + 235 * rows, legend_y=1 + 0.13 / rows)


def panel_meanings(metrics: pd.DataFrame) -> str:
    """Returns titles and definitions of the panels that ``training_figure`` draws of these lines."""
    shown = [panel for panel in PANELS if any(name.startswith(panel.prefix) for name in map(str, metrics.columns))]
    return " ".join(f"{panel.title}: {panel.meaning[0].lower()}{panel.meaning[1:]}" for panel in shown)


def _terms(columns: Sequence[str]) -> list[str]:
    """Returns terms in the order of their colours; detection as a whole is grey."""
    return sorted({name.partition("/")[2] for name in columns if "/" in name} - {REST})
