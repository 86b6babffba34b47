"""What queries are worth: slots by value, where a slot looks, and whether the teacher's quality predicts what the student gains."""

import analyses
import numpy as np
import pandas as pd
import reads
import scatter
import shared
import streamlit as st

from workbench.analysis.slots import slot_heatmap
from workbench.views import value as views
from workbench.views.boxes import STUDENT, TEACHER
from workbench.views.catalog import baseline_of
from workbench.views.raster import raster_figure

NOBODY = "no baseline"
PICTURES = 6
entries = {name: entry for name, entry in shared.usable_runs().items() if analyses.evaluated(entry.run)}
if not entries:
    shared.banner("info", "No evaluation yet", "Query values appear here after the first evaluation of a run.")
    st.stop()
bar = st.columns([3, 1, 3, 1.5, 1.2], vertical_alignment="bottom")
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
values = [name for name in views.SLOT_VALUES if name != "gain" or there]
value = shared.select(bar[3], "Slots by", "slots", values, values[0], format_func=lambda name: name.replace("_", " "))


def of_slots() -> pd.DataFrame:
    """The chosen value of every slot with its interval."""
    if value == "ap_drop":
        return analyses.drops(*here)
    if value == "gain" and there:
        return analyses.slot_gains(here, there)
    table = analyses.slots(*here)
    return table[["query", value, "n"]].assign(low=table[f"{value}_low"], high=table[f"{value}_high"])


@shared.guarded("The slots of this run cannot be shown")
def slots() -> None:
    """All slots, and the chosen one."""
    table, everything = of_slots(), analyses.slots(*here)
    known = everything["query"].tolist()
    slot = int(shared.choose("query", known, int(table.sort_values(value, ascending=False)["query"].iloc[0])))
    bar[4].selectbox("Slot", known, key="query", help="Also chosen by a click on its bar.")
    dead, images = int(everything["dead"].sum()), int(everything["images"].max())
    meaning = f"{views.SLOT_VALUES[value][2]} n = {len(table)} slots, {dead} dead; {images} images."
    shared.chart(views.slots_figure(table, value, slot), "slot-values", meaning, table, on_select=choose_slot, modes=["points"])
    left, right = st.columns(2, gap="medium")
    rows = analyses.last_layer(*here[:2], "student", here[2])
    own = everything[everything["query"] == slot].iloc[0]
    with left:
        counts = slot_heatmap(rows, slot)
        meaning = f"Slot {slot}. {views.LOOKS_CAPTION} n = {counts.sum()} boxes."
        shared.chart(views.looks_figure(counts), "looks", meaning, pd.DataFrame(counts))
    with right:
        frames = {by: analyses.served(*here[:2], by, here[2]) for by in ("label", "size")}
        tables = {by: frame[frame["query"] == slot] for by, frame in frames.items()}
        data = reads.dataset(run.info())
        meaning = f"Slot {slot}. {views.SERVES_CAPTION} n = {int(own['n'])} targets in {int(own['images'])} images."
        shared.chart(views.serves_figure(tables, data.classes), "serves", meaning, pd.concat(list(tables.values())))
    drop, low, high, samples = analyses.drop_interval(*here[:2], slot, here[2])
    shared.note(f"AP drop of slot {slot}: {100 * drop:.2f} points, 95 % interval {100 * low:.2f} to {100 * high:.2f} by {samples} Poisson "
                "resamples of the images.")  # fmt: skip


def choose_slot() -> None:
    """Keeps the slot whose bar was clicked."""
    found = shared.clicked("slot-values")
    if found:
        st.session_state["query"] = found[0]


@shared.guarded("The gains of this run cannot be shown")
def predictors() -> str:
    """Does quality predict gain? Returns the box that is selected."""
    assert there
    points = analyses.properties(here, there).assign(target_size=lambda own: np.sqrt(own["target_size"]))
    table = analyses.correlations(here, there)
    st.markdown("**What predicts gain**")
    head = st.columns([2, 8], vertical_alignment="bottom")
    column = shared.select(head[0], "Against gain", "property", list(views.PROPERTIES), "quality", format_func=views.PROPERTIES.__getitem__)
    left, right = st.columns([1.25, 1], gap="medium")
    with left:
        figure = raster_figure(points[column].to_numpy(float), points["gain"].to_numpy(float), views.PROPERTIES[column], "gain")
        meaning = f"{views.GAIN_CAPTION} n = {len(points)} targets, mean gain {points['gain'].mean():.3f}."
        event = shared.chart(figure, f"gain-{column}", meaning, points, on_select="rerun", modes=["box"])
    with right:
        meaning = f"{views.CORRELATION_CAPTION} n = {len(points)} targets in {points['image_id'].nunique()} images."
        shared.chart(views.correlation_figure(table), "correlations", meaning, table)
    boxes = event["selection"]["box"]
    box = [*sorted(boxes[0]["x"]), *sorted(boxes[0]["y"])] if boxes else asked_box()
    answers(views.inside(points, column, box), box)
    return "" if box is None else ",".join(f"{end:.4g}" for end in box)


def of_target(rows: pd.DataFrame, image_id: int, target: int) -> pd.DataFrame:
    """The query matched to a target."""
    return rows[(rows["image_id"] == image_id) & (rows["match"] == target)]


def asked_box() -> list[float] | None:
    """The box in the address."""
    try:
        ends = [float(end) for end in st.query_params.get("box", "").split(",")]
    except ValueError:
        return None
    return ends if len(ends) == 4 else None


def answers(chosen: pd.DataFrame, box: list[float] | None) -> None:
    """The chosen targets as a table, and pictures of the first."""
    which = "in the box" if box else "in all"
    shared.note(f"{len(chosen)} targets {which}, greatest gain first. Pictures of the first {PICTURES}: target dotted, the teacher's query "
                "blue, the student's orange, each with slot and score.")  # fmt: skip
    data = reads.dataset(run.info())
    place = {record.image_id: number for number, record in enumerate(data.records)}
    models = {"teacher": TEACHER, "student": STUDENT}
    frames = {model: analyses.last_layer(*here[:2], model, here[2]) for model in models}
    columns = st.columns(PICTURES)
    for row, spot in zip(chosen.head(PICTURES).to_dict("records"), columns, strict=False):
        number, target = place[row["image_id"]], int(row["target"])
        shown = {model: (colour, of_target(frames[model], row["image_id"], target)) for model, colour in models.items()}
        figure = views.answer_figure(data.image(number), data.records[number], data.classes, target, shown)
        with spot:
            shared.chart(figure, f"answer-{row['image_id']}-{target}", f"image {row['image_id']}, target {target}, gain {row['gain']:.2f}")
    st.dataframe(chosen.head(1000), hide_index=True, row_height=28, height=260, key="chosen")


slots()
selected = predictors() if there else ""
if not there:
    shared.banner("info", "No gain to show", "Choose a baseline that was evaluated at this step, with its queries kept.")
with shared.guarded("The queries of this run cannot be shown"):
    scatter.queries(here)
kept = {key: st.session_state.get(key, "") for key in ("query", "property", "model")}
shared.write_address(run=run.name, step=step, baseline=against, slots=value, box=selected or "", **kept)
