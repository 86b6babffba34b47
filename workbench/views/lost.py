"""Shows what a student lost of what its teacher found: the two by two table, slices, outcomes, and the difference from another student."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.analysis.detection.lost import CELLS, LEAST_SCORE, OUTCOMES, Cell, Outcome
from workbench.datasets.base import Record
from workbench.views.box_drawing import STUDENT, TARGET, TEACHER, add_boxes, class_name, picture, target_rows
from workbench.views.differences import differences
from workbench.views.style import AXIS, COLOURS, GREY, Chart, faded, interval, plain, quiet, reach, with_names

FOUND_MEANING = (
    "A target is found if a detection of its class with at least the least score overlaps it by IoU 0.5 or more (COCO's matching). Both "
    "models are read from the query tables of the run, one class a candidate, as in FiftyOne."
)
CELLS_CAPTION = "Targets by whether the teacher and the student found them, with the share of all targets and its 95 % interval."
SHARES_CAPTION = (
    "Of the targets that the teacher found, the share that the student did not find. Bars show 95 % intervals over resampled images."
)
OUTCOMES_CAPTION = (
    "What became in the student of the targets that the teacher found. 'Low score': only a detection below the least score finds it. Of "
    "the others 'other class' and 'badly placed' are the errors of TIDE, and 'nothing near' has neither. Bars show 95 % intervals."
)
DIFFERENCE_CAPTION = (
    "Share of the teacher's targets that this run lost, minus the share that the baseline lost of the same targets, on the same resampled "
    "images. Below 0 this run keeps more."
)
LEAST = LEAST_SCORE  # what a page starts with
NAMES: Mapping[Cell, str] = {
    "both": "both found", "lost": "lost: teacher only", "gained": "gained: student only", "neither": "neither found",
}  # fmt: skip
OUTCOME_NAMES: Mapping[Outcome, str] = {
    "found": "found", "low score": "low score", "classification": "other class", "localisation": "badly placed", "missed": "nothing near",
}  # fmt: skip
_HUES: Mapping[Cell, str] = {"both": GREY, "lost": "#D55E00", "gained": "#009E73", "neither": GREY}


def slice_names(table: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Returns the slices of ``lost.cell_table`` by a name for a choice, such as ``size: small``."""
    slices = table[["by", "slice"]].drop_duplicates().itertuples(index=False)
    return {"all targets" if by == "all" else f"{by}: {name}": (by, name) for by, name in slices}


def cells_figure(table: pd.DataFrame, chosen: Cell) -> go.Figure:
    """Draws the four cells of one slice as tiles that can be clicked; the chosen one has a frame.

    Args:
        table: rows of one slice of ``lost.cell_table``.
        chosen: the cell whose images are shown.
    """
    rows = table.set_index("cell")
    figure = Chart()
    shapes: list[dict[str, Any]] = []
    for cell, (teacher, student) in CELLS.items():
        x, y = 0 if student else 1, 0 if teacher else 1
        strength = 0.1 + (0.5 * float(np.nan_to_num(rows["share"].to_numpy(float)[rows.index == cell])[0]))
        frame = {"color": _HUES[cell] if cell == chosen else AXIS, "width": 4 if cell == chosen else 1}
        shapes.append({"type": "rect", "x0": x - 0.47, "x1": x + 0.47, "y0": y - 0.45, "y1": y + 0.45, "line": frame, "layer": "below",
                       "fillcolor": faded(_HUES[cell], strength)})  # fmt: skip
    place = [(0 if student else 1, 0 if teacher else 1) for teacher, student in CELLS.values()]
    own = rows.loc[list(CELLS)].reset_index()
    tiles = own.to_dict("records")
    for texts, shift, size in (([f"<b>{NAMES[row['cell']]}</b>" for row in tiles], -0.25, 12), ([str(row["n"]) for row in tiles], 0, 24),
                               ([_percent(row) for row in tiles], 0.25, 12)):  # fmt: skip
        figure.add_scatter(x=[x for x, _ in place], y=[y + shift for _, y in place], mode="text", text=texts, hoverinfo="skip",
                           textfont={"size": size}, showlegend=False)  # fmt: skip
    # a click is read from marks, so each tile holds invisible ones over most of it
    spread = [(dx, dy) for dx in (-0.34, -0.17, 0, 0.17, 0.34) for dy in (-0.25, 0, 0.25)]
    marks = [(x + dx, y + dy, number, row) for number, ((x, y), row) in enumerate(zip(place, tiles, strict=True))
             for dx, dy in spread]  # fmt: skip
    figure.add_scatter(
        x=[x for x, *_ in marks], y=[y for _, y, *_ in marks], mode="markers", showlegend=False,
        marker={"size": 40, "symbol": "square", "color": "rgba(0,0,0,0)"}, customdata=[[number] for *_, number, _ in marks],
        text=[f"{NAMES[row['cell']]}: {row['n']} of {row['targets']} targets, in {row['images']} images" for *_, row in marks],
        hoverinfo="text", selected={"marker": {"color": "rgba(0,0,0,0)"}}, unselected={"marker": {"opacity": 0}},
    )  # fmt: skip
    quiet(figure, 300, shapes=shapes, margin={"l": 84, "r": 8, "t": 34, "b": 8}, clickmode="event+select", dragmode="pan")
    figure.update_xaxes(range=[-0.5, 1.5], tickvals=[0, 1], ticktext=["student found", "student missed"], side="top", showgrid=False,
                        ticks="", fixedrange=True, showline=False)  # fmt: skip
    figure.update_yaxes(range=[1.5, -0.5], tickvals=[0, 1], ticktext=["teacher<br>found", "teacher<br>missed"], showgrid=False, ticks="",
                        fixedrange=True, showline=False)  # fmt: skip
    return figure


