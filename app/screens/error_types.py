"""Shows where AP is lost: what the teacher found and the student did not, the cost of each error type, confused classes, slices by size and
crowding, and the images behind each number.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import streamlit as st

from lib import choices, held, page
from lib.headings import COLUMNS, dashed
from lib.held import RESULTS
from lib.lost_targets import lost_part
from lib.open_in_fiftyone import open_selection
from lib.thumbnails import gallery
from workbench.analysis.defined import require
from workbench.analysis.of_run import RunAt, one_evaluation, splits_with_detections
from workbench.views import error_types as views
from workbench.views.error_types import Error
from workbench.views.lost import LEAST
from workbench.views.slices import KITTI_CAPTION, SLICES_CAPTION, kitti_figure, slices_figure

CORNERS = ["x1", "y1", "x2", "y2"]
DRAWN = 15  # errors drawn on an image
entries = page.runs_with(splits_with_detections, "No evaluation yet", "Errors appear here after the first evaluation of a run.")
bar = st.columns([3, 1, 1, 3, 1.2], vertical_alignment="bottom")
entry = choices.select_run(bar[0], entries)
run = entry.run
split = choices.select_split(bar[1], splits_with_detections(run))
steps = run.detection_steps(split)
step = choices.select(bar[2], "Step", "step", steps, steps[-1])
evaluated = {name: other for name, other in entries.items() if other.run.detection_steps(split)}
baseline = choices.select_baseline(bar[3], entry, evaluated, "Run to compare with, at its last evaluation up to the chosen step.")
against = choices.name_of(baseline)
here = one_evaluation(run, split, step)
choices.choose_number("least", 0, 1, LEAST)
HELP = (
    "Detections with lower scores are left out of what was lost, of the confusion and of the images. Costs, AP and calibration are of all."
)
least = bar[4].number_input("Least score", 0.0, 1.0, key="least", step=0.05, format="%.2f", help=HELP)
choices.write_address(run=run.name, split=split, step=step, baseline=against, least=f"{least:g}")


def there() -> RunAt | None:
    """Returns the baseline at its last evaluation up to the step; None if there is no baseline."""
    if baseline is None:
        return None
    own = baseline.run.detection_steps(split)
    return one_evaluation(baseline.run, split, max((s for s in own if s <= step), default=own[0]))


other = there()
if other is not None and other.step != step:
    page.note(f"Unequal steps are compared: this run at step {step}, the baseline at step {other.step}, its last up to that step.")


@st.fragment
@page.guarded("What this run lost cannot be shown")
def lost() -> None:
    """Shows what the student lost of what its teacher found."""
    if untold:
        page.note(untold)
        return
    lost_part(here, other, baseline, least)


@page.guarded("The errors of this run cannot be shown")
def types() -> None:
    """Shows what each error type costs in the run and in the baseline, and the differences."""
    tables = ({against: RESULTS.error_costs(other)} if other else {}) | {run.name: RESULTS.error_costs(here)}
    left, right = st.columns(2, gap="medium")
    count = int(tables[run.name].loc[~tables[run.name]["special"], "count"].sum())
    with left:
        meaning = f"{views.COSTS_CAPTION} n = {len(RESULTS.errors(here).images)} images of split {split}, {count} errors of this run at "
        meaning += f"step {step}."
        together = pd.concat([table.assign(run=name) for name, table in tables.items()])
        page.chart(views.costs_figure(tables), "error-costs", meaning, together)
    if other is None:
        return
    differences, changed = RESULTS.compared_errors(other, here)
    with right:
        meaning = f"{views.DIFFERENCE_CAPTION} n = {len(RESULTS.errors(here).images)} images of split {split}. "
        meaning += "The differences hold for these checkpoints only."
        page.chart(views.difference_figure(differences), "error-differences", meaning, differences)
    counts = changed["change"].value_counts()
    page.note(
        f"Compared with the baseline at step {other.step}, this run lost {counts.get('lost', 0)} and gained {counts.get('gained', 0)} of "
        f"{len(RESULTS.errors(here).targets)} targets, and misses {counts.get('other error', 0)} through another type of error."
    )


@page.guarded("The slices of this run cannot be shown")
def slices() -> None:
    """Shows AP and recall by size, crowding and overlap, the calibration of the scores, and the AP of KITTI if the data is KITTI."""
    left, right = st.columns([1.4, 1], gap="medium")
    with left:
        tables = ({against: RESULTS.slices(other)} if other else {}) | {run.name: RESULTS.slices(here)}
        together = pd.concat([table.assign(run=name) for name, table in tables.items()])
        targets = int(tables[run.name].loc[tables[run.name]["by"] == "size", "targets"].sum())
        page.chart(slices_figure(tables), "slices", f"{SLICES_CAPTION} n = {targets} targets of split {split}.", together)
    with right:
        tables = ({against: RESULTS.calibration(other)} if other else {}) | {run.name: RESULTS.calibration(here)}
        meaning = f"{views.CALIBRATION_CAPTION} n = {int(tables[run.name]['n'].sum())} detections of this run on split {split}."
        page.chart(views.calibration_figure(tables), "calibration", meaning, tables[run.name])
    own, theirs = RESULTS.kitti(here), RESULTS.kitti(other) if other else None
    if own is not None:
        tables = ({against: theirs} if theirs is not None else {}) | {run.name: own}
        together = pd.concat([table.assign(run=name) for name, table in tables.items()])
        meaning = f"{KITTI_CAPTION} n = {int(tables[run.name]['targets'].sum())} targets in all bars of a run."
        page.chart(kitti_figure(tables), "kitti", meaning, together)


@st.fragment
@page.guarded("The classes of this run cannot be shown")
def confusion() -> None:
    """Shows the confusion between classes, and the pairs of target and detection behind one cell."""
    found, counts = RESULTS.errors(here), RESULTS.confusion(here, least)
    left, right = st.columns([1, 1], gap="medium")
    filled = views.fullest_cells(counts)
    known = [f"{row}_{column}" for row, column in filled]
    cell = choices.choose("cell", known, "{}_{}".format(*views.telling_cell(filled))) if known else ""
    with left:
        which = "a cell" if len(filled) <= views.CLICKABLE else f"one of the {views.CLICKABLE} fullest cells"
        meaning = f"{views.CONFUSION_CAPTION} n = {int(counts.to_numpy().sum())} pairs of split {split}, least score {least:g}. "
        figure = views.confusion_figure(counts, found.classes)
        page.chart(figure, "confusion", f"{meaning}Click {which} to list its pairs.", counts.reset_index(), on_select=select_cell,
                   modes=["points"])  # fmt: skip
    if other is not None:
        with right:
            table = RESULTS.compared_confusion(other, here, least)
            meaning = f"{views.CONFUSION_DIFFERENCE_CAPTION} n = {int(table['other'].sum())} pairs of this run and "
            meaning += f"{int(table['baseline'].sum())} of the baseline at step {other.step}, {len(found.images)} images."
            page.chart(views.confusion_difference_figure(table, found.classes), "confusion-difference", meaning, table)
    if not cell:
        return
    truth, predicted = (int(category) for category in cell.split("_"))
    pairs, images = RESULTS.cell_pairs(here, truth, predicted, least)

    def boxes(image: int) -> Mapping[str, np.ndarray]:
        own = pairs[pairs["image_id"] == image]
        return {
            "target": own[[f"target_{name}" for name in CORNERS]].dropna().to_numpy(float),
            "student": own[CORNERS].dropna().to_numpy(float),
        }

    names = [found.classes.get(category, "background") for category in (truth, predicted)]
    # without a baseline the right half is free; with one, the pairs stand below both figures
    left, right = (right, right) if other is None else st.columns([1, 1], gap="medium")
    with left:
        st.text(f"Class of the target: {names[0]}, class of the detection: {names[1]}")
        meaning = f"n = {len(pairs)} pairs behind the cell: targets yellow, detections orange."
        asked = gallery("pair-images", here.data, images, boxes, "pair", meaning)
    own = pairs[pairs["image_id"] == asked]
    number = RESULTS.dataset(here.data).positions[asked]
    with right:
        figure = views.pairs_figure(held.pixels(here.data, number), asked, own, found.classes)
        meaning = f"Image {asked}: n = {len(own)} pairs. Targets are dotted, detections have their class and score. A dash in the table "
        page.chart(figure, "pair-image", meaning + "means that there is no target or no query: background.", own, scrollZoom=True)
        columns = ["target", "query", "score", "iou"]
        st.dataframe(dashed(own[columns]), hide_index=True, row_height=28, key="pairs", column_config=COLUMNS, placeholder="–")
        st.markdown(f"[Open this image in the matching explorer]({page.explorer_link(here, number + 1)})")
    choices.write_address(cell=cell)


def select_cell() -> None:
    """Stores the cell that was clicked."""
    found = choices.clicked("confusion")
    if found:
        st.session_state["cell"] = f"{found[0]}_{found[1]}"


@st.fragment
@page.guarded("The images behind these errors cannot be shown")
def behind() -> None:
    """Shows the images with errors of one type as thumbnails, one of them larger, and the slots that made the errors."""
    head = st.columns([2, 7], vertical_alignment="bottom")
    found, costs = RESULTS.errors(here), RESULTS.error_costs(here)
    kind: Error = choices.select(head[0], "Error type", "error", views.KINDS, views.costliest(costs),
                                 format_func=lambda name: name.replace("_", " "), help="The costliest type is shown first.")  # fmt: skip
    choices.write_address(error=kind)
    images, slots = RESULTS.behind(here, kind, least)
    if images.empty:
        st.caption(f"No image of split {split} has an error of this type with a score of {least:g} or more.")
        return
    left, right = st.columns([1, 1.2], gap="medium")

    def boxes(image: int) -> Mapping[str, np.ndarray]:
        corners = RESULTS.wrong(here, kind, image, least)[CORNERS].to_numpy(float)
        return {"target" if kind in ("missed", "false_negative") else "student": corners}

    with left:
        meaning = f"Errors of this type among detections with a score of {least:g} or more. {views.cost_sentence(costs, kind)}"
        asked = gallery("error-images", here.data, images, boxes, "error", meaning)
    data = RESULTS.dataset(here.data)
    number = data.positions[asked]
    wrong = RESULTS.wrong(here, kind, asked, least)
    with right:
        pixels = held.pixels(here.data, number)
        figure = views.wrong_figure(pixels, data.records[number], data.classes, wrong.head(DRAWN), found.classes)
        meaning = f"Image {asked}: n = {len(wrong)} errors of this type at step {step} of split {split}. At most "
        meaning += f"{DRAWN} are drawn, highest scores first."
        page.chart(figure, "wrong", meaning, wrong, scrollZoom=True)
        st.markdown(f"[Open this image in the matching explorer]({page.explorer_link(here, number + 1)})")
        with page.if_defined():
            require(run, "slots")
            if len(slots):
                st.dataframe(slots, key="slots", hide_index=True, row_height=28, column_config=COLUMNS)
            page.note(f"n = {len(slots)} query slots that made these errors, and the number of images. A missed target belongs to no slot.")
    open_selection(here.data, baseline, images["image_id"].tolist(), "inspect-errors")


untold = RESULTS.without_teacher(here)
shown = {"types": ("Error types", types), "classes": ("Confusion between classes", confusion),
         "images": ("Images with errors", behind), "slices": ("Size, crowding and calibration", slices)}  # fmt: skip
# a run that cannot be set beside its teacher opens on what there is
beside = {"lost": ("Lost to the teacher", lost)}
shown = shown | beside if untold else beside | shown
shown[choices.part({name: title for name, (title, _) in shown.items()})][1]()
