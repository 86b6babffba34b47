"""Is an arm better than the undistilled one? Seeds of an arm are pooled, and a verdict stands beside every difference."""

import analyses
import pandas as pd
import reads
import shared
import streamlit as st

from workbench.analysis.derived import diagnosis_inputs, identity_over_steps, kept_frame
from workbench.analysis.detection.ap_tests import LEAST_SEEDS, Verdict, compare_ap
from workbench.analysis.results.query_tests import compare_queries
from workbench.analysis.stability.churn import NEEDED
from workbench.analysis.stability.same_box import BOX
from workbench.remote import as_path
from workbench.store.detections import read_detections
from workbench.store.queries import complete_steps, read_queries
from workbench.store.run import Run
from workbench.views.catalog import VALIDATION, Entry
from workbench.views.verdicts import CAPTION, arms_against_baseline, verdict_table, verdicts_figure

COLUMNS = (*NEEDED, *BOX, "score", "match_iou")
WIDTHS = {"arm": st.column_config.TextColumn(width="medium"), "verdict": st.column_config.TextColumn(width=130),
          "about": st.column_config.TextColumn(width=120), "sentence": st.column_config.TextColumn(width="large")}  # fmt: skip
Side = tuple[tuple[int, tuple[str, int, reads.Stamp]], ...]  # seed, run at its last evaluation


@st.cache_data(max_entries=32, show_spinner="Comparing the arms ...", show_time=True)
def judged(arm: str, baseline: Side, other: Side) -> pd.DataFrame:
    """The table of verdicts on AP and on the matching, of the runs of some seeds against others."""
    inputs = [[[seed, diagnosis_inputs(Run(as_path(at[0])), VALIDATION), analyses.inputs(*at[:2])] for seed, at in side]
              for side in (baseline, other)]  # fmt: skip
    first = Run(as_path(other[0][1][0]))
    return kept_frame(first, f"verdicts-{VALIDATION}", inputs, lambda: verdict_table("", _verdicts(baseline, other))).assign(arm=arm)


def _verdicts(baseline: Side, other: Side) -> list[Verdict]:
    truth = analyses.truth(baseline[0][1][0], baseline[0][1][2][:1])
    sides = [{seed: read_detections(Run(as_path(path)), VALIDATION, step) for seed, (path, step, _) in side} for side in (baseline, other)]
    found = [compare_ap(truth, sides[0], sides[1])]
    runs = {path: Run(as_path(path)) for side in (baseline, other) for _, (path, _, _) in side}
    if not all(run.query_steps(VALIDATION) for run in runs.values()):
        return found
    rows = {path: read_queries(run, VALIDATION, complete_steps(run, VALIDATION), COLUMNS, matched=True) for path, run in runs.items()}
    # one meaning of identity for all of them
    boxes = any(identity_over_steps(run, VALIDATION, rows[path]) == "box" for path, run in runs.items())
    queries = [{seed: rows[path] for seed, (path, _, _) in side} for side in (baseline, other)]
    images = [image["id"] for image in truth["images"]]
    return found + compare_queries(queries[0], queries[1], images, "box" if boxes else "source")


def _side(entries: list[Entry]) -> Side:
    return tuple((entry.seed, analyses.at(entry.run, analyses.evaluated(entry.run)[-1])) for entry in entries)


@st.fragment
@shared.guarded("These arms cannot be compared")
def verdicts(chosen: list[Entry], entries: list[Entry]) -> None:
    """Every arm of the chosen runs against the undistilled arm of its recipe, all seeds of both pooled."""
    st.markdown("**Verdicts over seeds**")
    pairs = arms_against_baseline(chosen, [entry for entry in entries if analyses.evaluated(entry.run)])
    if not pairs:
        st.caption("None of these runs has an undistilled arm of the same recipe to be compared with.")
        return
    tables: list[pd.DataFrame] = []
    for name, baseline, other in pairs:
        tables.append(judged(name, _side(baseline), _side(other)))
    table = pd.concat(tables, ignore_index=True)
    meaning = f"{CAPTION} n = {int(table['images'].max())} images; from {LEAST_SEEDS} pairs of seeds on it tells about the method."
    shared.chart(verdicts_figure(table), "verdicts", meaning, table)
    st.dataframe(table[["arm", "verdict", "about", "sentence"]], hide_index=True, row_height=28, key="verdict-table", column_config=WIDTHS)
    units = "Points for AP, churn and agreement, queries per image for IS, 0 to 1 for quality and score x IoU."
    shared.note(f"n = {len(table)} verdicts. {units}")
