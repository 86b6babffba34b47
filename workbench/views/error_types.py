"""Shows where AP is lost: error types and their cost, the difference between two runs, confusion of classes, and calibration."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.analysis.detection.confusion import BACKGROUND
from workbench.analysis.detection.tide import MAIN, SPECIAL, Error
from workbench.datasets.base import Record
from workbench.views.box_drawing import CORNERS, STUDENT, TARGET, add_boxes, class_name, picture, target_rows
from workbench.views.differences import differences
from workbench.views.style import COLOURS, GREY, SCALE, Chart, interval, plain, quiet, reach, with_names

COSTS_CAPTION = (
    "The cost of an error type is the AP50 that would be gained if an oracle corrected every error of that type (TIDE, Bolya et al. 2020). "
    "Costs do not add up. Bars show 95 % intervals over resampled images."
)
DIFFERENCE_CAPTION = (
    "Cost in this run minus cost in the baseline, on the same resampled images. A difference above 0 means that this run loses more AP50 "
    "to that error type. The verdict is better or worse only if the 95 % interval excludes 0."
)
CONFUSION_CAPTION = (
    "Each number is a share of its row. Detections with at least the least score are paired with the target that they overlap most (IoU "
    "0.5 or more), whatever the classes. 'background' counts targets that no detection found, and detections without a target."
)
CONFUSION_DIFFERENCE_CAPTION = (
    "Pairs of this run minus pairs of the baseline. The 95 % interval of a number in brackets includes 0. On the diagonal more is better, "
    "elsewhere fewer is."
)
CALIBRATION_CAPTION = (
    "Precision is the share of the detections in a range of scores that found a target at IoU 0.5. On the dotted line, scores equal "
    "precision. Bars show 95 % intervals over resampled images."
)
KINDS: tuple[Error, ...] = (*MAIN, *SPECIAL)
CLICKABLE = 400  # cells of the confusion matrix
_MORE_OR_LESS = [(0, "#9C6B1E"), (0.5, "#F2F0F7"), (1, "#7B61D9")]  # hues that no run has; black numbers stand out from all of them
_NUMBERED = 20  # classes, up to which the numbers of a matrix are written
_MANY = 40  # classes, above which margins are computed here: measuring every name takes the browser seconds


def costs_figure(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Draws the cost of each error type, one bar per run.

    Args:
        tables: frame of ``tide.error_table`` by name of the run.
    """
    figure = Chart()
    for position, (name, table) in enumerate(tables.items()):
        value, low, high = (100 * table[column].to_numpy(float) for column in ("cost", "low", "high"))
        figure.add_bar(
            x=list(range(len(table))), y=value, name=plain(name), hovertext=_readable(table["error"]),
            marker={"color": COLOURS[position % len(COLOURS)], "line_width": 0},
            error_y=interval((value, low, high)), customdata=np.stack([table["count"], table["images"]], -1), showlegend=True,
            hovertemplate=f"{plain(name)}<br>%{{hovertext}}: %{{y:.1f}} points of AP50<br>"
            "%{customdata[0]} errors in %{customdata[1]} images<extra></extra>",
        )  # fmt: skip
    names = _readable(next(iter(tables.values()))["error"])
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names, range=[-0.5, len(names) - 0.5])
    ends = reach(*(100 * table[["cost", "low", "high"]].to_numpy(float) for table in tables.values()), zero=True)
    figure.update_yaxes(title_text="cost (points of AP50)", range=ends)
    return quiet(figure, 320, barmode="group", bargap=0.3)


def difference_figure(table: pd.DataFrame) -> go.Figure:
    """Draws differences in cost with their intervals, coloured by the verdict; ``table`` comes from ``ap_tests.compare_errors``."""
    figure = differences(table, [plain(sentence) for sentence in table["sentence"]])
    ends = reach(100 * table[["difference", "low", "high"]].to_numpy(float), np.zeros(1))
    figure.update_xaxes(title_text="difference in cost (points of AP50)", range=ends)
    return with_names(quiet(figure, 320), _readable(table["error"]))


