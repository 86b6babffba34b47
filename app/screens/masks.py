"""Shows the selection masks of teacher and student over one image, of every layer and level, and the queries that produce them."""

from typing import Literal

import pandas as pd
import streamlit as st

from lib import choices, held, page
from lib.headings import COLUMNS, dashed
from lib.held import RESULTS
from workbench.analysis.of_run import images_with_masks, one_evaluation, splits_with_masks
from workbench.analysis.rows_of_run import Model, taught_layers
from workbench.views import masks as views

TABLE = ["place", "query", "class", "score", "quality", "match", "match_iou", "selected"]
# a query is drawn by its rank, which is another query in every layer, or by its number; the numbers of each model have a key of their own
DRAWN: dict[str, tuple[Model, Literal["rank", "query"], str] | None] = {
    "none": None,
    "teacher's, by rank": ("teacher", "rank", "rank"),
    "teacher's, by number": ("teacher", "query", "teacher_query"),
    "student's, by rank": ("student", "rank", "rank"),
    "student's, by number": ("student", "query", "query"),
}
page.question("Where do teacher and student look, layer by layer, and where do they differ?")
entries = page.runs_with(
    splits_with_masks, "No selection masks yet", "Masks appear here after the first evaluation of a run that learns from a teacher."
)


@st.fragment
@page.guarded("The masks of this image cannot be shown")
def body() -> None:
    """Shows the masks, and the queries that produce the teacher's mask."""
    bar = st.columns([3, 0.8, 1, 1.2, 1, 1, 1.3], vertical_alignment="bottom")
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
    own, taught = RESULTS.image_queries(here, record.image_id)
    learns = taught_layers(run, own)
    columns = views.paired_masks(teacher, student, learns)
    layers, levels = (sorted({place[axis] for place in teacher}) for axis in (0, 1))
    layer = choices.select(bar[4], "Teacher layer", "mask_layer", layers, layers[-1], help="Layer whose queries are listed and chosen.")
    few = len(levels) * len(columns) * 3 <= views.MANY
    level = choices.select(bar[5], "Level", "level", ["all", *levels], "all" if few else levels[0],
                           help="Feature level of the teacher; 0 is the finest.")  # fmt: skip
    opacity = choices.choose_number("opacity", 0.0, 1.0, 0.7)
    bar[6].slider("Mask opacity", 0.0, 1.0, step=0.05, key="opacity")

    models: dict[Model, dict[int, pd.DataFrame]] = {
        "teacher": {one.teacher: views.ranked_queries(taught[taught["layer"] == one.teacher], data.classes) for one in columns},
        "student": {
            one.teacher: views.ranked_queries(own[own["layer"] == paired], data.classes)
            for one in columns
            if (paired := learns.get(one.teacher)) is not None
        },
    }
    picked, model, state = choose_query(models, layer)
    figure = views.masks_figure(
        held.pixels(here.data, number - 1), record, columns, opacity, None if level == "all" else [int(level)], picked, model
    )
    queries = models["teacher"][layer]
    meaning = f"{views.CAPTION} n = {len(queries)} teacher queries of layer {layer}, image_id {record.image_id}, split {split}."
    page.chart(figure, "masks", meaning, views.cells_table(columns), scrollZoom=True)
    if not student:
        page.note(f"No masks of the student were kept at step {step}, so only its teacher's are shown. A run keeps them at its last step; "
                  f"to make them for an older run: workbench record {run.name} --split {split}")  # fmt: skip
    st.dataframe(
        dashed(queries[TABLE]), hide_index=True, row_height=28, key="mask-queries", placeholder="–", height=300, column_config=COLUMNS
    )
    page.note(f"The teacher's queries of layer {layer} by quality: score^gamma times IoU^(1-gamma) with the matched target, and 0 if none "
              "is matched, which a dash in the column of the target says.")  # fmt: skip
    choices.write_address(run=run.name, split=split, step=step, image=number, mask_layer=layer, level=level, opacity=opacity, **state)


def choose_query(models: dict[Model, dict[int, pd.DataFrame]], layer: int) -> tuple[dict[int, pd.DataFrame], Model, dict[str, object]]:
    """Lets the user choose a query by its rank or its number, and returns its rows by teacher layer, whose it is, and the choices made."""
    head = st.columns([1.5, 4, 4], vertical_alignment="bottom")
    asked = "teacher's, by rank" if "rank" in st.query_params else "student's, by number" if "query" in st.query_params else "none"
    offered = [name for name, kind in DRAWN.items() if kind is None or layer in models[kind[0]]]
    chosen = choices.select(head[0], "Draw a query", "drawn", offered, asked if asked in offered else "none")
    kind = DRAWN[chosen]
    if kind is None:
        return {}, "teacher", {"drawn": chosen}
    model, by, key = kind
    names = views.query_names(models[model][layer], by)
    label = f"{model.capitalize()}'s query in the layer{'' if model == 'teacher' else ' that learns from'} {layer}"
    number = choices.select(head[1], label, key, list(names), next(iter(names)), format_func=names.__getitem__)
    return views.drawn_query(models[model], by, number), model, {"drawn": chosen, key: number}


body()
