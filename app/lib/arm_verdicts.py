"""Shows whether each arm is better than the undistilled one: all seeds of an arm are pooled, and every difference has a verdict."""

import time

import pandas as pd
import streamlit as st

from lib import page
from lib.held import RESULTS
from workbench.analysis.of_run import last_with_detections
from workbench.analysis.results.of_runs import Side
from workbench.views.catalog import Entry
from workbench.views.forest import with_units
from workbench.views.verdicts import CAPTION, arms_against_baseline, verdicts_figure

AT_ONCE = 1.0  # seconds within which all arms are shown together
NUMBER = st.column_config.NumberColumn
COLUMNS = {"arm": st.column_config.TextColumn("recipe, arm and schedule"), "quantity": st.column_config.TextColumn("number"),
           "unit": st.column_config.TextColumn(), "difference": NUMBER(format="%+.3g", help="The arm minus undistilled."),
           "low": NUMBER(format="%+.3g", help="Lower end of the difference's 95 % interval."),
           "high": NUMBER(format="%+.3g", help="Upper end of the difference's 95 % interval."),
           "verdict": st.column_config.TextColumn(),
           "about": st.column_config.TextColumn("holds for", help="The method, or only the checkpoints of these runs.")}  # fmt: skip


def _side(entries: list[Entry], split: str) -> Side:
    return tuple((entry.seed, last_with_detections(entry.run, split)) for entry in entries)


@st.fragment
@page.guarded("These arms cannot be compared")
def verdicts(chosen: list[Entry], entries: list[Entry], split: str) -> None:
    """Compares every arm of the chosen runs with the undistilled arm of its recipe, pooling all seeds of both."""
    st.markdown("**Difference from the undistilled arm**")
    pairs = arms_against_baseline(chosen, [entry for entry in entries if entry.run.detection_steps(split)])
    if not pairs:
        st.caption("There is no undistilled run of the same recipe to compare these runs with.")
        return
    place, tables = st.empty(), list[pd.DataFrame]()
    began = time.monotonic()
    for name, baseline, other in pairs:
        tables.append(RESULTS.verdicts(_side(baseline, split), _side(other, split)).assign(arm=name))
        # the seeds of an arm are pooled once and then kept; where that takes long, each arm is shown as soon as it is done
        if len(tables) < len(pairs) and time.monotonic() - began > AT_ONCE:
            with place.container():
                _show(pd.concat(tables, ignore_index=True), f"verdict-table-{len(tables)}")
                page.note(f"{len(tables)} of {len(pairs)} arms are compared. The others follow.")
    place.empty()
    table = pd.concat(tables, ignore_index=True)
    meaning = f"{CAPTION} n = {int(table['images'].max())} images of split {split}."
    page.chart(verdicts_figure(table), "verdicts", meaning, table)
    _show(table, "verdict-table")
    page.note(f"n = {len(table)} verdicts, AP and all other numbers of split {split}.")


def _show(table: pd.DataFrame, key: str) -> None:
    shown = with_units(table)
    st.dataframe(shown[list(COLUMNS)], hide_index=True, row_height=28, key=key, column_config=COLUMNS, placeholder="–")
