"""Shows whether the matching settles: churn, instability and agreement over training, layers and seeds, and each target's queries."""

import pandas as pd
import streamlit as st

from lib import choices, held, page, run_chooser
from lib.headings import COLUMNS
from lib.held import RESULTS
from lib.layers_panel import layers_panel
from workbench.analysis.defined import require, undefined_of
from workbench.analysis.of_run import RunSplit, all_evaluations, last_with_queries, splits_with_queries
from workbench.views import overview, stability, unsettled
from workbench.views.catalog import Entry, latest_comparison

AT_ONCE = 30  # targets shown in the matrix
MOST_RUNS = 15  # runs chosen by default
entries = page.runs_with(splits_with_queries, "No evaluation yet", "Matchings appear here after the first evaluation of a run.")
split = choices.select_split(st.columns([1, 9])[0], choices.splits_of(entries.values(), lambda entry: splits_with_queries(entry.run)))
entries = {name: entry for name, entry in entries.items() if entry.run.query_steps(split)}
choices.write_address(split=split)


@st.fragment
@page.guarded("These runs cannot be compared")
def runs_compared() -> None:
    """Compares runs: churn, instability and agreement over steps and layers, and the targets that pairs of seeds find."""
    st.markdown("**Match stability during training**")
    names = list(entries)
    latest = latest_comparison(list(entries.values()))
    arms = {(entry.recipe, entry.arm, entry.schedule) for entry in latest}
    same = [name for name, entry in entries.items() if (entry.recipe, entry.arm, entry.schedule) in arms]
    bar = st.columns([6, 1.3, 1.2], vertical_alignment="bottom")
    choices.choose_several("compared", names, same[:MOST_RUNS])
    chosen = bar[0].multiselect("Runs", names, key="compared", format_func=lambda name: entries[name].title, placeholder="Choose runs")
    run_chooser.popover(bar[1], list(entries.values()), "compared", run_chooser.saved())
    by = choices.select(bar[2], "Lines", "lines", ["arms", "runs"], "arms", help="Arms: mean and range over the seeds of each arm.")
    chosen = [name for name in names if name in st.session_state["compared"]]
    choices.write_address(compared=chosen, lines=by)
    if not chosen:
        st.caption("Choose at least one run.")
        return
    shown = page.readable(
        [all_evaluations(entries[name].run, split) for name in chosen],
        lambda runs: [read(own) for own in runs for read in (held.progress, held.layers, held.agreement)],
    )
    chosen = [own.run.name for own in shown]
    if not chosen:
        return
    points = pd.concat([held.progress(own) for own in shown])
    targets = f" {overview.counted(points)} split {split}, {len(chosen)} runs."
    runs = [own.run for own in shown]
    if by == "arms":
        points = stability.arm_points(points, [entries[name] for name in chosen])
        page.chart(stability.arm_figure(points), "stability-arms", stability.SEEDS_CAPTION + targets, points)
    else:
        page.chart(overview.progress_figure(points, chosen), "stability-runs", overview.PROGRESS_CAPTION + targets, points)
    page.note(undefined_of(runs, "churn"))
    left, middle, right = st.columns(3, gap="medium")
    with left:
        layers_panel(shown, chosen, "stability-layers", "over all lines. The teacher is grey.")
    with middle:
        st.markdown("**Agreement with the teacher**")
        agreements = pd.concat([held.agreement(own) for own in shown])
        if len(agreements):
            meaning = f"{stability.AGREEMENT_CAPTION} Last layer. n = {int(agreements['n'].sum())} pairs of target and evaluation."
            page.chart(stability.agreement_figure(agreements, chosen), "stability-agreement", meaning, agreements)
        elif not undefined_of(runs, "agreement"):
            st.caption("The queries of these runs were recorded without a teacher, so there is no agreement.")
        page.note(undefined_of(runs, "agreement"))
    with right:
        st.markdown("**Targets found by both seeds**")
        seeds_compared([entries[name] for name in chosen])


def seeds_compared(chosen: list[Entry]) -> None:
    """Shows the share of targets that both runs of a pair find, for runs that differ only in their seed."""
    pairs = stability.seed_pairs(chosen)
    if not pairs:
        st.caption("Choose two runs that differ only in their seed.")
        return
    tables = [RESULTS.found_by_both(*(last_with_queries(own.run, split) for own in (first, second))) for first, second in pairs]
    names = [f"{first.arm} · {first.schedule} · seeds {first.seed} and {second.seed}" for first, second in pairs]
    table = pd.concat([own.assign(pair=name) for name, own in zip(names, tables, strict=True)], ignore_index=True)
    meaning = f"{stability.FOUND_CAPTION} n = {int(table['n'].max())} targets, {len(pairs)} pairs of runs."
    page.chart(stability.found_figure(table), "stability-seeds", meaning, table)


