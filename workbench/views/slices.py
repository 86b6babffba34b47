"""Draws AP and recall of parts of a split: by size, crowding and overlap of the targets, and by KITTI's difficulties."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.views.style import COLOURS, Chart, interval, plain, quiet, reach, with_names

SLICES_CAPTION = (
    "AP by size of the targets (COCO's bounds) and by number of targets in the image. Recall at IoU 0.5 is shown for the same slices, and "
    "by the largest IoU with another target. Bars show 95 % intervals over resampled images."
)
KITTI_CAPTION = (
    "2D AP as KITTI defines it: 40 recall points, IoU 0.7 for cars and 0.5 for pedestrians and cyclists, DontCare regions left out. Bars "
    "show 95 % intervals over resampled images."
)


def slices_figure(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Draws AP and recall by slice, one colour per run.

    Args:
        tables: frame of ``slices.slices`` by name of the run.
    """
    figure = make_subplots(1, 2, subplot_titles=["AP", "Recall"], shared_yaxes=True, horizontal_spacing=0.04,
                           figure=Chart())  # fmt: skip
    names: list[str] = []
    for position, (name, table) in enumerate(tables.items()):
        colour = COLOURS[position % len(COLOURS)]
        names = [f"{row['by']} {row['slice']}" for row in table.to_dict("records")]
        for column, number in enumerate(("ap", "recall"), 1):
            value, low, high = (100 * table[f"{number}{end}"].to_numpy(float) for end in ("", "_low", "_high"))
            figure.add_scatter(
                x=value, y=np.arange(len(names)), hovertext=names, mode="markers", name=plain(name), legendgroup=name,
                showlegend=column == 1, row=1, col=column,
                marker={"size": 9, "color": colour}, customdata=table[["targets", "images"]].to_numpy(),
                error_x=interval((value, low, high), colour),
                hovertemplate=f"{plain(name)}<br>%{{hovertext}}: %{{x:.1f}} %<br>%{{customdata[0]}} targets in %{{customdata[1]}} images"
                "<extra></extra>",
            )  # fmt: skip
    for column, number in enumerate(("ap", "recall"), 1):
        ends = reach(*(100 * table[[number, f"{number}_low", f"{number}_high"]].to_numpy(float) for table in tables.values()), zero=True)
        figure.update_xaxes(title_text="%", range=ends, row=1, col=column)
    return with_names(quiet(figure, 400), names)


def kitti_figure(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Draws KITTI's AP by class and difficulty, one bar per run.

    Args:
        tables: frame of ``kitti_ap.kitti_ap`` by name of the run.
    """
    figure = Chart()
    for position, (name, table) in enumerate(tables.items()):
        value, low, high = (100 * table[column].to_numpy(float) for column in ("ap", "low", "high"))
        figure.add_bar(
            x=[[plain(own) for own in table["class"]], table["difficulty"].tolist()], y=value, name=plain(name), showlegend=True,
            marker={"color": COLOURS[position % len(COLOURS)], "line_width": 0}, customdata=table["targets"],
            error_y=interval((value, low, high)),
            hovertemplate=f"{plain(name)}<br>%{{x}}: %{{y:.1f}} % of %{{customdata}} targets<extra></extra>",
        )  # fmt: skip
    figure.update_yaxes(title_text="AP (%)", rangemode="tozero")
    return quiet(figure, 340, barmode="group", bargap=0.3)
