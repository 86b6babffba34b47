"""Is an arm better than the undistilled one? Seeds of an arm are pooled, and a verdict stands beside every difference."""

import pandas as pd
import streamlit as st

from lib import page
from lib.held import RESULTS
from workbench.analysis.of_run import last_with_detections
from workbench.analysis.results.of_runs import Side
from workbench.views.catalog import Entry
from workbench.views.verdicts import CAPTION, arms_against_baseline, verdicts_figure

WIDTHS = {"arm": st.column_config.TextColumn(width="medium"), "verdict": st.column_config.TextColumn(width=130),
          "about": st.column_config.TextColumn(width=120), "sentence": st.column_config.TextColumn(width="large")}  # fmt: skip


def _side(entries: list[Entry], split: str) -> Side:
    return tuple((entry.seed, last_with_detections(entry.run, split)) for entry in entries)


@st.fragment
@page.guarded("These arms cannot be compared")
def verdicts(chosen: list[Entry], entries: list[Entry], split: str) -> None:
    """Every arm of the chosen runs against the undistilled arm of its recipe, all seeds of both pooled."""
    st.markdown("**Verdicts over seeds**")
    pairs = arms_against_baseline(chosen, [entry for entry in entries if entry.run.detection_steps(split)])
    if not pairs:
        st.caption("None of these runs has an undistilled arm of the same recipe to be compared with.")
        return
    tables: list[pd.DataFrame] = []
    for name, baseline, other in pairs:
        tables.append(RESULTS.verdicts(_side(baseline, split), _side(other, split)).assign(arm=name))
    table = pd.concat(tables, ignore_index=True)
    meaning = f"{CAPTION} n = {int(table['images'].max())} images of split {split}."
    page.chart(verdicts_figure(table), "verdicts", meaning, table)
    st.dataframe(table[["arm", "verdict", "about", "sentence"]], hide_index=True, row_height=28, key="verdict-table", column_config=WIDTHS)
    units = "Points for AP, churn and agreement, queries per image for IS, 0 to 1 for quality and score x IoU."
    page.note(f"n = {len(table)} verdicts. {units}")