def confusion_figure(counts: pd.DataFrame, classes: Mapping[int, str]) -> go.Figure:
    """Draws classes of targets as rows and of detections as columns; colour and number are shares of the row.

    Every mark carries both category ids.

    Args:
        counts: frame of ``confusion.confusion_matrix``.
        classes: name by category id.
    """
    values = counts.to_numpy(float)
    total = values.sum(1, keepdims=True)
    share = np.divide(100 * values, total, out=np.full_like(values, np.nan), where=total > 0)
    names = [plain(classes.get(category, "background")) for category in counts.index]
    place = np.arange(len(names))
    figure = Chart(go.Heatmap(
        z=share, x=place, y=place, zmin=0, zmax=100, colorscale="Cividis", xgap=1, ygap=1, customdata=values,
        colorbar={"title": {"text": "% of row", "side": "right"}, "thickness": 10, "outlinewidth": 0},
        hovertemplate="target of row %{y}, detection of column %{x}<br>%{customdata} pairs, %{z:.1f} % of the row<extra></extra>",
    ))  # fmt: skip
    # A heat map cannot be clicked. Invisible marks over the cells that hold pairs can; if there are too many, only the fullest get one.
    cells = np.array(fullest_cells(counts)[:CLICKABLE], int).reshape(-1, 2)
    row, column = (axis.get_indexer(pd.Index(cells[:, side])) for side, axis in enumerate((counts.index, counts.columns)))
    figure.add_scatter(
        x=column, y=row, mode="markers", marker={"size": 18, "symbol": "square", "color": "rgba(0,0,0,0)"}, showlegend=False,
        text=[f"target: {names[i]}<br>detection: {names[j]}<br>{values[i, j]:.0f} pairs, {share[i, j]:.1f} % of the row"
              for i, j in zip(row, column, strict=True)],
        hoverinfo="text", customdata=cells, unselected={"marker": {"opacity": 0}}, selected={"marker": {"color": "rgba(0,0,0,0)"}},
    )  # fmt: skip
    if len(names) <= _NUMBERED:
        _write(figure, [(int(column), int(row), f"{share[row, column]:.0f}", bool(share[row, column] < 50))
                        for row, column in np.argwhere(np.isfinite(share))])  # fmt: skip
    return _between_classes(figure, names)


def confusion_difference_figure(table: pd.DataFrame, classes: Mapping[int, str]) -> go.Figure:
    """Draws how many pairs more or fewer than the baseline a run has in every cell; numbers in brackets may be chance.

    Args:
        table: frame of ``confusion.compare_confusion``.
        classes: name by category id.
    """
    known = [*classes, BACKGROUND]
    names = [plain(classes.get(category, "background")) for category in known]
    shape = (len(known), len(known))
    values, hover, text = np.full(shape, np.nan), np.full(shape, "", dtype=object), np.full(shape, "", dtype=object)
    for row in table.to_dict("records"):
        place = known.index(row["truth"]), known.index(row["predicted"])
        values[place] = row["difference"]
        sure = row["low"] > 0 or row["high"] < 0
        text[place] = f"{row['difference']:+d}" if sure else f"({row['difference']:+d})"
        pairs = f"{row['baseline']} pairs in the baseline, {row['other']} in this run"
        change = f"difference {row['difference']:+d} [{row['low']:+.0f}, {row['high']:+.0f}]"
        hover[place] = f"target: {names[place[0]]}<br>detection: {names[place[1]]}<br>{pairs}<br>{change}"
    most = max(float(np.nan_to_num(np.abs(values)).max(initial=0)), 1)
    place = np.arange(len(names))
    figure = Chart(go.Heatmap(
        z=values, x=place, y=place, zmin=-most, zmax=most, colorscale=_MORE_OR_LESS, xgap=1, ygap=1,
        text=hover, hoverinfo="text", hoverongaps=False,
        colorbar={"title": {"text": "pairs more than the baseline", "side": "right"}, "thickness": 10, "outlinewidth": 0},
    ))  # fmt: skip
    if len(names) <= _NUMBERED:
        _write(figure, [(int(column), int(row), str(text[row, column]), bool(abs(values[row, column]) > 0.6 * most))
                        for row, column in np.argwhere(np.isfinite(values))])  # fmt: skip
    return _between_classes(figure, names)


def _write(figure: go.Figure, texts: Sequence[tuple[int, int, str, bool]]) -> None:
    """Writes texts (column, row, text, whether the ground is dark) on a matrix, white on dark and black on light."""
    figure.add_scatter(
        x=[x for x, *_ in texts], y=[y for _, y, *_ in texts], mode="text", text=[text for *_, text, _ in texts], hoverinfo="skip",
        textfont={"color": ["#FFFFFF" if dark else "#000000" for *_, dark in texts]}, showlegend=False,
    )  # fmt: skip


def _between_classes(figure: go.Figure, names: Sequence[str]) -> go.Figure:
    """Lays out a matrix of classes of targets (rows) and of detections (columns)."""
    many = len(names) > _MANY
    axis = {"tickvals": list(range(len(names))), "ticktext": list(names), "ticklabeloverflow": "allow", "showgrid": False}
    ends = [-0.5, len(names) - 0.5]
    figure.update_xaxes(title_text="detection", tickangle=-90 if many else None, automargin=not many, range=ends, **axis)
    figure.update_yaxes(title_text="target", range=ends[::-1], **axis)
    room = 40 + 6 * min(max(map(len, names)), 30)
    margin = {"l": room, "r": SCALE, "t": 12, "b": room if many else 44}
    return quiet(figure, min(max(400, 120 + 22 * len(names)), 900), margin=margin, clickmode="event+select", dragmode="pan")


