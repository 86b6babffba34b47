"""Draws runs side by side: AP beside stability over training, and results by arm and seed."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.analysis.derived import frame_if_defined
from workbench.analysis.of_run import all_evaluations
from workbench.analysis.results.detections import data_held
from workbench.analysis.results.stability import StabilityResults
from workbench.errors import WorkbenchError
from workbench.store.groups import EQUAL_COMPUTE, EQUAL_STEPS
from workbench.store.run import Run
from workbench.views.catalog import VALIDATION, Entry
from workbench.views.style import GREY, Chart, interval, plain, quiet, run_style, say, with_lines, with_names

PROGRESS_CAPTION = (
    "AP is measured on the split that is shown. Churn is the share of targets whose query changed since the evaluation before, of those "
    "matched at both. Found-by churn is the share of targets that another candidate detects than at the evaluation before, of those "
    "detected at both (right class, IoU 0.5 or more); it is defined for every detector. Instability is the number of queries per image "
    "whose target changed. All use the last decoder layer, on images without augmentation."
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
    Panel("found_by_churn", "Found-by churn", "found-by churn (% of targets)", 100, ".1f"),
    Panel("instability", "Instability between evaluations", "queries per image", 1, ".2f"),
)
COUNTS = {"churn": "n", "found_by_churn": "found_by_n"}  # of targets behind a share
ONE_TO_ONE = ("churn", "instability")  # defined where a target has one query


def progress_points(run: Run, split: str = VALIDATION, results: StabilityResults | None = None) -> pd.DataFrame:
    """Returns what ``progress_figure`` draws of one run and split; what was not recorded is null.

    Where the assignment is many-to-one, the column ``not_defined`` says so of churn and instability.

    Args:
        run: the run.
        split: split of its evaluations.
        results: opens the data, for found-by churn; one that remembers it for this call by default.
    """
    lines = [line for line in run.evaluations() if line["split"] == split]
    points = pd.DataFrame({"step": [line["step"] for line in lines], "ap": [line["coco"]["ap"] for line in lines]}).astype(float)
    changes, why = frame_if_defined(run, "churn_steps", split)
    changes = changes.reindex(columns=["step", "churn", "instability", "n"])
    found = pd.DataFrame(columns=["step", "found_by_churn", "n"])
    with suppress(WorkbenchError, KeyError, TypeError):  # the data is gone, or the run does not say what it is
        found = (results or StabilityResults(data_held())).found_by_churn(all_evaluations(run, split))
    found = found[["step", "found_by_churn", "n"]].rename(columns={"n": "found_by_n"})
    points = points.merge(changes.astype(float), on="step", how="left").merge(found.astype(float), on="step", how="left")
    return points.assign(run=run.name, split=split, **({"not_defined": why} if why else {}))


def layer_points(run: Run, split: str = VALIDATION) -> pd.DataFrame:
    """Returns what ``layers_figure`` draws of a run's last evaluation on a split and of its teacher; empty if it kept no queries, or a
    many-to-one assignment does not define the number (``defined.undefined_of`` says so).
    """
    students, teachers = (frame_if_defined(run, name, split)[0] for name in ("churn_layers", "teacher_churn_layers"))
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
        points: rows of ``progress_points``: ``run``, ``step``, ``ap``, ``churn`` and ``found_by_churn`` (0..1) with ``n`` and
            ``found_by_n`` (numbers of targets behind them), and ``instability`` (queries per image); null at the first evaluation. A
            number that no run defines is replaced by the sentence of ``not_defined``. The ``split``, if there is one, stands with AP.
        runs: names of the runs in the order of their colours.
    """
    titles = [f"{panel.title} ({points['split'].iloc[0]})" if panel.column == "ap" and "split" in points and len(points) else panel.title
              for panel in PROGRESS]  # fmt: skip
    figure = make_subplots(1, len(PROGRESS), subplot_titles=titles, horizontal_spacing=0.06, figure=Chart())
    for position, run in enumerate(runs):
        colour, dash = run_style(position)
        own = points[points["run"] == run].sort_values("step")
        for column, panel in enumerate(PROGRESS, 1):
            count = COUNTS.get(panel.column, "n")
            values = own[["step", count, panel.column]].dropna(subset=[panel.column])
            figure.add_scatter(
                x=values["step"], y=values[panel.column] * panel.scale, name=plain(run), legendgroup=str(position), showlegend=column == 1,
                mode="lines+markers", line={"color": colour, "dash": dash, "width": 1.8}, marker={"size": 5}, row=1, col=column,
                customdata=values[count], hovertemplate=f"{plain(run)}<br>step %{{x}}: %{{y:{panel.digits}}} {plain(panel.unit)}"
                + ("<br>%{customdata:.0f} targets" if panel.column in COUNTS else "") + "<extra></extra>",
            )  # fmt: skip
    for column, panel in enumerate(PROGRESS, 1):
        figure.update_xaxes(title_text="step", rangemode="tozero", matches="x", row=1, col=column)
        figure.update_yaxes(title_text=panel.unit, rangemode="tozero", row=1, col=column)
    return say_undefined(quiet(figure, 320), points)


def counted(points: pd.DataFrame) -> str:
    """Returns how many targets churn and found-by churn of ``progress_points`` are computed from, in words."""
    churn, found = (int(points[name].sum()) for name in ("n", "found_by_n"))
    return f"n = {churn} pairs of target and evaluation for churn and {found} for found-by churn,"


def say_undefined(figure: go.Figure, points: pd.DataFrame) -> go.Figure:
    """Writes into each small plot of ``PROGRESS`` whose number no run defines why that is."""
    if "not_defined" not in points:
        return figure
    why = points["not_defined"].dropna()
    for column, panel in enumerate(PROGRESS, 1):
        if panel.column in ONE_TO_ONE and len(why) and points[panel.column].isna().all():
            say(figure, why.iloc[0], 1, column)
    return figure


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
            label = {"text": "teacher", "font_size": 11}
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
