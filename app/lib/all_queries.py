"""Shows all queries of a model as one plot of score against best IoU, and lists those inside a box that the user draws."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from lib import choices, page
from lib.headings import COLUMNS, dashed
from lib.held import RESULTS
from workbench.analysis.of_run import RunAt
from workbench.analysis.rows_of_run import Model, has_all_rows
from workbench.views.box_drawing import class_name
from workbench.views.raster import raster_figure, with_box

EVERY = "Every query of the last decoder layer."
TOP = "Of each image the positive candidates and the best by score; the others have no row."
CAPTION = (
    "The score is the probability of its best class. The best IoU is that of its box with the "
    "target it overlaps most (0 if it overlaps none). The colour shows how many queries lie there. Draw a box to list them."
)
MODELS: tuple[Model, ...] = ("student", "teacher")
MOST = 500


@st.cache_data(max_entries=8, show_spinner="Drawing the queries ...")
def figure_of(at: RunAt, model: Model) -> go.Figure:
    """Returns the plot, which is drawn only once."""
    rows = RESULTS.all_queries(at, model)
    return raster_figure(rows["score"].to_numpy(float), rows["best_iou"].to_numpy(float), "score", "best IoU")


@st.cache_data(max_entries=32, show_spinner=False)
def listed(at: RunAt, model: Model, box: tuple[float, ...] | None) -> tuple[pd.DataFrame, int]:
    """Returns the highest-scoring queries in a box ``x0, x1, y0, y1``, or of all queries, and the number of queries there."""
    rows = RESULTS.all_queries(at, model)
    if box is not None:
        x0, x1, y0, y1 = box
        rows = rows[rows["score"].between(x0, x1) & rows["best_iou"].between(y0, y1)]
    return rows.nlargest(MOST, "score"), len(rows)


@st.fragment
@page.guarded("The queries of this run cannot be shown")
def queries(here: RunAt, classes: Sequence[str]) -> None:
    """Shows the plot of one model's queries and the list of those in the drawn box."""
    head = st.columns([2, 8], vertical_alignment="bottom")
    model: Model = choices.select(head[0], "Model", "model", MODELS, MODELS[0])
    count = len(RESULTS.all_queries(here, model))
    if not count:
        st.caption(f"This run has no recorded queries of its {model}.")
        choices.write_address(model=model)
        return
    left, right = st.columns([1.25, 1], gap="medium")
    box = choices.chosen_box("area")
    rows, inside = listed(here, model, tuple(box) if box else None)
    with left:
        chart = f"queries-{model}"
        which = EVERY if has_all_rows(here.run, here.split, here.step, model) else TOP
        meaning = f"{which} {CAPTION} n = {count} queries of split {here.split}."
        figure = with_box(figure_of(here, model), choices.restored_box(chart, box))
        page.chart(figure, chart, meaning, rows, on_select=choices.box_kept(chart, "area"), modes=["box"])
        choices.clear_button("area", box)
    with right:
        shown = rows.assign(label=[class_name(classes, label) for label in rows["label"]]).rename(columns={"label": "class"})
        st.dataframe(dashed(shown), hide_index=True, row_height=28, key="queries-table", column_config=COLUMNS, placeholder="–")
        page.note(f"{inside} queries {'in the box' if box else 'in all'}. The list shows the {len(rows)} with the highest scores.")
    choices.write_address(model=model, area=st.session_state["area"])
