"""Draws the selection masks of teacher and student over one image, layer by layer, and where they differ."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.datasets.base import Record
from workbench.views.box_drawing import HALO, STUDENT, TARGET, TEACHER, broken, class_name, in_pixels, smoothed, target_rows
from workbench.views.style import INFERNO, SCALE, Chart, laid_out

Kind = Literal["teacher", "student", "difference"]
CAPTION = (
    "The selection mask psi shows where a model's queries look, each weighted by its quality. The teacher's mask weights each cell of the "
    "feature loss. Each mask is divided by its largest cell. The difference is student minus teacher. All panels zoom together."
)
MANY = 36  # panels up to which all levels are shown at first
UNTAUGHT = "no layer of the student<br>learns from it"
_KINDS: tuple[Kind, ...] = ("teacher", "student", "difference")
_SEEN = [(i / 8, f"rgba({colour},{i / 8})") for i, colour in enumerate(INFERNO)]
# Brewer's PuOr, which colour-blind readers can tell apart; transparent where the masks agree
_DIFFERENCE = [(0, "rgba(84,39,136,1)"), (0.25, "rgba(153,142,195,0.8)"), (0.5, "rgba(255,255,255,0)"), (0.75, "rgba(241,163,64,0.8)"),
               (1, "rgba(179,88,6,1)")]  # fmt: skip
_LEFT, _TOP, _GAP = 30, 24, 6  # pixels
_ACROSS = 1500  # pixels that all panels of a row share on a usual page


class LayerMasks(NamedTuple):
    """Describes one column of small pictures: a layer of the teacher, and the student's layer that learns from it.

    Attributes:
        teacher: layer of the teacher.
        student: layer of the student; None if none learns from it, or none of its masks was kept.
        masks: mask ``[h, w]`` by level of the teacher and kind.
    """

    teacher: int
    student: int | None
    masks: Mapping[tuple[int, Kind], np.ndarray]

    @property
    def title(self) -> str:
        """Returns the names of both layers."""
        return f"teacher layer {self.teacher}" + (f" · student layer {self.student}" if self.student is not None else "")


def normalised(mask: np.ndarray) -> np.ndarray:
    """Returns ``mask`` divided by its largest cell; an empty mask stays empty."""
    largest = float(mask.max(initial=0))
    return mask / largest if largest > 0 else np.zeros_like(mask)


def difference(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """Returns student minus teacher, both normalised, ``[h, w]`` of the finer of the two; cells of the coarser mask are repeated."""
    first, second = normalised(teacher), normalised(student)
    height, width = np.maximum(first.shape, second.shape)

    def spread(mask: np.ndarray) -> np.ndarray:
        rows = np.arange(height) * mask.shape[0] // height
        columns = np.arange(width) * mask.shape[1] // width
        return mask[np.ix_(rows, columns)]

    return spread(second) - spread(first)


def paired_masks(
    teacher: Mapping[tuple[int, int], np.ndarray], student: Mapping[tuple[int, int], np.ndarray], student_of: Mapping[int, int]
) -> list[LayerMasks]:
    """Returns the masks of one image by layer of the teacher, each with those of the student and their difference.

    A level of the teacher is compared with the level of the student whose number of cells is nearest to its own.

    Args:
        teacher: masks by layer and level.
        student: the same of the student; empty if none were kept.
        student_of: the student's layer that learns from a layer of the teacher.
    """
    found: list[LayerMasks] = []
    for layer in sorted({layer for layer, _ in teacher}):
        own, masks = student_of.get(layer), dict[tuple[int, Kind], np.ndarray]()
        near = {level: mask for (its, level), mask in student.items() if its == own}
        for level in sorted(level for its, level in teacher if its == layer):
            mask = masks[level, "teacher"] = teacher[layer, level]
            if near:
                other = near[min(near, key=lambda level: abs(np.log(near[level].size / mask.size)))]
                masks |= {(level, "student"): other, (level, "difference"): difference(mask, other)}
        found.append(LayerMasks(layer, own if near else None, masks))
    return found


def masks_figure(
    image: np.ndarray,
    record: Record,
    layers: Sequence[LayerMasks],
    opacity: float,
    levels: Sequence[int] | None = None,
    queries: Mapping[int, pd.DataFrame] | None = None,
    model: Literal["teacher", "student"] = "teacher",
) -> go.Figure:
    """Draws small pictures of the image in grey below each mask: layers across, teacher, student and difference down, levels below.

    Args:
        image: ``[H, W, 3]`` uint8.
        record: the image's targets, drawn dotted.
        layers: result of ``paired_masks``.
        opacity: opacity of the largest cell.
        levels: levels of the teacher that are drawn; all by default.
        queries: row of the query table by layer of the teacher, whose box is drawn in that layer's pictures.
        model: whose query it is. It is drawn over the masks of this model, and over the difference.
    """
    height, width = image.shape[:2]
    known = sorted({level for layer in layers for level, _ in layer.masks})
    wanted = [level for level in known if levels is None or level in levels]
    kinds: list[Kind] = [kind for kind in _KINDS if any((level, kind) in layer.masks for layer in layers for level in wanted)]
    rows: list[tuple[int, Kind]] = [(level, kind) for level in wanted for kind in kinds]
    panel = int(np.clip(_ACROSS / max(len(layers), 1) * height / width, 110, 300 if len(kinds) > 1 else 480))
    tall = max(len(rows), 1) * (panel + _GAP)
    figure = make_subplots(max(len(rows), 1), max(len(layers), 1), horizontal_spacing=0.008, vertical_spacing=_GAP / tall, figure=Chart())
    source = smoothed(np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2).round().astype(np.uint8))
    for row, (level, kind) in enumerate(rows, 1):
        for column, layer in enumerate(layers, 1):
            place: dict[str, Any] = {"row": row, "col": column}
            number = (row - 1) * len(layers) + column
            x, y = (f"{side}{number if number > 1 else ''}" for side in "xy")
            figure.update_xaxes(range=[0, width], visible=False, constrain="domain", matches="x", uirevision=str(record.image_id), **place)
            figure.update_yaxes(range=[height, 0], visible=False, scaleanchor=x, constrain="domain", matches="y",
                                uirevision=str(record.image_id), **place)  # fmt: skip
            mask = layer.masks.get((level, kind))
            if mask is None:
                figure.add_annotation(x=0.5, y=0.5, xref=f"{x} domain", yref=f"{y} domain", text=UNTAUGHT, showarrow=False,
                                      font_size=11)  # fmt: skip
                figure.add_scatter(x=[], y=[], showlegend=False, **place)
                continue
            figure.add_layout_image(source=source, x=0, y=0, sizex=width, sizey=height, xref=x, yref=y, sizing="stretch", layer="below")
            dx, dy = width / mask.shape[1], height / mask.shape[0]
            its = layer.student if kind == "student" else layer.teacher
            figure.add_heatmap(
                z=mask if kind == "difference" else normalised(mask), x0=dx / 2, dx=dx, y0=dy / 2, dy=dy, opacity=opacity,
                coloraxis="coloraxis2" if kind == "difference" else "coloraxis",
                hovertemplate=f"{kind}, layer {its}, level {level}: %{{z:.2f}}<extra></extra>", **place,
            )  # fmt: skip
            outlines = [("targets", TARGET, target_rows(record), "dot")]
            if queries is not None and layer.teacher in queries and kind in (model, "difference"):
                drawn = in_pixels(queries[layer.teacher], width, height)
                outlines.append(("query", TEACHER if model == "teacher" else STUDENT, drawn, "solid"))
            _outline(figure, outlines, place)
    for column, layer in enumerate(layers, 1):
        x = f"x{column if column > 1 else ''} domain"
        figure.add_annotation(x=0.5, y=1, xref=x, yref="paper", text=layer.title, showarrow=False, yanchor="bottom", font_size=12)
    for row, (level, kind) in enumerate(rows):
        first = row * len(layers) + 1
        figure.add_annotation(x=0, y=0.5, xref="paper", yref=f"y{first if first > 1 else ''} domain", textangle=-90, xanchor="right",
                              text=kind if len(known) == 1 else f"{kind}, level {level}", showarrow=False, font_size=12)  # fmt: skip
    _bars(figure, kinds, tall)
    return laid_out(figure, height=tall + _TOP, margin={"l": _LEFT, "r": SCALE, "t": _TOP, "b": 0, "autoexpand": False},
                    paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", dragmode="pan", hovermode="closest",
                    showlegend=False)  # fmt: skip


def _bars(figure: go.Figure, kinds: Sequence[Kind], tall: int) -> None:
    """Gives the figure one colour bar for all masks, and one for the differences if there are any."""
    bar: dict[str, Any] = {"thickness": 12, "lenmode": "pixels", "len": min(tall // 2 - 20, 260), "outlinewidth": 0, "x": 1.01}
    several = "difference" in kinds
    axes: dict[str, Any] = {}
    axes["coloraxis"] = {
        "cmin": 0, "cmax": 1, "colorscale": _SEEN,
        "colorbar": {**bar, "title": {"text": "mask", "side": "right"}, "y": 1, "yanchor": "top", "tickvals": [0, 0.5, 1]},
    }  # fmt: skip
    if several:
        axes["coloraxis2"] = {
            "cmin": -1, "cmax": 1, "colorscale": _DIFFERENCE,
            "colorbar": {**bar, "title": {"text": "difference", "side": "right"}, "y": 0, "yanchor": "bottom", "tickvals": [-1, 0, 1]},
        }  # fmt: skip
    laid_out(figure, **axes)


def _outline(figure: go.Figure, outlines: Sequence[tuple[str, str, pd.DataFrame, str]], place: Mapping[str, Any]) -> None:
    """Draws boxes over a dark halo in one picture."""
    for name, colour, rows, dash in outlines:
        path = broken(rows[["x1", "y1", "x2", "y1", "x2", "y2", "x1", "y2", "x1", "y1"]].to_numpy(float).reshape(-1, 5, 2))
        for line in ({"color": HALO, "width": 4}, {"color": colour, "width": 2, "dash": dash}):
            figure.add_scatter(x=path[:, 0], y=path[:, 1], mode="lines", line=line, name=name, showlegend=False, hoverinfo="skip", **place)


def cells_table(layers: Sequence[LayerMasks]) -> pd.DataFrame:
    """Returns one row per cell of every mask, as stored: ``teacher_layer``, ``student_layer``, ``level``, ``kind``, ``row``, ``column``,
    ``value``.
    """
    parts: list[pd.DataFrame] = []
    for layer in layers:
        for (level, kind), mask in layer.masks.items():
            row, column = np.indices(mask.shape)
            parts.append(pd.DataFrame({
                "teacher_layer": layer.teacher, "student_layer": layer.student, "level": level, "kind": kind,
                "row": row.ravel(), "column": column.ravel(), "value": mask.ravel(),
            }))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def ranked_queries(rows: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Returns queries of one layer in the order of their weight in the mask, best quality first.

    Args:
        rows: rows of the query table, of one model, layer and image.
        classes: name by label.

    Returns:
        The rows with ``class`` and ``place`` (from 1).
    """
    ranked = rows.sort_values(["quality", "score"], ascending=False, ignore_index=True)
    names = [class_name(classes, label) for label in ranked["label"]]
    return ranked.assign(**{"class": names, "place": range(1, len(ranked) + 1)})


