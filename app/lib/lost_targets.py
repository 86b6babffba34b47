"""Shows what a student lost of what its teacher found: the two by two table, the slices, the other student, and the images of a cell."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import streamlit as st

from lib import choices, held, page
from lib.held import RESULTS
from lib.open_in_fiftyone import open_selection
from lib.thumbnails import gallery
from workbench.analysis.of_run import RunAt
from workbench.errors import WorkbenchError
from workbench.views import lost as views
from workbench.views.catalog import Entry

CORNERS = ["x1", "y1", "x2", "y2"]


def lost_part(here: RunAt, there: RunAt | None, baseline: Entry | None, least: float) -> None:
    """Shows the table of what teacher and student found, the images of a cell, and how student and baseline differ in what they lost.

    Args:
        here: evaluation of the student, whose run keeps the teacher's outputs.
        there: evaluation of the baseline.
        baseline: run of that evaluation.
        least: least score of a detection.
    """
    cells = RESULTS.found_cells(here, here, least)
    slices = views.slice_names(cells)
    head = st.columns([2, 8], vertical_alignment="bottom")
    meaning = "All targets, or those of a class, of a size (COCO's bounds), or of images with as many targets."
    chosen = choices.select(head[0], "Targets", "slice", list(slices), next(iter(slices)), help=meaning)
    choices.choose("found", list(views.NAMES), "lost")
    cell = head[1].segmented_control("Images of", list(views.NAMES), format_func=views.NAMES.__getitem__, key="found", required=True)
    assert cell is not None  # ``choose`` has set it
    choices.write_address(slice=chosen, found=cell)
    by, name = slices[chosen]
    own = cells[(cells["by"] == by) & (cells["slice"] == name)]
    sides = {at.run.name: at for at in _sides(here, there, least)}
    shares = {run: RESULTS.lost_shares(at, here, least) for run, at in sides.items()}
    found = int(shares[here.run.name].iloc[0]["found"])
    left, right = st.columns([1, 2.2], gap="medium")
    with left:
        images = len(RESULTS.compared_images(here, here))
        meaning = f"{views.CELLS_CAPTION} n = {int(own['targets'].iloc[0])} targets ({chosen}) in {images} images of split {here.split}, "
        meaning += f"step {here.step}, least score {least:g}. Click a cell to see its images. {views.FOUND_MEANING}"
        page.chart(views.cells_figure(own, cell), "found-cells", meaning, cells, on_select=select_cell, modes=["points"])
        together = pd.concat([table.assign(run=run) for run, table in shares.items()])
        page.chart(
            views.shares_figure(shares), "lost-shares", f"{views.SHARES_CAPTION} n = {found} targets that the teacher found.", together
        )
    with right:
        images_part(here, baseline, least, cell, chosen)
    left, right = st.columns(2, gap="medium")
    with left:
        outcomes = {run: RESULTS.lost_outcomes(at, here, least) for run, at in sides.items()}
        together = pd.concat([table.assign(run=run) for run, table in outcomes.items()])
        meaning = f"{views.OUTCOMES_CAPTION} n = {found} targets in each run."
        page.chart(views.outcomes_figure(outcomes), "lost-outcomes", meaning, together)
    with right:
        if there is not None and len(sides) > 1:
            table = RESULTS.compared_lost(there, here, here, least)
            meaning = f"{views.DIFFERENCE_CAPTION} {views.difference_sentence(table)} The differences hold for these checkpoints only."
            page.chart(views.difference_figure(table), "lost-differences", meaning, table)
        elif there is not None:
            page.note(f"What {there.run.name} lost is not shown, because it keeps no queries of these images at step {there.step}. "
                      f"Make them with: workbench record {there.run.name} --split {there.split}")  # fmt: skip


@st.fragment
@page.guarded("The images of this cell cannot be shown")
def images_part(here: RunAt, baseline: Entry | None, least: float, cell: views.Cell, chosen: str) -> None:
    """Shows the images with targets of a cell and slice, and one of them with the nearest boxes of both models."""
    slices = views.slice_names(RESULTS.found_cells(here, here, least))
    targets = RESULTS.cell_targets(here, here, least, cell, *slices[chosen])
    images = RESULTS.cell_images(here, here, least, cell, *slices[chosen])
    if images.empty:
        st.caption(f"No target of split {here.split} is in this cell.")
        return
    left, right = st.columns([1.15, 1], gap="medium")

    def boxes(image: int) -> Mapping[str, np.ndarray]:
        return {"target": targets.loc[targets["image_id"] == image, CORNERS].to_numpy(float)}

    with left:
        asked = gallery("found-images", here.data, images, boxes, "target", f"Targets of the cell '{views.NAMES[cell]}' ({chosen}).")
    own = targets[targets["image_id"] == asked]
    data = RESULTS.dataset(here.data)
    number = data.positions[asked]
    near = RESULTS.nearest_boxes(here, here, asked, least)
    with right:
        names = RESULTS.errors(here).classes
        figure = views.nearest_figure(held.pixels(here.data, number), data.records[number], data.classes, own, near, names)
        meaning = (
            f"Image {asked}: n = {len(own)} targets of the cell, and for each the box of the teacher and of the student that overlaps "
        )
        meaning += "it most, the student's whatever its score."
        page.chart(figure, "found-image", meaning, near, scrollZoom=True)
        st.markdown(f"[Open this image in the matching explorer]({page.explorer_link(here, number + 1)})")
        open_selection(here.data, baseline, images["image_id"].tolist(), "inspect-lost")


def select_cell() -> None:
    """Stores the cell that was clicked."""
    if found := choices.clicked("found-cells"):
        st.session_state["found"] = list(views.NAMES)[found[0]]


def _sides(here: RunAt, there: RunAt | None, least: float) -> list[RunAt]:
    """Returns the baseline, if it can be set beside the same teacher, and the run."""
    if there is None:
        return [here]
    try:
        RESULTS.compared_lost(there, here, here, least)
    except WorkbenchError:
        return [here]
    return [there, here]