@st.fragment
@page.guarded("The matchings of this run cannot be shown")
def one_run() -> None:
    """Shows one run: churn by layer and slice, agreement by slice, found-by churn, and its targets."""
    st.markdown("**One run in detail**")
    head = st.columns([3, 6], vertical_alignment="bottom")
    run = choices.select_run(head[0], entries).run
    choices.write_address(run=run.name)
    by_cause(all_evaluations(run, split))
    by_slice(all_evaluations(run, split))
    found_by(all_evaluations(run, split))
    targets_by_evaluations(all_evaluations(run, split))


@page.guarded("Why targets change their query cannot be shown")
def by_cause(here: RunSplit) -> None:
    """Shows the churn of a run divided by the causes of the changes: over steps, by class and size, and the rules."""
    require(here.run, "churn")
    table = RESULTS.churn_by_cause(here)
    if table.empty:
        st.caption("Why targets change their query appears here after the second evaluation.")
        return
    st.markdown("**Why targets change their query**")
    left, middle, right = st.columns([1, 1, 1.25], gap="medium")
    counted = f"Last layer, split {here.split}, n = {int(table['n'].sum()) // 4} pairs of target and evaluation."
    with left:
        page.chart(unsettled.causes_figure(table), "churn-causes", f"{unsettled.CAUSES_CAPTION} {counted}", table)
    with middle:
        tables = {by: RESULTS.churn_by_cause(here, by) for by in ("label", "size")}
        figure = unsettled.cause_slices_figure(tables, here.run.info()["classes"])
        page.chart(figure, "churn-cause-slices", f"{unsettled.SLICES_CAPTION} {counted}", pd.concat(list(tables.values())))
    with right:
        causes = RESULTS.unsettled_causes(here)
        st.table(unsettled.rules_table(causes))
        page.note(f"{unsettled.TABLE_CAPTION} n = {int(causes['targets'].sum())} targets that changed.")


def by_slice(here: RunSplit) -> None:
    """Shows the churn of a run by layer, class and size, and its agreement with the teacher by class and size."""
    classes = here.run.info()["classes"]
    left, middle, right = st.columns(3, gap="medium")
    with left, page.if_defined():
        table = RESULTS.churn_by_layer(here)
        meaning = "Churn from one evaluation to the next, by decoder layer, with 95 % intervals over resampled images. "
        meaning += f"n = {int(table['n'].sum())} pairs of target and evaluation of split {split}."
        page.chart(stability.by_layer_figure(table), "churn-layers", meaning, table)
    with middle, page.if_defined():
        tables = {by: RESULTS.churn_by(here, by) for by in ("label", "size")}
        meaning = "Churn from one evaluation to the next, pooled over all evaluations, by class and COCO's sizes, with 95 % intervals "
        meaning += f"over resampled images. Last layer. n = {int(tables['label']['n'].sum())} pairs of target and evaluation."
        page.chart(stability.slices_figure(tables, classes), "churn-slices", meaning, pd.concat(list(tables.values())))
    with right, page.if_defined():
        tables = {by: RESULTS.agreement_by(here, by) for by in ("label", "size")}
        if len(tables["label"]):
            meaning = f"{stability.AGREEMENT_CAPTION} Last layer and evaluation, by class and size; 95 % intervals over resampled images. "
            meaning += f"n = {int(tables['label']['n'].sum())} targets."
            figure = stability.slices_figure(tables, classes, "agreement", "targets on which both agree (%)")
            page.chart(figure, "agreement-slices", meaning, pd.concat(list(tables.values())))
        else:
            st.caption("The queries of this run were recorded without a teacher, so there is no agreement.")


@page.guarded("Found-by churn of this run cannot be shown")
def found_by(here: RunSplit) -> None:
    """Shows the found-by churn of a run over evaluations, and by class and size."""
    left, middle, _ = st.columns(3, gap="medium")
    table = RESULTS.found_by_churn(here)
    if table.empty:
        st.caption("Found-by churn appears here after the second evaluation whose detections were kept.")
        return
    with left:
        meaning = f"{stability.FOUND_BY_CAPTION} n = {int(table['n'].sum())} pairs of target and evaluation; 95 % intervals over resampled "
        page.chart(stability.found_by_figure(table), "found-by", meaning + f"images of split {here.split}.", table)
    with middle:
        tables = {by: RESULTS.found_by_churn_by(here, by) for by in ("label", "size")}
        meaning = "Found-by churn pooled over all evaluations, by class and COCO's sizes, with 95 % intervals over resampled images. "
        meaning += f"n = {int(tables['label']['n'].sum())} pairs of target and evaluation."
        title = "targets that another candidate detects (%)"
        figure = stability.slices_figure(tables, here.run.info()["classes"], "found_by_churn", title)
        page.chart(figure, "found-by-slices", meaning, pd.concat(list(tables.values())))


