"""All queries of a model as one picture, score against the IoU with the target they overlap most; a box shows those in it."""

import analyses
import pandas as pd
import plotly.graph_objects as go
import shared
import streamlit as st
from reads import Stamp

from workbench.views.raster import raster_figure

CAPTION = (
    "Every query of the last layer: probability of its best class, and IoU of its box with the target it overlaps most (0 without one). "
    "Colour: how many queries lie there. Draw a box to list them."
)
LISTED = 500


@st.cache_data(max_entries=8, show_spinner="Drawing the queries ...")
def figure_of(run_path: str, step: int, model: str, key: Stamp) -> go.Figure:
    """The picture, drawn once."""
    rows = analyses.last_layer(run_path, step, model, key)
    return raster_figure(rows["score"].to_numpy(float), rows["best_iou"].to_numpy(float), "score", "best IoU")


def queries(here: tuple[str, int, Stamp]) -> None:
    """The picture of one model's queries, and the list of those in a box."""
    st.markdown("**All queries**")
    head = st.columns([2, 8], vertical_alignment="bottom")
    model = shared.select(head[0], "Model", "model", ["student", "teacher"], "student")
    rows = analyses.last_layer(*here[:2], model, here[2])
    if rows.empty:
        st.caption(f"This run keeps no queries of its {model}.")
        return
    left, right = st.columns([1.25, 1], gap="medium")
    with left:
        figure = figure_of(*here[:2], model, here[2])
        event = shared.chart(figure, f"queries-{model}", f"{CAPTION} n = {len(rows)} queries.", on_select="rerun", modes=["box"])
    boxes = event["selection"]["box"]
    with right:
        chosen = rows
        if boxes:
            (x0, x1), (y0, y1) = sorted(boxes[0]["x"]), sorted(boxes[0]["y"])
            chosen = rows[rows["score"].between(x0, x1) & rows["best_iou"].between(y0, y1)]
        columns = ["image_id", "query", "label", "score", "best_iou", "match", "quality"]
        shown: pd.DataFrame = chosen.nlargest(LISTED, "score")[columns]
        st.dataframe(shown, hide_index=True, row_height=28, key="queries-table")
        shared.note(f"{len(chosen)} queries {'in the box' if boxes else 'in all'}; the {len(shown)} of the highest score are listed.")
