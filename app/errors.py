"""Where AP is lost: error types and what they cost, against a baseline, by class, size and crowding, with the images behind each number."""

from typing import cast

import analyses
import inspection
import pandas as pd
import reads
import shared
import streamlit as st
from columns import COLUMNS

from workbench.analysis.detection.confusion import BACKGROUND
from workbench.analysis.detection.kitti_ap import is_kitti
from workbench.analysis.detection.tide import MAIN, SPECIAL, Error
from workbench.views import error_types as views
from workbench.views.catalog import baseline_of
from workbench.views.slices import KITTI_CAPTION, SLICES_CAPTION, kitti_figure, slices_figure

NOBODY = "no baseline"
DRAWN = 15  # errors of an image
LISTED = 1000
entries = {name: entry for name, entry in shared.usable_runs().items() if analyses.evaluated(entry.run)}
if not entries:
    shared.banner("info", "No evaluation yet", "Errors appear here after the first evaluation of a run.")
    st.stop()
bar = st.columns([3, 1, 3, 2], vertical_alignment="bottom")
entry = shared.select_run(bar[0], entries)
run = entry.run
steps = analyses.evaluated(run)
step = shared.select(bar[1], "Step", "step", steps, steps[-1])
baseline = baseline_of(entry, list(entries.values()))
others = [NOBODY, *(name for name in entries if name != run.name)]
against = shared.select(bar[2], "Baseline", "baseline", others, baseline.run.name if baseline else NOBODY,
                        help="Compared at its last evaluation up to that step.")  # fmt: skip
here = analyses.at(run, step)
shared.write_address(run=run.name, step=step, baseline=against)


def there() -> tuple[str, int, reads.Stamp] | None:
    """The baseline at its last evaluation up to the step."""
    if against == NOBODY:
        return None
    own = analyses.evaluated(entries[against].run)
    return analyses.at(entries[against].run, max((s for s in own if s <= step), default=own[0]))


@shared.guarded("The errors of this run cannot be shown")
def types() -> None:
    """Costs of the run and the baseline, and their differences."""
    other = there()
    tables = ({against: analyses.costs(*other)} if other else {}) | {run.name: analyses.costs(*here)}
    left, right = st.columns(2, gap="medium")
    count = int(tables[run.name].loc[~tables[run.name]["special"], "count"].sum())
    with left:
        meaning = f"{views.COSTS_CAPTION} n = {len(analyses.errors(*here).images)} images, {count} errors of this run at step {step}."
        together = pd.concat([table.assign(run=name) for name, table in tables.items()])
        shared.chart(views.costs_figure(tables), "error-costs", meaning, together)
    if other is None:
        return
    seeds = (entries[against].seed, entry.seed)
    differences, changed = analyses.compared(seeds, other, here)
    with right:
        meaning = f"{views.DIFFERENCE_CAPTION} n = {len(analyses.errors(*here).images)} images; it tells about these checkpoints."
        shared.chart(views.difference_figure(differences), "error-differences", meaning, differences)
    counts = changed["change"].value_counts()
    shared.note(
        f"Targets that this run lost: {counts.get('lost', 0)}, gained: {counts.get('gained', 0)}, missed otherwise: "
        f"{counts.get('other error', 0)}, of {len(analyses.errors(*here).targets)}, against the baseline at step {other[1]}."
    )


@shared.guarded("The slices of this run cannot be shown")
def slices() -> None:
    """AP and recall by size, crowding and overlap, the calibration of the scores, and KITTI's own AP where the data is KITTI's."""
    left, right = st.columns([1.4, 1], gap="medium")
    other = there()
    with left:
        tables = ({against: analyses.by_slice(*other)} if other else {}) | {run.name: analyses.by_slice(*here)}
        together = pd.concat([table.assign(run=name) for name, table in tables.items()])
        targets = int(tables[run.name].loc[tables[run.name]["by"] == "size", "targets"].sum())
        shared.chart(slices_figure(tables), "slices", f"{SLICES_CAPTION} n = {targets} targets.", together)
    with right:
        tables = ({against: analyses.calibration(*other)} if other else {}) | {run.name: analyses.calibration(*here)}
        meaning = f"{views.CALIBRATION_CAPTION} n = {int(tables[run.name]['n'].sum())} detections of this run."
        shared.chart(views.calibration_figure(tables), "calibration", meaning, tables[run.name])
    if is_kitti(reads.dataset(run.info())):
        tables = ({against: analyses.kitti(*other)} if other else {}) | {run.name: analyses.kitti(*here)}
        together = pd.concat([table.assign(run=name) for name, table in tables.items()])
        meaning = f"{KITTI_CAPTION} n = {int(tables[run.name]['targets'].sum())} targets over all bars of a run."
        shared.chart(kitti_figure(tables), "kitti", meaning, together)


