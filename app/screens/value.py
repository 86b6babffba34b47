"""Shows what queries are worth: slots ranked by value, where a slot looks, and whether teacher quality predicts student gain."""

import numpy as np
import pandas as pd
import streamlit as st

from lib import choices, held, page
from lib.all_queries import queries
from lib.headings import COLUMNS
from lib.held import RESULTS
from lib.open_in_fiftyone import open_selection
from workbench.analysis.of_run import one_evaluation, splits_with_detections
from workbench.analysis.rows_of_run import Model
from workbench.views import value as views
from workbench.views.box_drawing import class_name
from workbench.views.raster import raster_figure, with_box
from workbench.views.sheet import Picture, answer, sheet_figure

PICTURES = 6
LISTED = 1000
entries = page.runs_with(splits_with_detections, "No evaluation yet", "Query values appear here after the first evaluation of a run.")
bar = st.columns([3, 1, 1, 3, 1.5], vertical_alignment="bottom")
entry = choices.select_run(bar[0], entries)
run = entry.run
split = choices.select_split(bar[1], splits_with_detections(run))
steps = [step for step in run.detection_steps(split) if step in run.query_steps(split)] or run.detection_steps(split)
step = choices.select(bar[2], "Step", "step", steps, steps[-1])
baseline = choices.select_baseline(bar[3], entry, entries, "The run that gain is measured against.")
choices.write_address(run=run.name, split=split, step=step, baseline=choices.name_of(baseline))
here = one_evaluation(run, split, step)
if baseline is not None and step not in baseline.run.query_steps(split):
    baseline = None
there = one_evaluation(baseline.run, split, step) if baseline is not None else None


def of_slots(value: str) -> pd.DataFrame:
    """Returns one value of every slot with its 95 % interval."""
    if value == "ap_drop":
        return RESULTS.slot_drops(here)
    if value == "gain" and there:
        return RESULTS.slot_gains(here, there)
    table = RESULTS.slots(here)
    return table[["query", value, "n"]].assign(low=table[f"{value}_low"], high=table[f"{value}_high"])


@st.fragment
@page.guarded("The slots of this run cannot be shown")
def slots() -> None:
    """Shows all slots, and the chosen one in detail."""
    head = st.columns([1.5, 1.2, 1.6, 5.4], vertical_alignment="bottom")
    known = [name for name in views.SLOT_VALUES if name != "gain" or there]
    value = choices.select(head[0], "Rank slots by", "slots", known, known[0], format_func=lambda name: views.SLOT_VALUES[name][0])
    table, everything = of_slots(value), RESULTS.slots(here)
    known = everything["query"].tolist()
    slot = int(choices.select(head[1], "Slot", "query", known, int(table.sort_values(value, ascending=False)["query"].iloc[0]),
                             help="A slot is one of the student's queries, the same for every image."))  # fmt: skip
    resampled = choices.choose("resampled", (False, True), False)
    head[2].toggle("Resample the images", key="resampled", help="Computes the interval of this slot's AP drop from Poisson resamples, "
                   "which takes seconds for thousands of images. The intervals of the bars come from a jackknife.")  # fmt: skip
    dead, images = int(everything["dead"].sum()), int(everything["images"].max())
    meaning = f"{views.SLOT_VALUES[value][2]} n = {len(table)} slots, {dead} of them never matched; {images} images "
    meaning += f"of split {split}. Click a bar to choose its slot."
    page.chart(views.slots_figure(table, value, slot), "slot-values", meaning, table, on_select=choose_slot, modes=["points"])
    left, right = st.columns(2, gap="medium")
    own = everything[everything["query"] == slot].iloc[0]
    with left:
        counts = RESULTS.slot_heatmaps(here)[slot]
        meaning = f"Slot {slot}. {views.LOOKS_CAPTION} n = {counts.sum()} boxes."
        page.chart(views.looks_figure(counts), "looks", meaning, pd.DataFrame(counts))
    with right:
        frames = {by: RESULTS.slot_serves(here, by) for by in ("label", "size")}
        tables = {by: frame[frame["query"] == slot] for by, frame in frames.items()}
        classes = run.info()["classes"]
        meaning = f"Slot {slot}. {views.SERVES_CAPTION} n = {int(own['n'])} targets in {int(own['images'])} images."
        page.chart(views.serves_figure(tables, classes), "serves", meaning, pd.concat(list(tables.values())))
    if resampled:
        drop = RESULTS.slot_drop_interval(here, slot)
        page.note(f"AP drop of slot {slot}: {100 * drop.value:.2f} points, 95 % interval {100 * drop.low:.2f} to {100 * drop.high:.2f}, "
                    f"from {drop.samples} Poisson resamples of the images.")  # fmt: skip
    slot_images(slot)
    choices.write_address(slots=value, query=slot, resampled=resampled)


