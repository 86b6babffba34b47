"""Draws runs side by side: AP beside stability over training, and results by arm and seed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.analysis.derived import match_frame
from workbench.store.groups import EQUAL_COMPUTE, EQUAL_STEPS
from workbench.store.run import Run
from workbench.views.catalog import VALIDATION, Entry
from workbench.views.style import GREY, Chart, interval, plain, quiet, run_style, with_lines, with_names

PROGRESS_CAPTION = (
    "AP is measured on the split that is shown. Churn is the share of targets whose query changed since the evaluation before, of those "
    "matched at both. Instability is the number of queries per image whose target changed. Both use the last decoder layer, on images "
    "without augmentation."
)
RESULTS_CAPTION = (
    "One mark per run (seed), with its 95 % interval over resampled images. Equal steps: as many optimiser steps as the undistilled run. "
    "Equal compute: shortened to the undistilled run's process seconds, which count the teacher's forward pass but not evaluation."
)
LAYERS_CAPTION = "Share of the targets matched at decoder layers l-1 and l of the last evaluation whose query differs between the two."


class Panel(NamedTuple):
    """Describes one small plot of a row: a column of the frame over steps."""

    column: str
    title: str
    unit: str
    scale: float
    digits: str


PROGRESS = (
    Panel("ap", "AP", "AP (%)", 100, ".1f"),
    Panel("churn", "Churn between evaluations", "churn (% of targets)", 100, ".1f"),
    Panel("instability", "Instability between evaluations", "queries per image", 1, ".2f"),
)


def progress_points(run: Run, split: str = VALIDATION) -> pd.DataFrame:
    """Returns what ``progress_figure`` draws of one run and split; churn and instability are null where the run kept no queries."""
    lines = [line for line in run.evaluations() if line["split"] == split]
    points = pd.DataFrame({"step": [line["step"] for line in lines], "ap": [line["coco"]["ap"] for line in lines]}).astype(float)
    changes = match_frame(run, "churn_steps", split).reindex(columns=["step", "churn", "instability", "n"])
    return points.merge(changes.astype(float), on="step", how="left").assign(run=run.name)


def layer_points(run: Run, split: str = VALIDATION) -> pd.DataFrame:
    """Returns what ``layers_figure`` draws of a run's last evaluation on a split and of its teacher; empty if it kept no queries."""
    students, teachers = match_frame(run, "churn_layers", split), match_frame(run, "teacher_churn_layers", split)
    frames: list[pd.DataFrame] = []
    for changes, model, title in ((students, "student", run.name), (teachers, "teacher", str(run.info().get("teacher")))):
        changes = changes.reindex(columns=["step", "layer", "churn", "n"])
        changes = changes[(changes["step"] == changes["step"].max()) & (changes["layer"] > 0)]
        frames.append(changes[["layer", "churn", "n"]].assign(run=title, model=model))
    return pd.concat(frames, ignore_index=True)


def result_points(entries: Sequence[Entry]) -> pd.DataFrame:
    """Returns what ``results_figure`` draws: AP of finished runs on the test split if all have it, otherwise on validation."""
    rows: list[dict[str, Any]] = []
    for entry in entries:
        for line in entry.run.evaluations() if entry.state == "done" else []:
            rows.append({"run": entry.run.name, "recipe": entry.recipe, "arm": entry.arm, "seed": entry.seed, "schedule": entry.schedule,
                         "split": line["split"], "step": line["step"], "ap": line["coco"]["ap"],
                         "teacher_ap": line.get("teacher", {}).get("coco", {}).get("ap")})  # fmt: skip
    columns = ["run", "recipe", "arm", "seed", "schedule", "split", "step", "ap", "teacher_ap"]
    frame = pd.DataFrame(rows, columns=columns)
    split = "test" if set(frame["run"]) == set(frame.loc[frame["split"] == "test", "run"]) else VALIDATION
    return frame[frame["split"] == split].drop_duplicates("run", keep="last")


def progress_figure(points: pd.DataFrame, runs: Sequence[str]) -> go.Figure:
    """Draws AP beside churn and instability over steps, one colour per run.

    Args:
        points: rows of ``progress_points``: ``run``, ``step``, ``ap`` and ``churn`` (0..1), ``n`` (number of targets behind churn) and
            ``instability`` (queries per image). Churn and instability are null at the first evaluation.
        runs: names of the runs in the order of their colours.
    """
    figure = make_subplots(1, len(PROGRESS), subplot_titles=[panel.title for panel in PROGRESS], horizontal_spacing=0.06, figure=Chart())
    for position, run in enumerate(runs):
        colour, dash = run_style(position)
        own = points[points["run"] == run].sort_values("step")
        for column, panel in enumerate(PROGRESS, 1):
            values = own[["step", "n", panel.column]].dropna(subset=[panel.column])
            figure.add_scatter(
                x=values["step"], y=values[panel.column] * panel.scale, name=plain(run), legendgroup=str(position), showlegend=column == 1,
                mode="lines+markers", line={"color": colour, "dash": dash, "width": 1.8}, marker={"size": 5}, row=1, col=column,
                customdata=values["n"], hovertemplate=f"{plain(run)}<br>step %{{x}}: %{{y:{panel.digits}}} {plain(panel.unit)}"
                + ("<br>%{customdata:.0f} targets" if panel.column == "churn" else "") + "<extra></extra>",
            )  # fmt: skip
    for column, panel in enumerate(PROGRESS, 1):
        figure.update_xaxes(title_text="step", rangemode="tozero", matches="x", row=1, col=column)
        figure.update_yaxes(title_text=panel.unit, rangemode="tozero", row=1, col=column)
    return quiet(figure, 320)


