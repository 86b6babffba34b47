"""What runs now, with live progress, and what every run holds on disk: sizes and health."""

import pandas as pd
import streamlit as st

from lib import choices, held, page
from workbench.errors import CacheError
from workbench.store.run import runs_root
from workbench.teacher_cache.folders import list_caches
from workbench.views import caches_and_runs as views
from workbench.views.catalog import catalog

NUMBER = st.column_config.NumberColumn
COLUMNS = {
    "progress": st.column_config.ProgressColumn("progress", min_value=0, max_value=1, format="percent", help="Of the schedule's steps."),
    "size": NUMBER("size (MB)", format="%.1f"),
    **{part: NUMBER(f"{part} (MB)", format="%.1f") for part in (*views.PARTS, views.OTHER)},
    "created": st.column_config.TextColumn("created (UTC)"),
    "health": st.column_config.TextColumn("health", width="large", help="Good: every file that is counted on is whole."),
}
CACHE_COLUMNS = {
    "GB": NUMBER("size (GB)", format="%.3f"), "build seconds": NUMBER("build (s)", format="%.0f", help="Wall seconds of building."),
    "variants": NUMBER("variants", help="Augmentations of each image."), "teacher": st.column_config.TextColumn("teacher", help="Hash."),
}  # fmt: skip
page.usable_runs()


@st.fragment(run_every=page.REFRESH_SECONDS)
@page.guarded("What runs now cannot be shown")
def running() -> None:
    """Progress of the runs that are being written."""
    st.markdown("**Running now**")
    active = [entry for entry in catalog(runs_root()) if entry.state == "running"]
    for entry in active:
        speed, left = views.pace(entry.run, entry.step, entry.steps)
        st.text(entry.run.name)
        told = f"step {entry.step} of {entry.steps}"
        told += f", {speed:.2f} steps/s" if speed else ""
        told += f", about {left / 60:.0f} min left" if left else ""
        st.progress(min(entry.step / entry.steps, 1.0) if entry.steps else 0.0, text=told)
    if not active:
        st.caption("No run is being written.")


@page.guarded("The teacher caches cannot be listed")
def caches() -> None:
    """Sizes and health of the caches of teachers' answers."""
    st.markdown("**Teacher caches**")
    try:
        table = pd.DataFrame(list_caches())
    except CacheError:
        st.caption("Teacher caches lie beside runs on a local disk; these runs are remote.")
        return
    if table.empty:
        st.caption("No teacher cache. 'workbench cache build RECIPE' makes one: students then learn without running the teacher.")
        return
    st.dataframe(table, hide_index=True, row_height=28, key="caches", placeholder="–", column_config=CACHE_COLUMNS)
    bad = int((~table["state"].str.startswith("complete")).sum())
    meaning = "A cache keeps a teacher's answers to every augmented training image."
    page.note(f"{meaning} n = {len(table)} caches, {table['GB'].sum():.2f} GB in all, {bad} not complete.")


@page.guarded("The runs cannot be listed")
def on_disk() -> None:
    """Sizes and health of all runs."""
    st.markdown("**Runs on disk**")
    entries = catalog(runs_root())
    table = views.runs_table(entries, {entry.run.name: held.sizes(entry.run) for entry in entries})
    st.dataframe(table, hide_index=True, row_height=28, key="runs", column_config=COLUMNS, placeholder="–")
    bad = int((table["health"] != "good").sum())
    total = table["size"].sum() / 1e3
    page.note(f"n = {len(table)} runs, {total:.2f} GB in all, {bad} not in good health. Sizes are up to a minute old.")
    meaning = f"{views.SIZES_CAPTION} n = {min(len(table), 25)} largest of {len(table)} runs."
    page.chart(views.sizes_figure(table), "sizes", meaning, table)


running()
on_disk()
caches()
choices.write_address()
