"""Runs side by side: the summary table, AP beside match stability, results by arm and seed, and the terms of one run."""

import pandas as pd
import shared
import streamlit as st

from workbench.views import overview as views

REFRESH_SECONDS = 5

entries = {entry.run.name: entry for entry in shared.usable_runs()}
names = list(entries)
# a comparison is the runs of one recipe and seed; the first one is shown unless the address says otherwise
first = entries[names[0]]
shared.choose_several("run", names, [name for name in names if (entries[name].recipe, entries[name].seed) == (first.recipe, first.seed)])
st.multiselect("Runs", names, key="run", format_func=lambda name: entries[name].title, placeholder="Choose runs to compare")
chosen = [name for name in names if name in st.session_state["run"]]
shared.write_address(run=chosen)
if not chosen:
    st.caption("Choose at least one run.")
    st.stop()


@st.fragment(run_every=REFRESH_SECONDS if any(entries[name].state == "running" for name in chosen) else None)
def body() -> None:
    """Everything below the choice; drawn anew every few seconds while one of the runs is being trained."""
    for name in chosen:
        if entries[name].error:
            shared.banner("error", "A run failed", f"{name}: {entries[name].error}")
    points = pd.concat([shared.progress(str(entries[name].run.path), shared.run_stamp(entries[name].run)) for name in chosen])
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
        layers = pd.concat([shared.layers(str(entries[name].run.path), shared.run_stamp(entries[name].run)) for name in chosen])
        st.plotly_chart(views.layers_figure(layers, chosen), key="layers")
        st.caption(views.LAYERS_CAPTION)
    st.markdown("**Training**")
    shared.choose("training", chosen, chosen[-1])
    st.selectbox("Run", chosen, key="training", format_func=lambda name: entries[name].title, width=520, label_visibility="collapsed")
    metrics = pd.DataFrame(entries[st.session_state["training"]].run.metrics())
    if len(metrics):
        st.plotly_chart(views.training_figure(metrics), key="terms")
    st.caption(views.TRAINING_CAPTION)


body()