def query_names(ranked: pd.DataFrame, by: Literal["rank", "query"]) -> dict[int, str]:
    """Returns what each query of a layer is called, by its rank or by its number (its slot), in the order of that.

    Args:
        ranked: result of ``ranked_queries``.
        by: what the name begins with.
    """
    column = "place" if by == "rank" else "query"
    names: dict[int, str] = {}
    for row in ranked.sort_values(column).to_dict("records"):
        heads = [f"rank {row['place']}", f"query {row['query']}"]
        said = heads if by == "rank" else heads[::-1]
        names[int(row[column])] = f"{said[0]} ({said[1]}): {row['class']}, score {row['score']:.2f}, quality {row['quality']:.2f}"
    return names


def drawn_query(ranked: Mapping[int, pd.DataFrame], by: Literal["rank", "query"], number: int) -> dict[int, pd.DataFrame]:
    """Returns, by layer, the row of the query of that rank or number; layers in which it has no row are left out.

    Args:
        ranked: result of ``ranked_queries`` by layer.
        by: what ``number`` is.
        number: rank from 1, or number of the query from 0.
    """
    column = "place" if by == "rank" else "query"
    found = {layer: rows[rows[column] == number] for layer, rows in ranked.items()}
    return {layer: rows for layer, rows in found.items() if len(rows)}
