"""Lays the training curves of runs over each other, and shows every loss term and gradient of one of them."""

import streamlit as st

from lib import choices, held, page, run_chooser
from workbench.views.catalog import baseline_of
from workbench.views.training import panel_meanings, training_figure
from workbench.views.training_compared import curve_meanings, curves_figure

BESIDE = "beside"  # key of the address: the runs that the chosen one is compared with
SMOOTHING = (1, 5, 10, 20, 50)
page.question("What did the student learn from, and did the teacher's terms help or hinder the detection loss?")
entries = page.usable_runs()
given = st.session_state.pop("curves_of", None)  # chosen on the page of runs
if given:
    st.session_state["run"], st.session_state[BESIDE] = given[0], given[1:]
bar = st.columns([2.6, 4, 1.5, 1], vertical_alignment="bottom")
entry = choices.select_run(bar[0], entries)
run = entry.run
baseline = baseline_of(entry, list(entries.values()), choices.pinned_baseline())
others = [name for name in entries if name != run.name]
if st.session_state.get("beside-of") != run.name and not given:
    st.session_state.pop(BESIDE, None)  # another run is compared with its own baseline
st.session_state["beside-of"] = run.name
choices.choose_several(BESIDE, others, [baseline.run.name] if baseline is not None else [])
bar[1].multiselect("Compared with", others, key=BESIDE, placeholder="Choose runs to lay over it")
run_chooser.popover(bar[2], [entries[name] for name in others], BESIDE, run_chooser.saved())
window = choices.select(bar[3], "Smoothing", "smoothing", SMOOTHING, 1, help="Number of logged values that each point is the mean of.")
beside: list[str] = st.session_state[BESIDE]
choices.write_address(run=run.name, **{BESIDE: beside}, smoothing=window)
running = any(entries[name].state == "running" for name in (run.name, *beside))


@st.fragment(run_every=page.REFRESH_SECONDS if running else None)
@page.guarded("The logs of these runs cannot be compared")
def compared() -> None:
    """Lays the curves over each other; they are redrawn every few seconds while a run is being trained."""
    names = [name for name in entries if name in {run.name, *beside}]  # in the order, and so in the colours, of Overview
    points, together = held.compared_curves([entries[name].run for name in names], window)
    if points.empty:
        page.banner("info", "No log yet", "Curves appear here after the first logged step.")
        return
    meaning = f"Each value is the mean of up to {together} logged steps. " if together > 1 else ""
    meaning += f"n = {len(points)} logged values of {points['run'].nunique()} runs. Click a run in the legend to hide it."
    page.chart(curves_figure(points, names), f"curves-{run.name}", meaning, points)
    page.note(curve_meanings(points))


@st.fragment(run_every=page.REFRESH_SECONDS if entry.state == "running" else None)
@page.guarded("The log of this run cannot be shown")
def terms() -> None:
    """Shows every curve of the chosen run."""
    lines, together = held.training_lines(run)
    if lines.empty:
        return
    st.markdown("**Every term of the run on the left**")
    meaning = f"Each point is the mean of {together} logged steps. " if together > 1 else ""
    meaning += f"n = {len(lines)} points per curve, one run. Click a term in the legend to hide it."
    page.chart(training_figure(lines), f"training-{run.name}", meaning, lines)
    page.note(panel_meanings(lines))


compared()
terms()
