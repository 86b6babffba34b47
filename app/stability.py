"""Does the matching settle? Churn and instability over training, layers and seeds, and every target's queries over the evaluations."""

import analyses
import pandas as pd
import reads
import shared
import streamlit as st

from workbench.views import overview, stability
from workbench.views.catalog import VALIDATION, latest_comparison

AT_ONCE = 30  # targets in the matrix
MOST_RUNS = 15  # at first
entries = {name: entry for name, entry in shared.usable_runs().items() if entry.run.query_steps(VALIDATION)}
if not entries:
    shared.banner("info", "No evaluation yet", "Matchings appear here after the first evaluation of a run.")
    st.stop()
names = list(entries)
latest = latest_comparison(list(entries.values()))
arms = {(entry.recipe, entry.arm, entry.schedule) for entry in latest}
same = [name for name, entry in entries.items() if (entry.recipe, entry.arm, entry.schedule) in arms]
bar = st.columns([6, 1.2], vertical_alignment="bottom")
shared.choose_several("compared", names, same[:MOST_RUNS])
chosen = bar[0].multiselect("Runs", names, key="compared", format_func=lambda name: entries[name].title, placeholder="Choose runs")
by = shared.select(bar[1], "Lines", "lines", ["arms", "runs"], "arms", help="Arms: mean and range over the seeds of an arm.")


@shared.guarded("These runs cannot be compared")
def over_training() -> None:
    """Churn and instability of the chosen runs over steps, and between their layers."""
    stamps = {name: reads.run_stamp(entries[name].run) for name in chosen}
    points = pd.concat([reads.progress(str(entries[name].run.path), stamps[name]) for name in chosen])
    targets = f" n = {int(points['n'].sum())} pairs of target and evaluation, {len(chosen)} runs."
    if by == "arms":
        points = stability.arm_points(points, [entries[name] for name in chosen])
        shared.chart(stability.arm_figure(points), "stability-arms", stability.SEEDS_CAPTION + targets, points)
    else:
        shared.chart(overview.progress_figure(points, chosen), "stability-runs", overview.PROGRESS_CAPTION + targets, points)
    layers = pd.concat([reads.layers(str(entries[name].run.path), stamps[name]) for name in chosen])
    meaning = f"{overview.LAYERS_CAPTION} n = {int(layers['n'].sum())} targets over all lines; grey: the teacher."
    shared.chart(overview.layers_figure(layers, chosen), "stability-layers", meaning, layers)


def select_target() -> None:
    """Keeps the target whose cell was clicked."""
    found = shared.clicked("matrix")
    if found:
        st.session_state["target"] = f"{found[0]}-{found[1]}"


@shared.guarded("The targets of this run cannot be shown")
def targets_by_evaluations() -> None:
    """The matrix, and the target chosen in it."""
    head = st.columns([3, 1, 1.3, 4], vertical_alignment="bottom")
    run = shared.select_run(head[0], entries).run
    key = reads.run_stamp(run)
    layers = reads.student_layers(str(run.path), key)
    layer = shared.select(head[1], "Layer", "layer", layers, layers[-1], help="Decoder layer of the student.")
    frame = reads.held(str(run.path), layer, key)
    targets = len(frame.drop_duplicates(["image_id", "target"]))
    first = int(shared.choose_number("first", 1, max(targets, 1), 1))
    st.session_state["first"] = first
    head[2].number_input(f"First of {targets}", 1, max(targets, 1), key="first", step=AT_ONCE, help="Those that change most come first.")
    rows = stability.target_rows_of(frame, first - 1, AT_ONCE)
    by_slice(run)
    left, right = st.columns([1.25, 1], gap="medium")
    stable, several = stability.stable_share(frame)
    with left:
        meaning = (
            "Each cell is the query (its encoder cell, where queries are selected per image) matched to a target at an evaluation. "
            f"{stable} of {several} targets matched more than once never changed theirs. A click shows the target."
        )
        figure = stability.matrix_figure(rows, run.query_steps(VALIDATION))
        shared.chart(figure, "matrix", meaning, rows, on_select=select_target, modes=["points"])
    known = [f"{image}-{target}" for image, target in rows[["image_id", "target"]].drop_duplicates().itertuples(index=False)]
    asked = str(st.session_state.get("target", st.query_params.get("target", "")))
    everything = set(frame["image_id"].astype(str) + "-" + frame["target"].astype(str))
    target = asked if asked in everything else known[0] if known else ""
    shared.write_address(compared=chosen, lines=by, run=run.name, layer=layer, first=first, target=target)
    with right:
        if target:
            show_target(run, layer, *(int(number) for number in target.rsplit("-", 1)))


def by_slice(run: reads.Run) -> None:
    """Churn of the run by layer, class and size."""
    key = reads.run_stamp(run)
    left, right = st.columns(2, gap="medium")
    with left:
        table = analyses.churn_by_layer(str(run.path), key)
        meaning = "Churn between evaluations by decoder layer; 95 % intervals over resampled images. "
        meaning += f"n = {int(table['n'].sum())} pairs of target and evaluation."
        shared.chart(stability.by_layer_figure(table), "churn-layers", meaning, table)
    with right:
        tables = {by: analyses.churn_by(str(run.path), by, key) for by in ("label", "size")}
        meaning = "Churn between evaluations of the last layer by class and size (COCO's bounds), all evaluations together; 95 % intervals "
        meaning += f"over resampled images. n = {int(tables['label']['n'].sum())} pairs of target and evaluation."
        figure = stability.slices_figure(tables, run.info()["classes"])
        shared.chart(figure, "churn-slices", meaning, pd.concat(list(tables.values())))


def show_target(run: reads.Run, layer: int, image_id: int, target: int) -> None:
    """The image of a target with the boxes of the queries that held it."""
    data = reads.dataset(run.info())
    number = next(i for i, record in enumerate(data.records) if record.image_id == image_id)
    rows = reads.holders(str(run.path), image_id, target, layer, reads.run_stamp(run))
    figure = stability.holders_figure(data.image(number), data.records[number], data.classes, target, rows)
    table = stability.holder_table(rows, data.classes)
    meaning = f"Target {target} of image {image_id} ({data.records[number].file_name}); a query's box is that of the last step it held it."
    shared.chart(figure, "holders", meaning, table, scrollZoom=True)
    st.dataframe(table, hide_index=True, row_height=28, key="holders-table")


if chosen:
    over_training()
targets_by_evaluations()
