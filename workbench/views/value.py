"""Shows what queries are worth: the value of slots, what predicts gain, where a slot looks and which targets it serves."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.views.box_drawing import broken, class_name
from workbench.views.style import COLOURS, GREY, SCALE, Chart, interval, plain, quiet, reach, with_names

# title of the axis, factor, definition
SLOT_VALUES = {
    "ap_drop": (
        "AP lost without this slot (points)", 100,
        "AP with all detections minus AP without the slot's detections, with 95 % intervals by a jackknife over blocks of images. Drops do "
        "not add up to AP and may be negative.",
    ),
    "gain": (
        "mean gain of its targets", 1,
        "The gain of a target is score x IoU of its matched query in this run, minus the same in the baseline. A slot has the mean over "
        "its targets, with a 95 % interval over resampled images.",
    ),
    "quality": (
        "mean quality of its queries", 1,
        "Quality is score^gamma x IoU^(1-gamma) of a query with its matched target. A slot has the mean over its targets, with a 95 % "
        "interval over resampled images.",
    ),
    "served": (
        "images in which it has a target (%)", 100,
        "Share of the images in which the slot is matched to a target, with Wilson's 95 % interval. Dead slots are never matched.",
    ),
}  # fmt: skip
PROPERTIES = {
    "quality": "teacher quality", "score": "teacher score", "entropy": "teacher entropy (bits)", "target_size": "target size (sqrt px)",
    "box_distance": "1 - IoU of teacher's and baseline's box", "score_distance": "|teacher score - baseline score|",
    "baseline": "score x IoU in the baseline",
}  # fmt: skip
GAIN_CAPTION = (
    "Every target that teacher, baseline and this run matched. Gain is score x IoU of its query in this run, minus the same in the "
    "baseline (last layer, same step). Colour shows how many targets lie at a place. Draw a box to see them."
)
CORRELATION_CAPTION = (
    "Spearman's rank correlation with gain. For the open mark, the baseline's score x IoU is held fixed. Bars show 95 % intervals over "
    "resampled images. A property predicts gain if its interval excludes 0."
)
LOOKS_CAPTION = "Number of the slot's boxes with their centre in each cell of the image, over all images, matched or not."
MOST_CLASSES = 15  # number of classes drawn of a slot
SERVES_CAPTION = f"Share of the slot's targets, with Wilson's 95 % interval. At most the {MOST_CLASSES} most frequent classes are drawn."


def slots_figure(slots: pd.DataFrame, value: str, chosen: int | None) -> go.Figure:
    """Draws slots by value with intervals, the best first.

    Args:
        slots: frame with ``query``, the column ``value``, its ``low`` and ``high``, and ``n``.
        value: key of ``SLOT_VALUES``.
        chosen: slot to highlight.
    """
    title, scale, _ = SLOT_VALUES[value]
    slots = slots.dropna(subset=[value]).sort_values(value, ascending=False, ignore_index=True)
    middle, low, high = (scale * slots[column].to_numpy(float) for column in (value, "low", "high"))
    place = np.arange(len(slots))
    colour = np.where(slots["query"] == chosen, COLOURS[1], COLOURS[0])
    figure = Chart(go.Bar(
        x=place, y=middle, showlegend=False, marker={"color": colour, "line_width": 0}, customdata=slots[["query", "n"]].to_numpy(),
        hovertemplate=f"slot %{{customdata[0]}}<br>{plain(title)} %{{y:.3f}}<br>n = %{{customdata[1]}}<extra></extra>",
        unselected={"marker": {"opacity": 1}},
    ))  # fmt: skip
    # all intervals are one path: three hundred separate ones take the browser longer than the bars
    ends = broken(np.stack([place, low, place, high], -1).reshape(-1, 2, 2))
    figure.add_scatter(x=ends[:, 0], y=ends[:, 1], mode="lines", line={"color": GREY, "width": 1}, hoverinfo="skip", showlegend=False)
    few = len(slots) <= 40
    ticks = {"tickvals": place, "ticktext": [str(query) for query in slots["query"]]} if few else {"showticklabels": False}
    figure.update_xaxes(title_text="slot, best first", showgrid=False, range=[-0.6, len(slots) - 0.4], **ticks)
    figure.update_yaxes(title_text=title, range=reach(middle, low, high, zero=True))
    return quiet(figure, 330, bargap=0.15, margin={"l": 56, "r": 12, "t": 12, "b": 44}, clickmode="event+select", dragmode="pan")


def looks_figure(counts: np.ndarray) -> go.Figure:
    """Draws where the boxes of a slot are centred; ``counts`` come from ``slots.slot_heatmaps``."""
    rows, columns = counts.shape
    figure = Chart(go.Heatmap(z=counts, x0=0.5 / columns, dx=1 / columns, y0=0.5 / rows, dy=1 / rows, colorscale="Cividis",
                                  colorbar={"title": {"text": "boxes", "side": "right"}, "thickness": 10, "outlinewidth": 0},
                                  hovertemplate="%{z} boxes<extra></extra>"))  # fmt: skip
    figure.update_xaxes(title_text="across the image", range=[0, 1], constrain="domain")
    figure.update_yaxes(title_text="down the image", range=[1, 0], scaleanchor="x", constrain="domain")
    return quiet(figure, 360, margin={"l": 56, "r": SCALE, "t": 12, "b": 44})


def serves_figure(tables: Mapping[str, pd.DataFrame], classes: Sequence[str]) -> go.Figure:
    """Draws which classes and sizes one slot serves.

    Args:
        tables: the slot's rows of ``slots.slot_serves`` for each of ``label`` and ``size``.
        classes: name by label.
    """
    figure = Chart()
    together: list[str] = []
    shown: list[np.ndarray] = []
    for position, (by, table) in enumerate(tables.items()):
        table = table.nlargest(MOST_CLASSES, "n") if by == "label" else table
        names = [plain(class_name(classes, value)) if by == "label" else str(value) for value in table[by]]
        value, low, high = (100 * table[column].to_numpy(float) for column in ("share", "low", "high"))
        figure.add_bar(
            y=len(together) + np.arange(len(names)), x=value, orientation="h", name="class" if by == "label" else by, showlegend=True,
            marker={"color": COLOURS[2 * position], "line_width": 0},
            error_x=interval((value, low, high)), customdata=table["n"],
            hovertext=names, hovertemplate="%{hovertext}: %{x:.1f} % (%{customdata} targets)<extra></extra>",
        )  # fmt: skip
        together += names
        shown.append(high)
    figure.update_xaxes(title_text="share of the slot's targets (%)", range=reach(*shown, zero=True))
    return with_names(quiet(figure, 360, barmode="overlay", bargap=0.3, margin={"l": 56, "r": 12, "t": 56, "b": 44}), together)


def correlation_figure(table: pd.DataFrame) -> go.Figure:
    """Draws how well each property predicts gain; ``table`` comes from ``predictors.rank_correlations``."""
    names = [PROPERTIES[name] for name in table["property"]]
    figure = Chart()
    kinds: list[tuple[str, tuple[str, str, str], str, str]] = [
        ("plain", ("correlation", "low", "high"), "circle", COLOURS[0]),
        ("baseline held fixed", ("partial", "partial_low", "partial_high"), "circle-open", COLOURS[1]),
    ]
    for title, (middle, low, high), symbol, colour in kinds:
        value = table[middle].to_numpy(float)
        figure.add_scatter(
            x=value, y=np.arange(len(names)), mode="markers", name=title, hovertext=names,
            marker={"symbol": symbol, "size": 10, "color": colour, "line": {"width": 2, "color": colour}},
            error_x=interval([table[column].to_numpy(float) for column in (middle, low, high)], colour),
            customdata=table["n"], hovertemplate=f"%{{hovertext}}<br>{title}: %{{x:.2f}}<br>%{{customdata}} targets<extra></extra>",
        )  # fmt: skip
    figure.add_vline(0, line={"color": GREY, "width": 1})
    ends = reach(np.zeros(1), *(table[list(columns)].to_numpy(float) for _, columns, *_ in kinds))
    figure.update_xaxes(title_text="rank correlation with gain", range=ends)
    return with_names(quiet(figure, 420), names)


def inside(points: pd.DataFrame, column: str, box: Sequence[float] | None) -> pd.DataFrame:
    """Returns targets in a box ``x0, x1, y0, y1`` over ``column`` and gain, the greatest gain first; without a box, all targets."""
    if box is not None:
        x0, x1, y0, y1 = box
        points = points[points[column].between(x0, x1) & points["gain"].between(y0, y1)]
    return points.sort_values(["gain", "image_id", "target"], ascending=[False, True, True], ignore_index=True)