def results_figure(table: pd.DataFrame, runs: Sequence[str] = ()) -> go.Figure:
    """Draws AP of finished runs, equal steps apart from equal compute, with one row per arm and one mark per seed.

    Args:
        table: rows of ``result_points``: ``run``, ``recipe``, ``arm``, ``seed``, ``schedule``, ``split``, ``ap`` and ``teacher_ap``
            (0..1), optionally ``ap_low`` and ``ap_high``. The teacher's AP on the same split is drawn as a line; it is null if unknown.
        runs: names of the runs in the order of their colours, as in ``progress_figure``, if such figures are beside this one. Otherwise
            all marks have one colour.
    """
    colours = {run: run_style(position)[0] for position, run in enumerate(runs)}
    schedules = [schedule for schedule in (EQUAL_STEPS, EQUAL_COMPUTE) if (table["schedule"] == schedule).any()]
    figure = make_subplots(1, max(len(schedules), 1), subplot_titles=schedules, shared_yaxes=True, horizontal_spacing=0.03,
                           figure=Chart())  # fmt: skip
    several = table["recipe"].nunique() > 1
    arms = [plain(f"{row['recipe']} · {row['arm']}" if several else row["arm"]) for row in table.to_dict("records")]
    table = table.assign(place=arms)
    order = {arm: place for place, arm in enumerate(dict.fromkeys(arms))}
    for column, schedule in enumerate(schedules, 1):
        own = table[table["schedule"] == schedule]
        spread = {}
        if "ap_low" in own:
            spread = {"error_x": interval([100 * own[name].to_numpy(float) for name in ("ap", "ap_low", "ap_high")])}
        figure.add_scatter(
            x=own["ap"] * 100, y=own["place"].map(order), mode="markers", name=schedule, showlegend=False, row=1, col=column,
            marker={"size": 10, "color": [colours.get(run, run_style(0)[0]) for run in own["run"]]},
            text=[f"{plain(row['run'])}<br>seed {row['seed']}, {schedule}<br>AP {100 * row['ap']:.1f} %" for row in own.to_dict("records")],
            hovertemplate="%{text}<extra></extra>", **spread,
        )  # fmt: skip
        for ap in sorted(set(own["teacher_ap"].dropna())):
            label = {"text": "teacher", "font_size": 11, "font_color": GREY}
            line: dict[str, Any] = {"line": {"color": GREY, "dash": "dot", "width": 1.5}, "row": 1, "col": column}
            figure.add_vline(100 * ap, annotation=label, annotation_position="bottom left", **line)
    figure.update_xaxes(title_text=f"AP (%), {' and '.join(sorted(table['split'].unique()))} split", matches="x")
    return with_names(quiet(figure, max(280, 140 + 30 * len(order))), list(order))


def layers_figure(points: pd.DataFrame, runs: Sequence[str]) -> go.Figure:
    """Draws churn between decoder layers at the last evaluation; teachers are grey.

    Args:
        points: rows of ``layer_points``: ``run``, ``model``, ``layer`` (compared with the one before), ``churn`` (0..1) and ``n`` targets.
        runs: names of the runs in the order of their colours, as in ``progress_figure``.
    """
    figure = Chart()
    layers = sorted(points["layer"].unique())
    students, teachers = points[points["model"] == "student"], points[points["model"] == "teacher"].drop_duplicates(["run", "layer"])
    drawn = [(plain(run), students[students["run"] == run], *run_style(position)) for position, run in enumerate(runs)]
    drawn += [(f"teacher {plain(run)}", own, GREY, "dot") for run, own in teachers.groupby("run")]
    for name, own, colour, dash in drawn:
        own = own.dropna(subset=["churn"]).sort_values("layer")
        figure.add_scatter(
            x=own["layer"], y=own["churn"] * 100, name=name, mode="lines+markers", marker={"size": 8},
            line={"color": colour, "dash": dash, "width": 1.8}, showlegend=True, customdata=own["n"],
            hovertemplate=f"{name}<br>layer %{{x}}: %{{y:.1f}} % of %{{customdata}} targets<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="decoder layers", tickvals=layers, ticktext=[f"{layer - 1} to {layer}" for layer in layers])
    figure.update_yaxes(title_text="churn (% of targets)", rangemode="tozero")
    return with_lines(quiet(figure, 280))
