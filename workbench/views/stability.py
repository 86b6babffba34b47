"""Shows how the matching settles: churn and instability over training and seeds, and which query was matched to each target."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.analysis.derived import frame_if_defined
from workbench.analysis.rows_of_run import in_last_layer
from workbench.datasets.base import Record
from workbench.store.run import Run
from workbench.views.box_drawing import TARGET, add_boxes, class_name, in_pixels, picture, target_rows
from workbench.views.catalog import Entry
from workbench.views.overview import PROGRESS, say_undefined
from workbench.views.style import COLOURS, Chart, faded, interval, plain, quiet, reach, run_style, with_lines, with_names

SEEDS_CAPTION = (
    "Lines show the mean over the seeds of an arm; bands reach from the lowest to the highest seed. Churn is the share of targets whose "
    "query changed since the evaluation before, of those matched at both. Found-by churn is the share of targets that another candidate "
    "detects than at the evaluation before, of those detected at both (right class, IoU 0.5 or more); it is defined for every detector. "
    "Instability is the number of queries per image whose target changed. Slots of different seeds do not correspond, so only these "
    "numbers are compared."
)
AGREEMENT_CAPTION = "Agreement is the share of targets, of those matched in both models, whose two queries are paired with each other."
FOUND_BY_CAPTION = (
    "Found-by churn: of the targets detected at two consecutive evaluations (right class, IoU 0.5 or more), the share that another "
    "candidate detects. It is read from detections, so it is defined for every detector."
)
FOUND_CAPTION = (
    "Share of all targets that both runs of a pair of seeds find (right class, IoU of the matched query 0.5 or more) at their last "
    "evaluations, with 95 % intervals over resampled images. Slots of different seeds do not correspond."
)
FIRST, KEPT, CHANGED, UNMATCHED = 0, 1, 2, 3
_STATES = (("first seen", "#BDBDBD"), ("same query", "#56B4E9"), ("other query", "#D55E00"), ("not matched", "rgba(128,128,128,0.12)"))
_AGES = ("#F0F921", "#FDCA26", "#FB9F3A", "#ED7953", "#D8576B", "#BD3786", "#9C179E")  # plasma: early is light, late is dark


def arm_points(points: pd.DataFrame, entries: Sequence[Entry]) -> pd.DataFrame:
    """Returns mean and range over seeds of the points of ``overview.progress_points``.

    Args:
        points: rows of all runs, one below the other.
        entries: the same runs.

    Returns:
        One row per arm and step: ``arm`` (recipe, arm, schedule), ``step``, ``seeds``, and for each of ``ap``, ``churn``,
        ``found_by_churn`` and ``instability`` the mean, ``<name>_low`` and ``<name>_high``; ``not_defined`` as in the points.
    """
    arms = {entry.run.name: f"{entry.recipe} · {entry.arm} · {entry.schedule}" for entry in entries}
    columns = [panel.column for panel in PROGRESS]
    grouped = points.assign(arm=points["run"].map(arms)).groupby(["arm", "step"], sort=False)
    values = grouped[columns].mean()
    low, high = (getattr(grouped[columns], end)().add_suffix(suffix) for end, suffix in (("min", "_low"), ("max", "_high")))
    seeds = grouped["run"].nunique().rename("seeds")
    told = [grouped["not_defined"].first()] if "not_defined" in points else []
    return pd.concat([seeds, values, low, high, *told], axis=1).reset_index()


def arm_figure(points: pd.DataFrame) -> go.Figure:
    """Draws AP, churn, found-by churn and instability over steps: per arm a mean line and a band over seeds.

    ``points`` come from ``arm_points``.
    """
    figure = make_subplots(1, len(PROGRESS), subplot_titles=[panel.title for panel in PROGRESS], horizontal_spacing=0.06, figure=Chart())
    for position, arm in enumerate(points["arm"].unique()):
        colour, dash = run_style(position)
        own = points[points["arm"] == arm].sort_values("step")
        for column, panel in enumerate(PROGRESS, 1):
            values = own.dropna(subset=[panel.column])
            steps = values["step"]
            edge = np.concatenate([values[f"{panel.column}_low"], values[f"{panel.column}_high"][::-1]]) * panel.scale
            group: dict[str, Any] = {"legendgroup": str(position), "row": 1, "col": column}
            figure.add_scatter(x=np.concatenate([steps, steps[::-1]]), y=edge, fill="toself", fillcolor=faded(colour, 0.18),
                               line_width=0, mode="lines", hoverinfo="skip", showlegend=False, **group)  # fmt: skip
            figure.add_scatter(
                x=steps, y=values[panel.column] * panel.scale, name=plain(arm), showlegend=column == 1, mode="lines+markers",
                line={"color": colour, "dash": dash, "width": 1.8}, marker={"size": 5}, customdata=values["seeds"],
                hovertemplate=f"{plain(arm)}<br>step %{{x}}: %{{y:{panel.digits}}} {plain(panel.unit)}"
                "<br>%{customdata} seeds<extra></extra>", **group,
            )  # fmt: skip
    for column, panel in enumerate(PROGRESS, 1):
        figure.update_xaxes(title_text="step", rangemode="tozero", matches="x", row=1, col=column)
        figure.update_yaxes(title_text=panel.unit, rangemode="tozero", row=1, col=column)
    return say_undefined(quiet(figure, 320), points)


def agreement_points(run: Run, split: str = "val") -> pd.DataFrame:
    """Returns a run's agreement with its teacher by evaluation: ``run``, ``step``, ``agreement``, ``n``; empty without a teacher and
    where a many-to-one assignment does not define it.
    """
    frame = frame_if_defined(run, "agreement", split)[0].reindex(columns=["step", "layer", "agreement", "n"])
    return in_last_layer(frame).drop(columns="layer").dropna().assign(run=run.name)


def agreement_figure(points: pd.DataFrame, runs: Sequence[str]) -> go.Figure:
    """Draws agreement with the teacher over steps, one line per run, coloured in the order of ``runs``.

    ``points`` come from ``agreement_points``.
    """
    figure = Chart()
    for position, run in enumerate(runs):
        own = points[points["run"] == run].sort_values("step")
        if len(own):
            colour, dash = run_style(position)
            figure.add_scatter(
                x=own["step"], y=100 * own["agreement"], name=plain(run), mode="lines+markers", showlegend=True, customdata=own["n"],
                line={"color": colour, "dash": dash, "width": 1.8}, marker={"size": 5},
                hovertemplate=f"{plain(run)}<br>step %{{x}}: %{{y:.1f}} % of %{{customdata}} targets<extra></extra>",
            )  # fmt: skip
    figure.update_xaxes(title_text="step", rangemode="tozero")
    figure.update_yaxes(title_text="agreement (% of targets)", rangemode="tozero")
    return with_lines(quiet(figure, 280))


def seed_pairs(entries: Sequence[Entry], most: int = 12) -> list[tuple[Entry, Entry]]:
    """Returns at most ``most`` pairs of runs that differ only in their seed, ordered by arm."""
    arms: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in entries:
        arms.setdefault((entry.recipe, entry.arm, entry.schedule), []).append(entry)
    pairs = [pair for own in arms.values() for pair in itertools.combinations(own, 2) if pair[0].seed != pair[1].seed]
    return pairs[:most]


def found_figure(table: pd.DataFrame) -> go.Figure:
    """Draws the share of targets that both runs of a pair find; ``table`` is of ``seeds.found_by_both`` plus the name of the ``pair``."""
    value, low, high = (100 * table[column].to_numpy(float) for column in ("share", "low", "high"))
    counts = table[["both", "only_first", "only_second", "neither"]].to_numpy()
    names = [plain(name) for name in table["pair"]]
    figure = Chart(go.Scatter(
        x=value, y=np.arange(len(names)), hovertext=names, mode="markers", marker={"size": 9, "color": COLOURS[0]}, customdata=counts,
        error_x=interval((value, low, high), COLOURS[0]),
        hovertemplate="%{hovertext}<br>both %{customdata[0]}, only the first %{customdata[1]}, only the second %{customdata[2]}, "
        "neither %{customdata[3]}<extra></extra>",
    ))  # fmt: skip
    figure.update_xaxes(title_text="targets found by both (%)", range=reach(value, low, high, zero=True))
    return with_names(quiet(figure, max(280, 110 + 24 * len(table))), names)


def by_layer_figure(table: pd.DataFrame) -> go.Figure:
    """Draws churn between evaluations over steps, one line per decoder layer; ``table`` comes from ``grouped.stability_by``."""
    figure = Chart()
    for position, (layer, own) in enumerate(table.dropna(subset=["churn"]).groupby("layer")):
        colour, dash = run_style(position)
        value, low, high = (100 * own[column].to_numpy(float) for column in ("churn", "low", "high"))
        figure.add_scatter(
            x=own["step"], y=value, name=f"layer {layer}", mode="lines+markers", showlegend=True, customdata=own["n"],
            line={"color": colour, "dash": dash, "width": 1.8},
            error_y=interval((value, low, high), colour),
            hovertemplate=f"layer {layer}<br>step %{{x}}: %{{y:.1f}} % of %{{customdata}} targets<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="step", rangemode="tozero")
    figure.update_yaxes(title_text="churn (% of targets)", rangemode="tozero")
    return quiet(figure, 300)


def found_by_figure(table: pd.DataFrame) -> go.Figure:
    """Draws found-by churn over steps with intervals; ``table`` comes from ``found_by.found_by_churn``."""
    value, low, high = (100 * table[column].to_numpy(float) for column in ("found_by_churn", "low", "high"))
    steps = table["step"].to_numpy(float)
    figure = Chart(go.Scatter(
        x=steps, y=value, mode="lines+markers", showlegend=False, customdata=table["n"], line={"color": COLOURS[0], "width": 1.8},
        error_y=interval((value, low, high), COLOURS[0]),
        hovertemplate="step %{x}: %{y:.1f} % of %{customdata} targets<extra></extra>",
    ))  # fmt: skip
    figure.update_xaxes(title_text="step", range=reach(steps, zero=True))
    figure.update_yaxes(title_text="found-by churn (% of targets)", range=reach(value, low, high, zero=True))
    return quiet(figure, 300)


def slices_figure(
    tables: Mapping[str, pd.DataFrame], classes: Sequence[str], share: str = "churn", title: str = "targets whose query changed (%)"
) -> go.Figure:
    """Draws a share of the targets by class and by size: churn or found-by churn between evaluations, or agreement.

    Args:
        tables: frame of ``grouped.pooled_by``, ``found_by.pooled_found_by_churn`` or ``agreement.agreement_by`` for each of ``label``
            and ``size``.
        classes: name by label.
        share: column that is drawn.
        title: title of its axis.
    """
    figure = Chart()
    together: list[str] = []
    shown: list[np.ndarray] = []
    for position, (by, table) in enumerate(tables.items()):
        names = [plain(class_name(classes, value)) if by == "label" else str(value) for value in table[by]]
        value, low, high = (100 * table[column].to_numpy(float) for column in (share, "low", "high"))
        colour = run_style(2 * position)[0]
        figure.add_scatter(
            x=value, y=len(together) + np.arange(len(names)), hovertext=names, mode="markers", name="class" if by == "label" else by,
            showlegend=True, customdata=table["n"],
            marker={"size": 9, "color": colour},
            error_x=interval((value, low, high), colour),
            hovertemplate="%{hovertext}: %{x:.1f} % of %{customdata}<extra></extra>",
        )  # fmt: skip
        together += names
        shown += [value, low, high]
    figure.update_xaxes(title_text=title, range=reach(*shown, zero=True))
    return with_names(quiet(figure, 300), together)


def held(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns which query was matched to each target at each evaluation.

    Args:
        rows: matched rows of one student layer, from the query table.

    Returns:
        One row per target and step, in that order: ``image_id``, ``target``, ``step``, ``query``, ``held_by`` (the slot, or the encoder
        cell in families that select queries per image), ``score``, ``iou``, ``state`` (FIRST, KEPT or CHANGED since the last evaluation
        at which the target was matched) and ``changes`` (number of changes of the target in all).
    """
    frame = rows.rename(columns={"match": "target", "match_iou": "iou"})
    frame = frame.sort_values(["image_id", "target", "step"], ignore_index=True)
    frame["held_by"] = frame["source"].where(frame["source"] >= 0, frame["query"])
    frame["target"] = frame["target"].astype(int)
    same = frame[["image_id", "target"]].eq(frame[["image_id", "target"]].shift()).all(axis=1)
    changed = frame["held_by"].ne(frame["held_by"].shift())
    frame["state"] = np.where(~same, FIRST, np.where(changed, CHANGED, KEPT))
    frame["changes"] = (frame["state"] == CHANGED).groupby([frame["image_id"], frame["target"]]).transform("sum")
    return frame[["image_id", "target", "step", "query", "held_by", "score", "iou", "state", "changes"]]