@st.fragment
@page.guarded("The targets of this run cannot be shown")
def targets_by_evaluations(here: RunSplit) -> None:
    """Shows the matrix of targets and evaluations of one layer, and the target chosen in it."""
    require(here.run, "churn")
    head = st.columns([0.8, 1.2, 1.2, 1.8, 1.6, 2], vertical_alignment="bottom")
    layers = RESULTS.student_layers(here)
    layer = choices.select(head[0], "Layer", "layer", layers, layers[-1], help="Decoder layer of the student.")
    classes, filters = RESULTS.dataset(here.data).classes, unsettled.cause_choices()
    label = choices.select(head[1], "Class", "class", [-1, *range(len(classes))], -1,
                           format_func=lambda own: "all classes" if own < 0 else classes[own])  # fmt: skip
    size = choices.select(head[2], "Size", "size", ["all sizes", *unsettled.SIZE_NAMES], "all sizes", help="COCO's bounds of the area.")
    cause = choices.select(head[3], "Cause of most of its changes", "cause", ["any", *filters], "any",
                           format_func=lambda own: filters.get(own, "all targets"))  # fmt: skip
    choices.write_address(**{"layer": layer, "class": label, "size": size, "cause": cause})
    frame = unsettled.chosen_targets(
        held.held_targets(here, layer), RESULTS.unsettled_targets(here, layer), RESULTS.targets(here.data),
        None if label < 0 else label, "" if size == "all sizes" else size, "" if cause == "any" else cause,
    )  # fmt: skip
    if frame.empty:
        st.caption("No target of this class, size and cause was matched.")
        return
    targets = len(frame.drop_duplicates(["image_id", "target"]))
    first = int(choices.choose_number("first", 1, max(targets, 1), 1))
    st.session_state["first"] = first
    head[4].number_input(f"First target shown (of {targets})", 1, max(targets, 1), key="first", step=AT_ONCE,
                         help=unsettled.ORDER)  # fmt: skip
    rows = stability.target_rows_of(frame, first - 1, AT_ONCE)
    left, right = st.columns([1.25, 1], gap="medium")
    stable, several = stability.stable_share(frame)
    with left:
        meaning = (
            "Each number is the query matched to a target at an evaluation. Detectors that select their queries per image show the "
            f"encoder cell instead. {stable} of these {several} targets matched more than once never changed. {unsettled.ORDER} "
            "Click a cell to see it."
        )
        figure = stability.matrix_figure(rows, here.run.query_steps(split))
        page.chart(figure, "matrix", meaning, rows, on_select=select_target, modes=["points"])
    known = [f"{image}-{target}" for image, target in rows[["image_id", "target"]].drop_duplicates().itertuples(index=False)]
    everything = frame[["image_id", "target"]].drop_duplicates().itertuples(index=False)
    asked = str(st.session_state.get("target", st.query_params.get("target", "")))
    # what the address says is looked up among the targets, and no number is read out of it
    target = asked if asked in {f"{image}-{number}" for image, number in everything} else known[0] if known else ""
    choices.write_address(first=first, target=target)
    with right:
        if target:
            show_target(here, layer, *(int(number) for number in target.rsplit("-", 1)))


def select_target() -> None:
    """Stores the target whose cell was clicked."""
    found = choices.clicked("matrix")
    if found:
        st.session_state["target"] = f"{found[0]}-{found[1]}"


def show_target(here: RunSplit, layer: int, image_id: int, target: int) -> None:
    """Shows the image of a target with the boxes of the queries that were matched to it."""
    data = RESULTS.dataset(here.data)
    number = data.positions[image_id]
    rows = RESULTS.holders(here, image_id, target, layer)
    figure = stability.holders_figure(held.pixels(here.data, number), data.records[number], data.classes, target, rows)
    table = stability.holder_table(rows, data.classes)
    meaning = f"Target {target} of image {image_id} ({data.records[number].file_name}), matched at n = {len(table)} evaluations. "
    meaning += "Each query is drawn with its box at the last step at which it was matched to the target."
    why = RESULTS.unsettled_targets(here, layer)
    why = why[(why["image_id"] == image_id) & (why["target"] == target)]
    page.chart(figure, "holders", meaning, table, scrollZoom=True)
    page.note(unsettled.sentence(why.to_dict("records")[0]) if len(why) else "Its query never changed from one evaluation to the next.")
    st.dataframe(table, hide_index=True, row_height=28, key="holders-table", column_config=COLUMNS)
    st.markdown(f"[Open this image in the matching explorer]({page.explorer_link(here, number + 1)})")


runs_compared()
one_run()
