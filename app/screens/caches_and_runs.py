"""Shows which runs are training now, and the size and state of every run and teacher cache on disk."""

import pandas as pd
import streamlit as st

from lib import choices, held, page
from workbench.errors import CacheError
from workbench.store.run import runs_root
from workbench.teacher_cache.folders import list_caches
from workbench.views import caches_and_runs as views
from workbench.views.catalog import catalog

NUMBER = st.column_config.NumberColumn
PART_MEANINGS = {
    "checkpoints": "Weights and the state of training.", "queries": "Recorded queries of student and teacher.",
    "states": "Selection masks and query vectors of some images.", "detections": "Detections of every evaluation.",
    "derived": "Stored results of analyses; they can be computed again.", views.OTHER: "Logs, and all other files of the run.",
}  # fmt: skip
COLUMNS = {
    "progress": st.column_config.ProgressColumn("progress", min_value=0, max_value=1, format="percent", help="Share of the steps done."),
    "size": NUMBER("size (MB)", format="%.1f"),
    **{part: NUMBER(f"{part} (MB)", format="%.1f", help=PART_MEANINGS[part]) for part in (*views.PARTS, views.OTHER)},
    "created": st.column_config.TextColumn("created (UTC)"),
    "health": st.column_config.TextColumn("health", width="large", help="Good means that every file that other parts rely on is complete."),
}
CACHE_COLUMNS = {
    "GB": NUMBER("size (GB)", format="%.3f"), "build seconds": NUMBER("build (s)", format="%.0f", help="Wall time of the build."),
    "variants": NUMBER("variants", help="Number of augmented versions of each image."),
    "teacher": st.column_config.TextColumn("teacher", help="Hash of the teacher's weights."),
}  # fmt: skip
page.question("What is being trained now, and what takes the space?")
page.usable_runs()


@st.fragment(run_every=page.REFRESH_SECONDS)
@page.guarded("The running runs cannot be shown")
def running() -> None:
    """Shows the progress of the jobs that are not done and of the runs that are being trained."""
    st.markdown("**Running now**")
    for progress in views.jobs_not_done(runs_root()):
        st.text(f"job {progress.job.name}")
        stopped = " It was stopped; the command that began it goes on." if progress.job.state == "stopped" else ""
        st.progress(progress.share, text=f"{progress.text}.{stopped}")
    active = [entry for entry in catalog(runs_root()) if entry.state == "running"]
    for entry in active:
        speed, left = views.pace(entry.run, entry.step, entry.steps)
        st.text(entry.run.name)
        told = f"step {entry.step} of {entry.steps}"
        told += f", {speed:.2f} steps/s" if speed else ""
        told += f", about {left / 60:.0f} min left" if left else ""
        st.progress(min(entry.step / entry.steps, 1.0) if entry.steps else 0.0, text=told)
    if not active:
        st.caption("No run is being trained.")


@page.guarded("The teacher caches cannot be listed")
def caches() -> None:
    """Lists the teacher caches with their size and state."""
    st.markdown("**Teacher caches**")
    try:
        table = pd.DataFrame(list_caches())
    except CacheError:
        st.caption("Teacher caches are stored next to runs on a local disk. These runs are remote.")
        return
    if table.empty:
        st.caption("There is no teacher cache. 'workbench cache build RECIPE' builds one. Students then train without running the teacher.")
        return
    st.dataframe(table, hide_index=True, row_height=28, key="caches", placeholder="–", column_config=CACHE_COLUMNS)
    bad = int((~table["state"].str.startswith("complete")).sum())
    meaning = "A cache stores the outputs of a teacher for every augmented training image."
    page.note(f"{meaning} n = {len(table)} caches, {table['GB'].sum():.2f} GB in all, {bad} incomplete.")


@page.guarded("The runs cannot be listed")
def on_disk() -> None:
    """Lists all runs with their size and state."""
    st.markdown("**Runs on disk**")
    entries = catalog(runs_root())
    table = views.runs_table(entries, {entry.run.name: held.sizes(entry.run) for entry in entries})
    st.dataframe(table, hide_index=True, row_height=28, key="runs", column_config=COLUMNS, placeholder="–")
    bad = int((table["health"] != "good").sum())
    total = table["size"].sum() / 1e3
    page.note(f"n = {len(table)} runs, {total:.2f} GB in all, {bad} with a problem. Sizes are up to a minute old.")
    meaning = f"{views.SIZES_CAPTION} n = the {min(len(table), 25)} largest of {len(table)} runs."
    page.chart(views.sizes_figure(table), "sizes", meaning, table)


running()
on_disk()
caches()
choices.write_address()
