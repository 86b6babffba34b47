"""What queries are worth: slots by value, where a slot looks, and whether the teacher's quality predicts what the student gains."""

import analyses
import inspection
import numpy as np
import pandas as pd
import reads
import scatter
import shared
import streamlit as st
import values
from columns import COLUMNS

from workbench.views import value as views
from workbench.views.box_drawing import class_name
from workbench.views.catalog import baseline_of
from workbench.views.raster import raster_figure
from workbench.views.sheet import Picture, answer, sheet_figure

NOBODY = "no baseline"
PICTURES = 6
LISTED = 1000
entries = {name: entry for name, entry in shared.usable_runs().items() if analyses.evaluated(entry.run)}
if not entries:
    shared.banner("info", "No evaluation yet", "Query values appear here after the first evaluation of a run.")
    st.stop()
bar = st.columns([3, 1, 3, 2], vertical_alignment="bottom")
entry = shared.select_run(bar[0], entries)
run = entry.run
steps = [step for step in analyses.evaluated(run) if step in run.query_steps(analyses.VALIDATION)] or analyses.evaluated(run)
step = shared.select(bar[1], "Step", "step", steps, steps[-1])
baseline = baseline_of(entry, list(entries.values()))
others = [NOBODY, *(name for name in entries if name != run.name)]
own = baseline.run.name if baseline else NOBODY
against = shared.select(bar[2], "Baseline", "baseline", others, own, help="Gain is measured against it.")
here = analyses.at(run, step)
both = against != NOBODY and step in entries[against].run.query_steps(analyses.VALIDATION)
there = analyses.at(entries[against].run, step) if both else None
shared.write_address(run=run.name, step=step, baseline=against)


def of_slots(value: str) -> pd.DataFrame:
    """A value of every slot with its interval."""
    if value == "ap_drop":
        return values.drops(*here)
    if value == "gain" and there:
        return values.slot_gains(here, there)
    table = values.slots(*here)
    return table[["query", value, "n"]].assign(low=table[f"{value}_low"], high=table[f"{value}_high"])


@st.fragment
@shared.guarded("The slots of this run cannot be shown")
def slots() -> None:
    """All slots, and the chosen one."""
    head = st.columns([1.5, 1.2, 1.6, 5.4], vertical_alignment="bottom")
    known = [name for name in views.SLOT_VALUES if name != "gain" or there]
    value = shared.select(head[0], "Slots by", "slots", known, known[0], format_func=lambda name: name.replace("_", " "))
    table, everything = of_slots(value), values.slots(*here)
    known = everything["query"].tolist()
    slot = int(shared.select(head[1], "Slot", "query", known, int(table.sort_values(value, ascending=False)["query"].iloc[0]),
                             help="Also chosen by a click on its bar."))  # fmt: skip
    resampled = shared.choose("resampled", (False, True), False)
    head[2].toggle("Resample the images", key="resampled", help="The interval of the slot's AP drop by Poisson resamples: seconds a slot "
                   "where there are thousands of images. The bars have a jackknife's.")  # fmt: skip
    dead, images = int(everything["dead"].sum()), int(everything["images"].max())
    meaning = f"{views.SLOT_VALUES[value][2]} n = {len(table)} slots, {dead} dead; {images} images. A click on a bar chooses the slot."
    shared.chart(views.slots_figure(table, value, slot), "slot-values", meaning, table, on_select=choose_slot, modes=["points"])
    left, right = st.columns(2, gap="medium")
    own = everything[everything["query"] == slot].iloc[0]
    with left:
        counts = values.looks(*here)[slot]
        meaning = f"Slot {slot}. {views.LOOKS_CAPTION} n = {counts.sum()} boxes."
        shared.chart(views.looks_figure(counts), "looks", meaning, pd.DataFrame(counts))
    with right:
        frames = {by: values.served(*here[:2], by, here[2]) for by in ("label", "size")}
        tables = {by: frame[frame["query"] == slot] for by, frame in frames.items()}
        classes = run.info()["classes"]
        meaning = f"Slot {slot}. {views.SERVES_CAPTION} n = {int(own['n'])} targets in {int(own['images'])} images."
        shared.chart(views.serves_figure(tables, classes), "serves", meaning, pd.concat(list(tables.values())))
    if resampled:
        drop, low, high, samples = values.drop_interval(*here[:2], slot, here[2])
        shared.note(f"AP drop of slot {slot}: {100 * drop:.2f} points, 95 % interval {100 * low:.2f} to {100 * high:.2f} by {samples} "
                    "Poisson resamples of the images.")  # fmt: skip
    slot_images(slot)
    shared.write_address(slots=value, query=slot, resampled=resampled)