def target_rows_of(frame: pd.DataFrame, first: int, count: int) -> pd.DataFrame:
    """Returns rows of ``held`` of ``count`` targets, ordered by number of changes, starting with target ``first`` (from 0)."""
    targets = frame.drop_duplicates(["image_id", "target"])[["image_id", "target", "changes"]]
    targets = targets.sort_values(["changes", "image_id", "target"], ascending=[False, True, True], ignore_index=True)
    chosen = targets.iloc[first : first + count].assign(place=lambda own: range(len(own)))
    return frame.merge(chosen[["image_id", "target", "place"]], on=["image_id", "target"]).sort_values(["place", "step"], ignore_index=True)


def matrix_figure(rows: pd.DataFrame, steps: Sequence[int]) -> go.Figure:
    """Draws targets by evaluations: each cell names the matched query, and its colour tells whether it is the same as before.

    Args:
        rows: rows of ``target_rows_of``; every mark carries ``[image_id, target, step]``.
        steps: steps of the run's evaluations, in order.
    """
    names = [f"image {image}, target {target}" for image, target in
             rows.drop_duplicates("place")[["image_id", "target"]].itertuples(index=False)]  # fmt: skip
    column = np.searchsorted(np.asarray(steps), rows["step"])
    state = np.full((len(names), len(steps)), UNMATCHED)
    state[rows["place"], column] = rows["state"]
    edges = [i / len(_STATES) for i in range(len(_STATES) + 1)]
    scale = [pair for i, (_, colour) in enumerate(_STATES) for pair in ((edges[i], colour), (edges[i + 1], colour))]
    figure = Chart(go.Heatmap(z=state, x=list(range(len(steps))), y=list(range(len(names))), zmin=-0.5, zmax=len(_STATES) - 0.5,
                                  colorscale=scale, showscale=False, xgap=2, ygap=2, hoverinfo="skip"))  # fmt: skip
    hover = [
        f"image {row['image_id']}, target {row['target']}<br>step {row['step']}: query {row['query']}<br>"
        f"score {row['score']:.2f}, IoU {row['iou']:.2f}<br>{_STATES[row['state']][0]}"
        for row in rows.to_dict("records")
    ]
    figure.add_scatter(
        x=column, y=rows["place"], mode="markers+text" if len(steps) <= 30 else "markers", text=rows["held_by"].astype(str),
        textfont={"size": 10, "color": "#000000"}, marker={"size": 16, "symbol": "square", "color": "rgba(0,0,0,0)"},
        customdata=rows[["image_id", "target", "step"]].to_numpy(), hovertext=hover, hoverinfo="text", showlegend=False,
        selected={"marker": {"color": "rgba(0,0,0,0)"}, "textfont": {"color": "#000000"}}, unselected={"marker": {"opacity": 0}},
    )  # fmt: skip
    for title, colour in _STATES:
        figure.add_scatter(x=[None], y=[None], mode="markers", name=title, marker={"symbol": "square", "size": 10, "color": colour})
    figure.update_xaxes(title_text="step", tickvals=list(range(len(steps))), ticktext=[str(step) for step in steps],
                        range=[-0.5, len(steps) - 0.5], showgrid=False)  # fmt: skip
    figure.update_yaxes(showgrid=False)
    quiet(figure, 110 + 21 * max(len(names), 4), legend_y=1.01, legend_yanchor="bottom", margin={"l": 8, "r": 8, "t": 40, "b": 44},
          dragmode="pan", clickmode="event+select")  # fmt: skip
    return with_names(figure, names)