@st.fragment
@shared.guarded("The classes of this run cannot be shown")
def confusion() -> None:
    """Confusion between classes, and the pairs behind one of its cells."""
    found, counts = analyses.errors(*here), analyses.confusion(*here)
    left, right = st.columns([1.2, 1], gap="medium")
    filled = views.fullest_cells(counts)
    known = [f"{row}_{column}" for row, column in filled]
    # two classes taken for each other tell more than a class found as itself or as nothing
    telling = [f"{row}_{column}" for row, column in filled if row != column and BACKGROUND not in (row, column)]
    cell = shared.choose("cell", known, (telling or known)[0]) if known else ""
    with left:
        which = "a cell" if len(filled) <= views.CLICKABLE else f"one of the {views.CLICKABLE} fullest cells"
        meaning = f"{views.CONFUSION_CAPTION} n = {int(counts.to_numpy().sum())} pairs. A click on {which} lists its pairs."
        figure = views.confusion_figure(counts, found.classes)
        shared.chart(figure, "confusion", meaning, counts.reset_index(), on_select=select_cell, modes=["points"])
    if not cell:
        return
    truth, predicted = (int(category) for category in cell.split("_"))
    pairs = analyses.confused(*here)
    pairs = pairs[(pairs["truth"] == truth) & (pairs["predicted"] == predicted)]
    with right:
        names = [found.classes.get(category, "background") for category in (truth, predicted)]
        st.text(f"Targets of {names[0]}, detections of {names[1]}")
        place = reads.dataset(run.info()).positions
        shown = pairs.head(LISTED)
        shown = shown.assign(open=[shared.explorer_link(run.name, place[image] + 1) for image in shown["image_id"]])
        columns = ["open", "image_id", "target", "query", "score", "iou"]
        st.dataframe(shown[columns], hide_index=True, row_height=28, height=330, key="pairs", column_config=COLUMNS, placeholder="–")
        shared.note(f"n = {len(pairs)} pairs behind the cell, at most {LISTED} listed; a target or query of -1 is background.")
    shared.write_address(cell=cell)


def select_cell() -> None:
    """Keeps the cell that was clicked."""
    found = shared.clicked("confusion")
    if found:
        st.session_state["cell"] = f"{found[0]}_{found[1]}"


@st.fragment
@shared.guarded("The images behind these errors cannot be shown")
def behind() -> None:
    """The images and slots with errors of one type, and one of the images."""
    head = st.columns([2, 7], vertical_alignment="bottom")
    found, counts = analyses.errors(*here), analyses.costs(*here)
    kinds = [*MAIN, *SPECIAL]
    most = counts[~counts["special"]].sort_values("count")["error"].iloc[-1]
    choice = shared.select(head[0], "Errors of the type", "error", kinds, most, format_func=lambda name: name.replace("_", " "))
    kind: Error = cast(Error, choice)
    images, slots = analyses.behind(*here[:2], kind, here[2])
    if images.empty:
        st.caption("No image has an error of this type.")
        shared.write_address(error=kind)
        return
    left, middle, right = st.columns([1, 1, 2.4], gap="medium")
    with left:
        event = st.dataframe(images, key=f"images-{kind}", on_select="rerun", selection_mode="single-row", hide_index=True, row_height=28,
                             height=480, column_config=COLUMNS)  # fmt: skip
        shared.note(f"n = {len(images)} images with errors of this type, most first. A click on the left of a row shows the image.")
    with middle:
        st.dataframe(slots, key="slots", hide_index=True, row_height=28, height=480, column_config=COLUMNS)
        shared.note(f"n = {len(slots)} query slots whose detections these are, and in how many images; a missed target has none.")
    chosen = event["selection"]["rows"]
    known = images["image_id"].tolist()
    asked = known[chosen[0]] if chosen else shared.choose("image_id", known, known[0])
    st.session_state["image_id"] = asked
    data = reads.dataset(run.info())
    number = data.positions[asked]
    wrong = analyses.wrong(*here[:2], kind, asked, here[2])
    with right:
        pixels = reads.pixels(run.info(), data, number)
        figure = views.wrong_figure(pixels, data.records[number], data.classes, wrong.head(DRAWN), found.classes)
        meaning = f"Image {asked}: n = {len(wrong)} errors of this type at step {step}; at most {DRAWN} are drawn, the best scores first."
        shared.chart(figure, "wrong", meaning, wrong, scrollZoom=True)
        st.markdown(f"[This image in the matching explorer]({shared.explorer_link(run.name, number + 1)})")
    other = entries[against].run if against != NOBODY else None
    inspection.open_selection(run, other, images["image_id"].tolist(), "inspect-errors")
    shared.write_address(error=kind, image_id=asked)


shown = {"types": ("Types of error", types), "classes": ("Confusion between classes", confusion),
         "images": ("Images behind the errors", behind), "slices": ("Parts of the split, and what scores mean", slices)}  # fmt: skip
shown[shared.part({name: title for name, (title, _) in shown.items()})][1]()
