"""Runs side by side: the summary table, AP beside match stability, and results by arm and seed."""

from typing import Any
from urllib.parse import quote

import pandas as pd
import reads
import shared
import streamlit as st

from workbench.views import overview as views
from workbench.views.catalog import latest_comparison
from workbench.views.summary import Column, readable


def column_config(columns: dict[str, Column]) -> dict[str, Any]:
    """Headings, formats and help of the summary table."""
    links = {"images": st.column_config.LinkColumn("images", help="The image page of this run.", display_text="open")}
    return links | {
        name: st.column_config.TextColumn(column.title, help=column.meaning, pinned=name == "run")
        if column.digits is None
        else st.column_config.NumberColumn(column.title, help=column.meaning, format=f"%.{column.digits}f")
        for name, column in columns.items()
    }


entries = shared.usable_runs()
names = list(entries)
shared.choose_several("run", names, [entry.run.name for entry in latest_comparison(list(entries.values()))])
st.multiselect("Runs", names, key="run", format_func=lambda name: entries[name].title, placeholder="Choose runs to compare")
chosen = [name for name in names if name in st.session_state["run"]]
if not chosen:
    shared.write_address(run=chosen)
    st.caption("Choose at least one run.")
    st.stop()


@st.fragment(run_every=shared.REFRESH_SECONDS if any(entries[name].state == "running" for name in chosen) else None)
@shared.guarded("These runs cannot be compared")
def body() -> None:
    """Everything below the choice; drawn anew every few seconds while one of the runs is being trained."""
    for name in chosen:
        if entries[name].error:
            shared.banner("error", "A run failed", f"{name}: {entries[name].error}")
    runs = [entries[name].run for name in chosen]
    stamps = tuple(reads.run_stamp(run) for run in runs)
    table = reads.summary(tuple(str(run.path) for run in runs), stamps)
    frame, columns = readable(table)
    # links lead to the image page with that run
    frame["images"] = [f"image?run={quote(name)}" if name in names else None for name in table["run"]]
    st.dataframe(frame, key="summary", hide_index=True, row_height=28, column_config=column_config(columns), placeholder="–")
    left, right = st.columns([12, 1], vertical_alignment="center")
    left.caption("Rest the pointer on a heading for its definition. n counts the targets or queries behind the number before it.")
    right.download_button("CSV", table.to_csv(index=False), "runs.csv", "text/csv", icon=":material/download:", width="stretch")
    points = pd.concat([reads.progress(str(run.path), stamp) for run, stamp in zip(runs, stamps, strict=True)])
    st.plotly_chart(views.progress_figure(points, chosen), key="progress")
    st.caption(views.PROGRESS_CAPTION)
    left, right = st.columns(2, gap="medium")
    with left:
        st.markdown("**Results**")
        results = views.result_points([entries[name] for name in chosen])
        if len(results):
            st.plotly_chart(views.results_figure(results, chosen), key="results")
        st.caption(views.RESULTS_CAPTION if len(results) else "No run of these has finished yet.")
    with right:
        st.markdown("**Churn between decoder layers**")
        layers = pd.concat([reads.layers(str(run.path), stamp) for run, stamp in zip(runs, stamps, strict=True)])
        st.plotly_chart(views.layers_figure(layers, chosen), key="layers")
        st.caption(views.LAYERS_CAPTION)
    shared.write_address(run=chosen)


body()