def shares_figure(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Draws the share lost of every slice, one colour per run; ``tables`` maps a run's name to its frame of ``lost.lost_shares``."""
    figure = Chart()
    names: list[str] = []
    for position, (run, table) in enumerate(tables.items()):
        names = [_slice(row) for row in table.to_dict("records")]
        value, low, high = (100 * table[column].to_numpy(float) for column in ("share", "low", "high"))
        colour = COLOURS[position % len(COLOURS)]
        figure.add_scatter(
            x=value, y=np.arange(len(names)), mode="markers", name=plain(run), showlegend=True, marker={"size": 9, "color": colour},
            error_x=interval((value, low, high), colour), customdata=table[["lost", "found"]].to_numpy(), hovertext=names,
            hovertemplate=f"{plain(run)}<br>%{{hovertext}}: %{{x:.1f}} % lost<br>%{{customdata[0]}} of %{{customdata[1]}} targets"
            "<extra></extra>",
        )  # fmt: skip
    ends = reach(*(100 * table[["share", "low", "high"]].to_numpy(float) for table in tables.values()), zero=True)
    figure.update_xaxes(title_text="lost of the teacher's targets (%)", range=ends)
    return with_names(quiet(figure, 112 + 24 * max(len(names), 3), legend_y=1.01), names)


def outcomes_figure(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Draws what became of the targets that the teacher found, one bar per run; ``tables`` holds frames of ``lost.outcome_table``."""
    figure = Chart()
    names = [OUTCOME_NAMES[outcome] for outcome in OUTCOMES]
    for position, (run, table) in enumerate(tables.items()):
        value, low, high = (100 * table[column].to_numpy(float) for column in ("share", "low", "high"))
        figure.add_bar(
            x=list(range(len(names))), y=value, name=plain(run), showlegend=True, error_y=interval((value, low, high)), hovertext=names,
            marker={"color": COLOURS[position % len(COLOURS)], "line_width": 0}, customdata=table[["n", "images"]].to_numpy(),
            hovertemplate=f"{plain(run)}<br>%{{hovertext}}: %{{y:.1f}} %<br>%{{customdata[0]}} targets in %{{customdata[1]}} images"
            "<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names, range=[-0.5, len(names) - 0.5])
    ends = reach(*(100 * table[["share", "low", "high"]].to_numpy(float) for table in tables.values()), zero=True)
    figure.update_yaxes(title_text="of the teacher's targets (%)", range=ends)
    return quiet(figure, 300, barmode="group", bargap=0.3, legend_y=1.01)


def difference_figure(table: pd.DataFrame) -> go.Figure:
    """Draws by slice how much more one student lost than another, coloured by the verdict; ``table`` comes from ``lost.compare_lost``."""
    texts = [f"{plain(row['sentence'])}<br>lost by both {row['both_lost']}, by the baseline alone {row['only_baseline']}, "
             f"by this run alone {row['only_other']}" for row in table.to_dict("records")]  # fmt: skip
    figure = differences(table, texts)
    ends = reach(100 * table[["difference", "low", "high"]].to_numpy(float), np.zeros(1))
    figure.update_xaxes(title_text="difference in the share lost (percentage points)", range=ends)
    names = [_slice(row) for row in table.to_dict("records")]
    return with_names(quiet(figure, 112 + 24 * max(len(names), 3), legend_y=1.01), names)


def difference_sentence(table: pd.DataFrame) -> str:
    """Returns how many of the teacher's targets each of two students lost alone, from the first row of ``lost.compare_lost``."""
    row = table.iloc[0]
    return (
        f"Of the {row['found']} targets that the teacher found, both runs lost {row['both_lost']}, the baseline alone "
        f"{row['only_baseline']} and this run alone {row['only_other']}."
    )


def nearest_figure(image: np.ndarray, record: Record, classes: Sequence[str], targets: pd.DataFrame, near: pd.DataFrame,
                   names: Mapping[int, str]) -> go.Figure:  # fmt: skip
    """Draws targets of one image with the nearest box of the teacher and of the student.

    Args:
        image: ``[H, W, 3]`` uint8.
        record: the image's targets.
        classes: name by label.
        targets: the targets that are drawn, rows of ``lost.compared_targets``.
        near: frame of ``LostResults.nearest_boxes``.
        names: name by category id.
    """
    figure = picture(image, 460, record.image_id)
    own = target_rows(record).iloc[targets["target"].to_numpy()]
    labels = [plain(class_name(classes, label)) for label in own["label"]]
    add_boxes(figure, "targets", TARGET, own, labels, ("x1", "y2"), ["top right"] * len(own), dash="dot")
    height = image.shape[0]
    for model, colour, corner in (("teacher", TEACHER, ("x2", "y2")), ("student", STUDENT, ("x1", "y1"))):
        rows = near[(near["model"] == model) & near["target"].isin(targets["target"])]
        texts = [f"{plain(names.get(row['category_id'], ''))} {row['score']:.2f}" for row in rows.to_dict("records")]
        # labels lie outside their boxes, unless they would leave the picture there
        if model == "teacher":
            positions = ["top left" if y2 > 0.95 * height else "bottom left" for y2 in rows["y2"]]
        else:
            positions = ["bottom right" if y1 < 0.05 * height else "top right" for y1 in rows["y1"]]
        add_boxes(figure, model, colour, rows, texts, corner, positions)
    return figure


def _slice(row: Mapping[Any, Any]) -> str:
    return "all targets" if row["by"] == "all" else f"{row['by']}: {plain(row['slice'])}"


def _percent(row: Mapping[Any, Any]) -> str:
    if np.isnan(row["share"]):
        return "no targets"
    return f"{100 * row['share']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
