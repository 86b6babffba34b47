"""Selection masks of teacher and student over one image, by layer and level, and the queries that make them."""

import pandas as pd
import reads
import shared
import streamlit as st
from columns import COLUMNS

from workbench.store.queries import TEACHER_STEP
from workbench.store.states import masked_images
from workbench.views import masks as views
from workbench.views.catalog import VALIDATION

TABLE = ["place", "query", "class", "score", "quality", "match", "match_iou", "selected"]
entries = {name: entry for name, entry in shared.usable_runs().items() if masked_images(entry.run, VALIDATION, TEACHER_STEP)}
if not entries:
    shared.banner("info", "No selection masks yet", "Masks appear here after the first evaluation of a run that learns from a teacher.")
    st.stop()


@st.fragment
@shared.guarded("The masks of this image cannot be shown")
def body() -> None:
    """The masks, and the queries behind the teacher's."""
    bar = st.columns([3, 1, 1.3, 1, 1, 1.5, 1.5], vertical_alignment="bottom")
    run = shared.select_run(bar[0], entries).run
    steps = run.query_steps(VALIDATION)
    step = shared.select(bar[1], "Step", "step", steps, steps[-1], help="Of the student.")
    data = reads.dataset(run.info())
    kept = set(masked_images(run, VALIDATION, TEACHER_STEP))
    numbers = [number for number, record in enumerate(data.records, 1) if record.image_id in kept]
    shared.choose("image", numbers, numbers[0])
    number = bar[2].selectbox(f"Image ({len(numbers)} have masks)", numbers, key="image", help="Position in the validation split.")
    record = data.records[number - 1]
    teacher = reads.image_masks(str(run.path), TEACHER_STEP, record.image_id, reads.stamp(run.states_path(VALIDATION, TEACHER_STEP)))
    student = reads.image_masks(str(run.path), step, record.image_id, reads.stamp(run.states_path(VALIDATION, step)))
    layers, levels = (sorted({place[axis] for place in teacher}) for axis in (0, 1))
    layer = shared.select(bar[3], "Teacher layer", "mask_layer", layers, layers[-1])
    level = shared.select(bar[4], "Level", "level", levels, levels[0], help="Feature level, the finest first.")
    opacity = shared.choose_number("opacity", 0.0, 1.0, 0.7)
    bar[5].slider("Mask opacity", 0.0, 1.0, step=0.05, key="opacity")

    shown = {"teacher": teacher[layer, level]}
    rows = reads.image_queries(str(run.path), step, record.image_id, reads.stamp(run.queries_path(VALIDATION, step)))
    own = rows[(rows["model"] == "teacher") & (rows["layer"] == layer)]
    student_layer = _student_layer(rows, layer)
    if (student_layer, level) in student:
        shown["student"] = student[student_layer, level]
        shown["difference"] = views.difference(shown["teacher"], shown["student"])
    queries = views.ranked_queries(own, data.classes)
    place = int(shared.choose_number("query", 0, len(queries), 0))
    st.session_state["query"] = place
    bar[6].slider("Query by quality", 0, max(len(queries), 1), key="query", help="The teacher's query whose box is drawn; 0 draws none.")
    chosen = queries[queries["place"] == place] if place else None
    figure = views.masks_figure(reads.pixels(run.info(), data, number - 1), record, shown, opacity, chosen)
    meaning = f"{views.CAPTION} n = {len(queries)} teacher queries of layer {layer}, image_id {record.image_id}."
    cells = pd.DataFrame(shown["teacher"])
    shared.chart(figure, "masks", meaning, cells, scrollZoom=True)
    if "student" not in shown:
        st.caption("This run keeps no masks of its student at this step, so there is no difference.")
    st.dataframe(queries[TABLE], hide_index=True, row_height=28, key="mask-queries", placeholder="–", height=300, column_config=COLUMNS)
    shared.note("The teacher's queries by quality: score^gamma times IoU^(1-gamma) with the matched target, 0 where unmatched (match -1).")
    shared.write_address(run=run.name, step=step, image=number, mask_layer=layer, level=level, opacity=opacity, query=place)


def _student_layer(rows: pd.DataFrame, teacher_layer: int) -> int:
    """The student's layer whose mates are in the teacher's layer, -1 where there is none."""
    student = rows[rows["model"] == "student"]
    paired = student.loc[student["mate_layer"] == teacher_layer, "layer"]
    return int(paired.iloc[0]) if len(paired) else -1


body()
