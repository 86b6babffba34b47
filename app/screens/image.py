"""Shows one image: its targets, the boxes of teacher and student, the pairs of their queries, and the selection mask."""

import streamlit as st

from lib import choices, held, page
from lib.held import RESULTS
from lib.open_in_fiftyone import open_selection
from workbench.analysis.defined import NOT_DEFINED, Model, many_to_one, undefined, undefined_of
from workbench.analysis.of_run import one_evaluation, splits_with_queries
from workbench.analysis.rows_of_run import paired_layer
from workbench.errors import RunError
from workbench.views.catalog import baseline_of
from workbench.views.image import (
    CAPTION,
    COST_CAPTION,
    MASK_CAPTION,
    MOST_BOXES,
    MOST_PAIRS,
    cost_figure,
    image_figure,
    mate_table,
    target_table,
)

MODELS: tuple[Model, ...] = ("student", "teacher")
ONE_CAPTION = "The query that each model matches to a target (Hungarian, with the costs of the detection loss), its score and its IoU."
MANY_CAPTION = (
    f"The query of a target is {NOT_DEFINED} for the {{}}. In its place stand the number of the target's positive candidates, and the "
    "highest score and IoU among them."
)
NUMBER = st.column_config.NumberColumn
SCORE, COST = {"format": "%.2f", "width": 50}, {"format": "%.3f", "width": 52}
MATES = {
    "student_query": NUMBER("student query", width=92, help="Number of the student's query, from 0."),
    "student_class": st.column_config.TextColumn("class", width=66),
    "student_score": NUMBER("score", **SCORE),
    "teacher_query": NUMBER("teacher query", width=92, help="Number of the teacher query that is paired with it, from 0."),
    "teacher_class": st.column_config.TextColumn("class", width=66),
    "teacher_score": NUMBER("score", **SCORE),
    "iou": NUMBER("IoU", help="IoU of the boxes of the two queries.", **SCORE),
    "class_cost": NUMBER("class cost", help="Class cost of the pair, before its weight of 1.", format="%.3f", width=68),
    "l1_cost": NUMBER("L1", help="L1 distance of the boxes, before its weight of 5.", **COST),
    "giou_cost": NUMBER("GIoU", help="Negative generalised IoU of the boxes, before its weight of 2.", **COST),
    "cost": NUMBER("cost", help="class + 5 L1 + 2 GIoU. The assignment minimises its sum over all pairs.", **COST),
}
TARGETS = {
    "target": NUMBER("target", width=54, help="Number of the target, in file order from 0."),
    "class": st.column_config.TextColumn("class", width=66),
    "width": NUMBER("w (px)", format="%.0f", width=54),
    "height": NUMBER("h (px)", format="%.0f", width=54),
    "student_query": NUMBER("student query", width=96, help="The student query matched to this target, on this layer."),
    "student_positives": NUMBER("student positives", width=96, help="Number of the student's candidates that learn this target."),
    "student_score": NUMBER("score", **SCORE),
    "student_iou": NUMBER("IoU", help="IoU of the student's box with the target.", **SCORE),
    "teacher_query": NUMBER("teacher query", width=96, help="The teacher query matched to this target."),
    "teacher_positives": NUMBER("teacher positives", width=96, help="Number of the teacher's candidates that its training gives it."),
    "teacher_score": NUMBER("score", **SCORE),
    "teacher_iou": NUMBER("IoU", help="IoU of the teacher's box with the target.", **SCORE),
}

page.question("What do teacher and student see in this image, and which of their queries belong together?")
entries = page.runs_with(splits_with_queries, "No evaluation yet", "Boxes appear here after the first evaluation of a run.")