def cost_sentence(table: pd.DataFrame, error: Error) -> str:
    """Returns what all errors of a type cost, from ``tide.error_table``."""
    row = table[table["error"] == error].to_dict("records")[0]
    ends = f"{100 * row['cost']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    return f"All errors of this type, whatever their score, cost {ends} points of AP50."


def costliest(table: pd.DataFrame) -> Error:
    """Returns the error type of ``tide.error_table`` that costs most AP50; of equal ones the more frequent."""
    main = table[~table["special"]].fillna({"cost": 0.0}).sort_values(["cost", "count"], ascending=False, kind="stable")
    return next(name for name in KINDS if name == main["error"].iloc[0])


def fullest_cells(counts: pd.DataFrame) -> list[tuple[int, int]]:
    """Returns row and column (category ids) of the cells of a confusion matrix that hold pairs, the fullest first."""
    values = counts.to_numpy()
    row, column = np.nonzero(values)
    order = np.argsort(-values[row, column], kind="stable")
    truth, predicted = np.asarray(counts.index, int)[row[order]], np.asarray(counts.columns, int)[column[order]]
    return list(zip(truth.tolist(), predicted.tolist(), strict=True))


def telling_cell(cells: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Returns the first of ``fullest_cells`` that confuses two classes, which tells more than right or missed detections.

    Without such a cell it returns the fullest of all.
    """
    return next((cell for cell in cells if cell[0] != cell[1] and BACKGROUND not in cell), cells[0])


def calibration_figure(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Draws precision against score, one line per run; ``tables`` maps a run's name to its frame of ``calibration.reliability``."""
    figure = Chart()
    honest = {"color": GREY, "dash": "dot", "width": 1}
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=honest, hoverinfo="skip", showlegend=False)
    for position, (name, table) in enumerate(tables.items()):
        own = table[table["n"] > 0]
        figure.add_scatter(
            x=own["score"], y=own["precision"], name=plain(name), mode="lines+markers", showlegend=True,
            line={"color": COLOURS[position % len(COLOURS)], "width": 1.8}, customdata=own["n"],
            error_y=interval([own[name].to_numpy(float) for name in ("precision", "low", "high")], COLOURS[position % len(COLOURS)]),
            hovertemplate=f"{plain(name)}<br>score %{{x:.2f}}: precision %{{y:.2f}}<br>%{{customdata}} detections<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="mean score", range=[0, 1])
    figure.update_yaxes(title_text="precision", range=[0, 1.02])
    return quiet(figure, 340)


def wrong_figure(image: np.ndarray, record: Record, classes: Sequence[str], wrong: pd.DataFrame, names: Mapping[int, str]) -> go.Figure:
    """Draws one image with its targets and the detections (or missed targets) behind an error type.

    Args:
        image: ``[H, W, 3]`` uint8.
        record: the image's targets.
        classes: name by label.
        wrong: rows of ``tide.rows_behind`` of this image.
        names: name by category id.
    """
    figure = picture(image, 480, record.image_id)
    targets = target_rows(record)
    add_boxes(figure, "targets", TARGET, targets, [plain(class_name(classes, label)) for label in targets["label"]], ("x1", "y2"),
              ["top right"] * len(targets), dash="dot")  # fmt: skip
    rows = wrong.to_dict("records")
    score = [f" {row['score']:.2f}" if "score" in row else "" for row in rows]
    labels = [plain(names.get(row["category_id"], "")) + text for row, text in zip(rows, score, strict=True)]
    add_boxes(figure, "errors", STUDENT, wrong, labels, ("x1", "y1"), ["top right"] * len(rows))
    return figure


def pairs_figure(image: np.ndarray, key: object, pairs: pd.DataFrame, names: Mapping[int, str]) -> go.Figure:
    """Draws one image with the pairs of target and detection behind a cell of the confusion.

    Args:
        image: ``[H, W, 3]`` uint8.
        key: resets the zoom when it changes.
        pairs: rows of ``confusion.confusion_pairs`` of this image; either side may be missing.
        names: name by category id.
    """
    figure = picture(image, 480, key)
    targets = pairs[[f"target_{name}" for name in CORNERS]].set_axis(CORNERS, axis=1).assign(category=pairs["truth"]).dropna()
    found = pairs[[*CORNERS, "predicted", "score"]].dropna()
    labels = [plain(names.get(category, "")) for category in targets["category"]]
    add_boxes(figure, "targets", TARGET, targets, labels, ("x1", "y2"), ["bottom right"] * len(targets), dash="dot")
    labels = [f"{plain(names.get(row['predicted'], ''))} {row['score']:.2f}" for row in found.to_dict("records")]
    add_boxes(figure, "detections", STUDENT, found, labels, ("x1", "y1"), ["top right"] * len(found))
    return figure


def _readable(errors: pd.Series) -> list[str]:
    return [str(error).replace("_", " ") for error in errors]
