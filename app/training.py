"""One run as it trained: every loss term raw and weighted, gradients, learning rate and speed."""

import reads
import shared
import streamlit as st

from workbench.views.training import panel_meanings, training_figure

entries = shared.usable_runs()
bar = st.columns([3, 5], vertical_alignment="bottom")
entry = shared.select_run(bar[0], entries)
run = entry.run
shared.write_address(run=run.name)


@st.fragment(run_every=shared.REFRESH_SECONDS if entry.state == "running" else None)
@shared.guarded("What this run logged cannot be shown")
def body() -> None:
    """The curves; drawn anew every few seconds while the run is being trained."""
    lines, together = reads.training_lines(str(run.path), reads.stamp(run.metrics_path, run.timings_path))
    if lines.empty:
        shared.banner("info", "Nothing logged yet", "Curves appear here after the first logged step.")
        return
    meaning = f"Each point is the mean of {together} logged steps. " if together > 1 else ""
    meaning += f"n = {len(lines)} points a curve, one run. A click on a term in the legend hides it."
    shared.chart(training_figure(lines), f"training-{run.name}", meaning, lines)
    shared.note(panel_meanings(lines))


body()