@st.fragment
@page.guarded("This image cannot be shown")
def body() -> None:
    """Shows the choices and everything that depends on them."""
    bar = st.columns([3.2, 0.9, 1, 1.2, 1.1, 1.5, 1.5, 1.5], gap="small", vertical_alignment="bottom")
    run = choices.select_run(bar[0], entries).run
    split = choices.select_split(bar[1], splits_with_queries(run))
    steps = run.query_steps(split)
    step = choices.select(bar[2], "Step", "step", steps, steps[-1], help="Training step of an evaluation whose queries were recorded.")
    here = one_evaluation(run, split, step)
    data = RESULTS.dataset(here.data)
    number = int(choices.choose_number("image", 1, len(data), 1))
    st.session_state["image"] = number
    bar[3].number_input(f"Image of {len(data)}", 1, len(data), key="image", help=f"Position of the image in split {split}, from 1.")
    record, pixels = data.records[number - 1], held.pixels(here.data, number - 1)
    student, teacher = RESULTS.image_queries(here, record.image_id)
    if student.empty:
        raise RunError(f"The queries of this image were not recorded at step {step}, only those of a sample. Choose another image or step.")
    layers = sorted(int(number) for number in student["layer"].unique())
    layer = choices.choose("layer", layers, layers[-1])
    bar[4].selectbox("Layer", layers, key="layer", help="Decoder layer of the student; the teacher's is the layer paired with it.")
    student, teacher = paired_layer(student, teacher, layer)
    threshold = choices.choose_number("score", 0.0, 1.0, 0.3)
    bar[5].slider("Minimum score", 0.0, 1.0, step=0.05, key="score", help="Boxes with a lower score are not drawn.")
    masks = RESULTS.image_masks(here.teacher, record.image_id)
    places = {f"layer {place[0]}, level {place[1]}": place for place in sorted(masks)}
    place = choices.choose("mask", ["off", *places], "off")
    bar[6].selectbox("Selection mask", ["off", *places], key="mask", help=MASK_CAPTION)
    opacity = choices.choose_number("opacity", 0.0, 1.0, 0.7)
    bar[7].slider("Mask opacity", 0.0, 1.0, step=0.05, key="opacity", disabled=place == "off")

    picture, tables = st.columns([1, 1.12], gap="medium")
    with picture:
        mask = masks[places[place]] if place != "off" else None
        figure = image_figure(pixels, record, data.classes, student, teacher, threshold, mask, opacity)
        meaning = (
            f"n = {len(student)} queries of the student and {len(teacher)} of the teacher. Boxes with a score of at least {threshold:.2f} "
            f"are drawn, at most the best {MOST_BOXES} of each model."
        )
        page.chart(figure, "figure", meaning, scrollZoom=True, modeBarButtonsToRemove=["select2d", "lasso2d"])
    with tables:
        st.text(
            f"split {split}   image_id {record.image_id}   {record.file_name}   {record.width} x {record.height} px   "
            f"{len(record.boxes)} targets"
        )
        if len(teacher) and undefined(run, "agreement"):
            page.note(undefined_of([run], "agreement"))
        elif len(teacher):
            mates = mate_table(student, teacher, data.classes, threshold)
            st.dataframe(mates, hide_index=True, key="mates", column_config=MATES, row_height=28)
            page.note(f"{CAPTION} n = {len(mates)} pairs in which at least one query reaches the minimum score.")
            page.chart(cost_figure(mates), "costs", f"{COST_CAPTION} n = {min(len(mates), MOST_PAIRS)} pairs.", mates)
        several = [model for model in MODELS if many_to_one(run, model)]
        targets = target_table(record, data.classes, student, teacher, several)
        if not len(teacher):
            st.caption("The queries of this run were recorded without a teacher, so there are no pairs.")
            targets = targets.drop(columns=[name for name in targets if str(name).startswith("teacher_")])
        st.dataframe(targets, hide_index=True, key="targets", column_config=TARGETS, row_height=28, placeholder="–")
        if len(several) < 1 + (len(teacher) > 0):
            page.note(ONE_CAPTION)
        if several:
            page.note(MANY_CAPTION.format(" and the ".join(several)))

    baseline = baseline_of(entries[run.name], list(entries.values()), choices.pinned_baseline())
    open_selection(here.data, baseline, [record.image_id], "inspect-image")
    choices.write_address(run=run.name, split=split, step=step, image=number, layer=layer, score=threshold, mask=place, opacity=opacity)


body()