def holders_figure(image: np.ndarray, record: Record, classes: Sequence[str], target: int, rows: pd.DataFrame) -> go.Figure:
    """Draws one target and the boxes of the queries matched to it over training, early ones light and late ones dark.

    Args:
        image: ``[H, W, 3]`` uint8.
        record: the image's targets.
        classes: name by label.
        target: index of the target.
        rows: rows of the query table matched to it, one per step, in the order of steps.
    """
    height, width = image.shape[:2]
    figure = picture(image, 480, (record.image_id, target))
    own = target_rows(record).iloc[[target]]
    label = plain(class_name(classes, own["label"].iloc[0]))
    placed = in_pixels(rows, width, height)
    for number, (query, some) in enumerate(placed.groupby("query", sort=False)):
        latest = some.tail(1)
        share = number / max(placed["query"].nunique() - 1, 1)
        steps = ", ".join(str(step) for step in some["step"])
        colour = _AGES[round(share * (len(_AGES) - 1))]
        add_boxes(figure, f"query {query}: step {steps}", colour, latest, [f"{query}"], ("x1", "y1"), ["top right"])
    add_boxes(figure, "target", TARGET, own, [label], ("x1", "y2"), ["bottom right"], dash="dot")
    return figure


def holder_table(rows: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Returns one row per evaluation: the query matched to the target, its prediction and how well it fits."""
    return pd.DataFrame({
        "step": rows["step"], "query": rows["query"].astype(int), "class": [class_name(classes, label) for label in rows["label"]],
        "score": rows["score"].astype(float), "iou": rows["match_iou"].astype(float),
    }).reset_index(drop=True)  # fmt: skip


def stable_share(frame: pd.DataFrame) -> tuple[int, int]:
    """Returns the number of targets that never changed their query and of all matched at two evaluations or more, from ``held``."""
    several = frame[frame.groupby(["image_id", "target"])["step"].transform("size") > 1].drop_duplicates(["image_id", "target"])
    return int((several["changes"] == 0).sum()), len(several)