def slot_images(slot: int) -> None:
    """Shows the images in which a slot is matched to a target, best quality first."""
    matched = RESULTS.matched_queries(here, "student")
    own = matched[matched["query"] == slot].rename(columns={"match": "target"})
    if own.empty:
        st.caption(f"Slot {slot} is not matched to any target.")
        return
    data = RESULTS.dataset(here.data)
    sheet = [picture(row, ["student"], f"image {row['image_id']}, quality {row['quality']:.2f}")
             for row in own.head(PICTURES).to_dict("records")]  # fmt: skip
    meaning = f"n = {len(own)} targets that slot {slot} is matched to at step {step} of split {split}, best quality first. "
    meaning += f"The first {len(sheet)} are drawn: "
    page.chart(sheet_figure(sheet), "slot-images", meaning + "the target dotted, the slot's box with its score.", own)
    place = data.positions
    shown = own.head(LISTED).assign(
        **{"class": [class_name(data.classes, label) for label in own["label"].head(LISTED)]},
        open=[page.explorer_link(here, place[image] + 1) for image in own["image_id"].head(LISTED)],
    )
    columns = ["open", "image_id", "target", "class", "score", "match_iou", "quality"]
    st.dataframe(shown[columns], hide_index=True, row_height=28, height=200, key="slot-table", column_config=COLUMNS)
    open_selection(here.data, baseline, own["image_id"].tolist(), "inspect-slot")


def picture(row: dict, models: list[Model], title: str) -> Picture:
    """Returns a picture of a target with the queries that models match to it."""
    data = RESULTS.dataset(here.data)
    number, target = data.positions[row["image_id"]], int(row["target"])
    rows: dict[str, pd.DataFrame] = {}
    for model in models:
        frame = RESULTS.matched_queries(here, model)
        rows[model] = frame[(frame["image_id"] == row["image_id"]) & (frame["match"] == target)]
    return answer(held.pixels(here.data, number), data.records[number], data.classes, target, title, rows)


def choose_slot() -> None:
    """Stores the slot whose bar was clicked."""
    found = choices.clicked("slot-values")
    if found:
        st.session_state["query"] = found[0]


@st.fragment
@page.guarded("The gains of this run cannot be shown")
def predictors() -> None:
    """Shows whether a property of the teacher's query predicts gain."""
    assert there
    points = RESULTS.properties(here, there).assign(target_size=lambda own: np.sqrt(own["target_size"]))
    table = RESULTS.correlations(here, there)
    head = st.columns([2, 8], vertical_alignment="bottom")
    column = choices.select(
        head[0], "Property to compare with gain", "property", list(views.PROPERTIES), "quality", format_func=views.PROPERTIES.__getitem__
    )
    left, right = st.columns([1.25, 1], gap="medium")
    chart, box = f"gain-{column}", choices.chosen_box("box")
    with left:
        figure = raster_figure(points[column].to_numpy(float), points["gain"].to_numpy(float), views.PROPERTIES[column], "gain")
        meaning = f"{views.GAIN_CAPTION} n = {len(points)} targets of split {split}, mean gain {points['gain'].mean():.3f}."
        page.chart(
            with_box(figure, choices.restored_box(chart, box)),
            chart,
            meaning,
            points,
            on_select=choices.box_kept(chart, "box"),
            modes=["box"],
        )
        choices.clear_button("box", box)
    with right:
        meaning = f"{views.CORRELATION_CAPTION} n = {len(points)} targets in {points['image_id'].nunique()} images."
        page.chart(views.correlation_figure(table), "correlations", meaning, table)
    answers(views.inside(points, column, box), "in the box" if box else "in all")
    choices.write_address(property=column, box=st.session_state["box"])


def answers(chosen: pd.DataFrame, which: str) -> None:
    """Shows the chosen targets as a table, and pictures of the first ones."""
    data = RESULTS.dataset(here.data)
    sheet = [picture(row, ["teacher", "student"], f"image {row['image_id']}, gain {row['gain']:.2f}")
             for row in chosen.head(PICTURES).to_dict("records")]  # fmt: skip
    meaning = f"n = {len(chosen)} targets {which}, greatest gain first. The first {len(sheet)} are drawn: the target dotted, the teacher's "
    meaning += "query blue, the student's orange, each with its number and score."
    if sheet:
        page.chart(sheet_figure(sheet), "answers", meaning, chosen)
    place = data.positions
    shown = chosen.head(LISTED)
    shown = shown.assign(open=[page.explorer_link(here, place[image] + 1) for image in shown["image_id"]])
    st.dataframe(shown[["open", *chosen.columns]], hide_index=True, row_height=28, height=240, key="chosen", column_config=COLUMNS)


match choices.part({"slots": "Query slots", "gain": "What predicts gain", "queries": "All queries"}):
    case "slots":
        slots()
    case "gain" if there:
        predictors()
    case "gain":
        page.banner("info", "No gain to show", "Choose a baseline whose queries were recorded at this step.")
    case _:
        queries(here, run.info()["classes"])
