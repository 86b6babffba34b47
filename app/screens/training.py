"""Shows the training curves of one run: every loss term before and after its weight, gradients, learning rate and speed."""

import streamlit as st

from lib import choices, held, page
from workbench.views.training import panel_meanings, training_figure

entries = page.usable_runs()
bar = st.columns([3, 5], vertical_alignment="bottom")
entry = choices.select_run(bar[0], entries)
run = entry.run
choices.write_address(run=run.name)


@st.fragment(run_every=page.REFRESH_SECONDS if entry.state == "running" else None)
@page.guarded("The log of this run cannot be shown")
def body() -> None:
    """Shows the curves; they are redrawn every few seconds while the run is being trained."""
    lines, together = held.training_lines(run)
    if lines.empty:
        page.banner("info", "No log yet", "Curves appear here after the first logged step.")
        return
    meaning = f"Each point is the mean of {together} logged steps. " if together > 1 else ""
    meaning += f"n = {len(lines)} points per curve, one run. Click a term in the legend to hide it."
    page.chart(training_figure(lines), f"training-{run.name}", meaning, lines)
    page.note(panel_meanings(lines))


body()