def slot_images(slot: int) -> None:
    """The images in which a slot is matched to a target, best quality first."""
    matched = values.matched(*here[:2], "student", here[2])
    own = matched[matched["query"] == slot].rename(columns={"match": "target"})
    if own.empty:
        st.caption(f"Slot {slot} is matched to no target.")
        return
    data = reads.dataset(run.info())
    sheet = [picture(data, row, ["student"], f"image {row['image_id']}, quality {row['quality']:.2f}")
             for row in own.head(PICTURES).to_dict("records")]  # fmt: skip
    meaning = f"n = {len(own)} targets that slot {slot} is matched to at step {step}, best quality first. Of the first {len(sheet)}: the "
    shared.chart(sheet_figure(sheet), "slot-images", meaning + "target dotted, the slot's box with its score.", own)
    place = data.positions
    shown = own.head(LISTED).assign(
        **{"class": [class_name(data.classes, label) for label in own["label"].head(LISTED)]},
        open=[shared.explorer_link(run.name, place[image] + 1) for image in own["image_id"].head(LISTED)],
    )
    columns = ["open", "image_id", "target", "class", "score", "match_iou", "quality"]
    st.dataframe(shown[columns], hide_index=True, row_height=28, height=200, key="slot-table", column_config=COLUMNS)
    inspection.open_selection(run, entries[against].run if both else None, own["image_id"].tolist(), "inspect-slot")


def picture(data: reads.Dataset, row: dict, models: list[str], title: str) -> Picture:
    """A target of an image with the queries that models match to it."""
    number, target = data.positions[row["image_id"]], int(row["target"])
    rows: dict[str, pd.DataFrame] = {}
    for model in models:
        frame = values.matched(*here[:2], model, here[2])
        rows[model] = frame[(frame["image_id"] == row["image_id"]) & (frame["match"] == target)]
    return answer(reads.pixels(run.info(), data, number), data.records[number], data.classes, target, title, rows)


def choose_slot() -> None:
    """Keeps the slot whose bar was clicked."""
    found = shared.clicked("slot-values")
    if found:
        st.session_state["query"] = found[0]


@st.fragment
@shared.guarded("The gains of this run cannot be shown")
def predictors() -> None:
    """Does quality predict gain?"""
    assert there
    points = values.properties(here, there).assign(target_size=lambda own: np.sqrt(own["target_size"]))
    table = values.correlations(here, there)
    head = st.columns([2, 8], vertical_alignment="bottom")
    column = shared.select(head[0], "Against gain", "property", list(views.PROPERTIES), "quality", format_func=views.PROPERTIES.__getitem__)
    left, right = st.columns([1.25, 1], gap="medium")
    with left:
        figure = raster_figure(points[column].to_numpy(float), points["gain"].to_numpy(float), views.PROPERTIES[column], "gain")
        meaning = f"{views.GAIN_CAPTION} n = {len(points)} targets, mean gain {points['gain'].mean():.3f}."
        chart = f"gain-{column}"
        shared.chart(figure, chart, meaning, points, on_select=shared.box_kept(chart, "box"), modes=["box"])
    with right:
        meaning = f"{views.CORRELATION_CAPTION} n = {len(points)} targets in {points['image_id'].nunique()} images."
        shared.chart(views.correlation_figure(table), "correlations", meaning, table)
    box = shared.chosen_box("box")
    answers(views.inside(points, column, box), "in the box" if box else "in all")
    shared.write_address(property=column, box=st.session_state["box"])


def answers(chosen: pd.DataFrame, which: str) -> None:
    """The chosen targets as a table, and pictures of the first."""
    data = reads.dataset(run.info())
    sheet = [picture(data, row, ["teacher", "student"], f"image {row['image_id']}, gain {row['gain']:.2f}")
             for row in chosen.head(PICTURES).to_dict("records")]  # fmt: skip
    meaning = f"n = {len(chosen)} targets {which}, greatest gain first. Of the first {len(sheet)}: the target dotted, the teacher's query "
    meaning += "blue, the student's orange, each with slot and score."
    if sheet:
        shared.chart(sheet_figure(sheet), "answers", meaning, chosen)
    place = data.positions
    shown = chosen.head(LISTED)
    shown = shown.assign(open=[shared.explorer_link(run.name, place[image] + 1) for image in shown["image_id"]])
    st.dataframe(shown[["open", *chosen.columns]], hide_index=True, row_height=28, height=240, key="chosen", column_config=COLUMNS)


match shared.part({"slots": "Slots", "gain": "What predicts gain", "queries": "All queries"}):
    case "slots":
        slots()
    case "gain" if there:
        predictors()
    case "gain":
        shared.banner("info", "No gain to show", "Choose a baseline that was evaluated at this step, with its queries kept.")
    case _:
        scatter.queries(here, run.info()["classes"])
