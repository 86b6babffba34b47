"""Shows why targets change their query: churn split by cause over training, by class and by size, and the rules of the causes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.analysis.detection.slices import SIZES
from workbench.analysis.stability.change_causes import CAUSES, COVERED, Cause
from workbench.views.box_drawing import class_name
from workbench.views.style import GREY, Chart, plain, quiet, with_names

HUES: Mapping[Cause, str] = {"uncovered": GREY, "swapped": "#CC79A7", "undecided": "#D55E00", "competing": "#0072B2"}
RULES: Mapping[Cause, str] = {
    "uncovered": f"at one of the two evaluations no query overlaps the target by IoU {COVERED:g}",
    "swapped": "the query that it takes held another target of the image before, or the one that it gives up holds another now",
    "undecided": "at one of the two evaluations the query that holds it says another class",
    "competing": "none of these: queries of the right class cover it at both evaluations",
}
CAUSES_CAPTION = (
    "Churn from one evaluation to the next, divided by the cause of each change. Each change has the first cause of the table that holds, "
    "so the parts add up to the churn."
)
SLICES_CAPTION = "The same in the same colours, pooled over all evaluations, by class and COCO's sizes of the targets."
TABLE_CAPTION = (
    "A target that changed its query has the cause of most of its changes, of equally frequent ones the first. IoU is that of the worse of "
    "the two queries. The margin is what the cheapest assignment of the image costs more if the target may not have its query "
    "(2 (1 - p) + 5 L1 + 2 (1 - GIoU), p from the best class that the query table keeps). Both are medians over the targets."
)
ORDER = "Targets with most changes come first; of as many changes by image id and target."
SETTLED = "settled"
SIZE_NAMES = SIZES
_FILTERS = {**CAUSES, SETTLED: "settled: never changed"}


def cause_choices() -> Mapping[str, str]:
    """Returns what targets can be filtered by, with its name: the causes and ``SETTLED``."""
    return _FILTERS


def causes_figure(table: pd.DataFrame) -> go.Figure:
    """Draws churn over steps as bars that are divided by cause; ``table`` comes from ``change_causes.churn_by_cause`` by step."""
    steps = sorted(table["step"].unique().tolist())
    figure = Chart()
    for cause, name in CAUSES.items():
        own = table[table["cause"] == cause].sort_values("step")
        figure.add_bar(
            x=[steps.index(step) for step in own["step"]], y=100 * own["churn"], name=name, showlegend=True,
            marker={"color": HUES[cause], "line_width": 0}, hoverinfo="text", textposition="none",
            hovertext=[f"{name}<br>step {row['step']}: {_share(row)} of {row['n']} targets" for row in own.to_dict("records")],
        )  # fmt: skip
    total = (100 * table.groupby("step")["churn"].sum()).max() if len(table) else 0
    figure.update_xaxes(title_text="step", tickvals=list(range(len(steps))), ticktext=[str(step) for step in steps],
                        range=[-0.6, max(len(steps), 1) - 0.4], showgrid=False)  # fmt: skip
    figure.update_yaxes(title_text="churn (% of targets)", range=[0, 1.08 * max(float(total), 1)])
    return _stacked(figure, 340)


def cause_slices_figure(tables: Mapping[str, pd.DataFrame], classes: Sequence[str]) -> go.Figure:
    """Draws churn of every class and size as bars that are divided by cause.

    Args:
        tables: frame of ``change_causes.churn_by_cause`` for each of ``label`` and ``size``.
        classes: name by label.
    """
    names: list[str] = []
    place: dict[tuple[str, str], int] = {}
    for by, table in tables.items():
        for value in table[by].drop_duplicates():
            place[by, str(value)] = len(names)
            names.append(plain(class_name(classes, value)) if by == "label" else str(value))
    figure = Chart()
    most = 0.0
    for cause, title in CAUSES.items():
        rows = [(place[by, str(row[by])], row) for by, table in tables.items() for row in table[table["cause"] == cause].to_dict("records")]
        figure.add_bar(
            x=[100 * row["churn"] for _, row in rows], y=[at for at, _ in rows], orientation="h", name=title, showlegend=False,
            marker={"color": HUES[cause], "line_width": 0}, hoverinfo="text", textposition="none",
            hovertext=[f"{names[at]}: {title}<br>{_share(row)} of {row['n']}" for at, row in rows],
        )  # fmt: skip
    for by, table in tables.items():
        most = max(most, float(np.nan_to_num(table.groupby(by, observed=True)["churn"].sum().max()))) if len(table) else most
    figure.update_xaxes(title_text="churn (% of targets)", range=[0, 108 * max(most, 0.01)])
    return with_names(_stacked(figure, max(340, 120 + 24 * len(names))), names)


def rules_table(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the causes with their rules and numbers as texts, in the order in which the rules are tried.

    Args:
        table: frame of ``change_causes.cause_table``.

    Returns:
        ``rule``, ``targets``, ``changes``, ``IoU``, ``margin``, indexed by the name of the cause.
    """
    numbers = {name: ["–" if np.isnan(value) else f"{value:.2f}" for value in table[name]] for name in ("iou", "margin")}
    frame = pd.DataFrame({
        "first rule that holds for a change": table["cause"].map(dict(RULES)), "targets": table["targets"].astype(str),
        "changes": table["changes"].astype(str), "IoU": numbers["iou"], "margin": numbers["margin"],
    })  # fmt: skip
    return frame.set_axis(table["cause"].map(CAUSES), axis=0).rename_axis("cause")


def chosen_targets(
    frame: pd.DataFrame, unsettled: pd.DataFrame, targets: pd.DataFrame, label: int | None, size: str, cause: str
) -> pd.DataFrame:
    """Returns the rows of some targets: of a class, a size and a cause.

    Args:
        frame: rows with ``image_id`` and ``target``.
        unsettled: frame of ``change_causes.unsettled_targets``.
        targets: frame of ``targets.target_frame``.
        label: the class; None for all.
        size: COCO's size; "" for all.
        cause: key of ``cause_choices``; "" for all.
    """
    keys = ["image_id", "target"]
    kept = targets[((targets["label"] == label) | (label is None)) & ((targets["size"] == size) | (not size))][keys]
    kept = kept.merge(unsettled[[*keys, "cause"]], on=keys, how="left").fillna({"cause": SETTLED})
    return frame.merge(kept[kept["cause"] == cause][keys] if cause else kept[keys], on=keys)


def sentence(row: Mapping[Any, Any]) -> str:
    """Returns why one target changed its query, in words; ``row`` is one of ``change_causes.unsettled_targets``."""
    counts = ", ".join(f"{name}: {row[cause]}" for cause, name in CAUSES.items() if row[cause])
    return (
        f"Changed {row['changes']} of {row['n']} times ({counts}). At the changes the worse query had an IoU of {row['iou']:.2f} and the "
        f"margin was {row['margin']:.2f} (medians). The class changed {row['class_flips']} times, a neighbour had one of the queries "
        f"{row['swaps']} times. Largest IoU with another target: {row['neighbour_iou']:.2f}."
    )


def _share(row: Mapping[Any, Any]) -> str:
    return f"{100 * row['churn']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def _stacked(figure: go.Figure, height: int) -> go.Figure:
    legend = {"orientation": "h", "yanchor": "bottom", "y": 1.01, "xanchor": "left", "x": 0, "traceorder": "normal"}
    return quiet(figure, height, barmode="stack", bargap=0.25, legend=legend)
