"""Shows the selection masks of teacher and student over one image, by layer and level, and the queries that produce them."""

import pandas as pd
import streamlit as st

from lib import choices, held, page
from lib.headings import COLUMNS
from lib.held import RESULTS
from workbench.analysis.of_run import images_with_masks, one_evaluation, splits_with_masks
from workbench.views import masks as views

TABLE = ["place", "query", "class", "score", "quality", "match", "match_iou", "selected"]
entries = page.runs_with(
    splits_with_masks, "No selection masks yet", "Masks appear here after the first evaluation of a run that learns from a teacher."
)


@st.fragment
@page.guarded("The masks of this image cannot be shown")
def body() -> None:
    """Shows the masks, and the queries that produce the teacher's mask."""
    bar = st.columns([3, 0.8, 1, 1.3, 1, 1, 1.5, 1.5], vertical_alignment="bottom")
    run = choices.select_run(bar[0], entries).run
    split = choices.select_split(bar[1], splits_with_masks(run))
    steps = run.query_steps(split)
    step = choices.select(bar[2], "Step", "step", steps, steps[-1], help="Training step of the student.")
    here = one_evaluation(run, split, step)
    data = RESULTS.dataset(here.data)
    kept = set(images_with_masks(run, split))
    numbers = [number for number, record in enumerate(data.records, 1) if record.image_id in kept]
    choices.choose("image", numbers, numbers[0])
    number = bar[3].selectbox(f"Image ({len(numbers)} have masks)", numbers, key="image", help=f"Position in split {split}, from 1.")
    record = data.records[number - 1]
    teacher, student = (RESULTS.image_masks(at, record.image_id) for at in (here.teacher, here))
    layers, levels = (sorted({place[axis] for place in teacher}) for axis in (0, 1))
    layer = choices.select(bar[4], "Teacher layer", "mask_layer", layers, layers[-1])
    level = choices.select(bar[5], "Level", "level", levels, levels[0], help="Feature level; 0 is the finest.")
    opacity = choices.choose_number("opacity", 0.0, 1.0, 0.7)
    bar[6].slider("Mask opacity", 0.0, 1.0, step=0.05, key="opacity")

    shown = {"teacher": teacher[layer, level]}
    rows, own = RESULTS.image_queries(here, record.image_id)
    own = own[own["layer"] == layer]
    student_layer = _student_layer(rows, layer)
    if (student_layer, level) in student:
        shown["student"] = student[student_layer, level]
        shown["difference"] = views.difference(shown["teacher"], shown["student"])
    queries = views.ranked_queries(own, data.classes)
    place = int(choices.choose_number("rank", 0, len(queries), 0))
    st.session_state["rank"] = place
    bar[7].slider("Query, by rank", 0, max(len(queries), 1), key="rank", help="Draws the teacher query of this rank; 0 draws none.")
    chosen = queries[queries["place"] == place] if place else None
    figure = views.masks_figure(held.pixels(here.data, number - 1), record, shown, opacity, chosen)
    meaning = f"{views.CAPTION} n = {len(queries)} teacher queries of layer {layer}, image_id {record.image_id}, split {split}."
    cells = pd.DataFrame(shown["teacher"])
    page.chart(figure, "masks", meaning, cells, scrollZoom=True)
    if "student" not in shown:
        st.caption("This run has no recorded masks of its student at this step, so only the teacher's mask is shown.")
    st.dataframe(queries[TABLE], hide_index=True, row_height=28, key="mask-queries", placeholder="–", height=300, column_config=COLUMNS)
    page.note("The teacher's queries by quality: score^gamma times IoU^(1-gamma) with the matched target, 0 if unmatched (target -1).")
    choices.write_address(run=run.name, split=split, step=step, image=number, mask_layer=layer, level=level, opacity=opacity, rank=place)


def _student_layer(student: pd.DataFrame, teacher_layer: int) -> int:
    """Returns the student layer that is paired with a teacher layer; -1 if there is none."""
    paired = student.loc[student["mate_layer"] == teacher_layer, "layer"]
    return int(paired.iloc[0]) if len(paired) else -1


body()
