"""What queries are worth: analyses of the rows of a run's last layer, kept until the files they came from change."""

from collections.abc import Sequence

import analyses
import numpy as np
import pandas as pd
import streamlit as st
from analyses import SPINNER, truth
from reads import Stamp

from workbench.analysis.derived import kept_frame
from workbench.analysis.detection.targets import target_frame
from workbench.analysis.queries.gain import mean_gain, slot_gain, target_gain
from workbench.analysis.queries.predictors import rank_correlations, target_properties
from workbench.analysis.queries.slots import NEEDED, slot_heatmaps, slot_serves, slot_table
from workbench.analysis.queries.value import ap_drops, slot_interval
from workbench.remote import as_path
from workbench.store.detections import read_detections
from workbench.store.manifest import is_complete
from workbench.store.queries import TEACHER_STEP, read_queries
from workbench.store.run import Run
from workbench.views.catalog import VALIDATION

LISTED = ["image_id", "query", "label", "score", "best_iou", "match", "quality"]
_MATCHED = ["step", "model", "image_id", "layer", "query", "label", "score", "cx", "cy", "w", "h", "match", "match_iou", "quality"]
At = tuple[str, int, Stamp]


def _last_layer(run_path: str, step: int, model: str, columns: Sequence[str], matched: bool = False) -> pd.DataFrame:
    """Rows of the last decoder layer of one model; none where the run keeps none of it."""
    run = Run(as_path(run_path))
    steps = [TEACHER_STEP if model == "teacher" else step]
    if model == "teacher" and not is_complete(run.queries_path(VALIDATION, TEACHER_STEP)):
        return pd.DataFrame(columns=list(columns))
    # every layer has a query 0: the last layer is known without the rows of the others, which would fill the memory
    layers = read_queries(run, VALIDATION, steps, ["layer"], "model = $model and query = 0", {"model": model})
    known = {"model": model, "layer": int(layers["layer"].max())}
    return read_queries(run, VALIDATION, steps, columns, "model = $model and layer = $layer", known, matched)


# a resource: a million rows, which pages read and never change, are not copied for each of them
@st.cache_resource(max_entries=4, show_spinner="Reading the queries ...")
def last_layer(run_path: str, step: int, model: str, key: Stamp) -> pd.DataFrame:
    """All queries of the last layer, what a list of them shows."""
    return _last_layer(run_path, step, model, LISTED)


@st.cache_resource(max_entries=8, show_spinner="Reading the queries ...")
def matched(run_path: str, step: int, model: str, key: Stamp) -> pd.DataFrame:
    """Queries of the last layer that are matched to a target, best quality first."""
    rows = _last_layer(run_path, step, model, _MATCHED, matched=True)
    return rows.sort_values(["quality", "score"], ascending=False, kind="stable")


@st.cache_data(max_entries=32, show_spinner=SPINNER, show_time=True)
def drops(run_path: str, step: int, key: Stamp) -> pd.DataFrame:
    """AP drop of every slot."""
    run = Run(as_path(run_path))
    return kept_frame(
        run,
        f"ap-drops-{VALIDATION}-{step}",
        analyses.inputs(run_path, step),
        lambda: ap_drops(truth(run_path, key[:1]), read_detections(run, VALIDATION, step)),
    )


@st.cache_data(max_entries=64, show_spinner="Resampling the images ...", show_time=True)
def drop_interval(run_path: str, step: int, query: int, key: Stamp) -> tuple[float, float, float, int]:
    """AP drop of one slot with its interval by Poisson resamples, and the number of these."""
    found = slot_interval(truth(run_path, key[:1]), read_detections(Run(as_path(run_path)), VALIDATION, step), query)
    return found.value, found.low, found.high, found.samples


@st.cache_data(max_entries=32, show_spinner=SPINNER)
def slots(run_path: str, step: int, key: Stamp) -> pd.DataFrame:
    """What every slot of the student does."""
    return kept_frame(
        Run(as_path(run_path)),
        f"slots-{VALIDATION}-{step}",
        analyses.inputs(run_path, step),
        lambda: slot_table(_last_layer(run_path, step, "student", NEEDED)),
    )


@st.cache_resource(max_entries=8, show_spinner="Reading the queries ...")
def looks(run_path: str, step: int, key: Stamp) -> dict[int, np.ndarray]:
    """Where every slot of the student looks."""
    return slot_heatmaps(_last_layer(run_path, step, "student", ["query", "cx", "cy", "match"]))


@st.cache_data(max_entries=64, show_spinner=False)
def served(run_path: str, step: int, by: str, key: Stamp) -> pd.DataFrame:
    """Classes or sizes of the targets of each slot."""
    return slot_serves(matched(run_path, step, "student", key), target_frame(truth(run_path, key[:1])), by)


@st.cache_data(max_entries=16, show_spinner="Comparing the answers ...")
def gains(run: At, baseline: At) -> pd.DataFrame:
    """Gain of every target over the baseline at the same step."""
    return target_gain(matched(*run[:2], "student", run[2]), matched(*baseline[:2], "student", baseline[2]), run[1])


@st.cache_data(max_entries=64, show_spinner="Comparing the answers ...")
def run_gain(run: At, baseline: At) -> dict[str, float]:
    """Mean gain over all targets with its interval."""
    found = mean_gain(gains(run, baseline)).rename(columns={"low": "gain_low", "high": "gain_high", "n": "gain_n"})
    return {name: float(found[name].iloc[0]) for name in ("gain", "gain_low", "gain_high", "gain_n")} if len(found) else {}


@st.cache_data(max_entries=16, show_spinner="Comparing the answers ...")
def slot_gains(run: At, baseline: At) -> pd.DataFrame:
    """Mean gain of every slot."""
    return slot_gain(gains(run, baseline))


@st.cache_data(max_entries=16, show_spinner="Comparing the answers ...")
def properties(run: At, baseline: At) -> pd.DataFrame:
    """Every target's gain beside what was known of it before training."""
    teacher, before = matched(*run[:2], "teacher", run[2]), matched(*baseline[:2], "student", baseline[2])
    return target_properties(gains(run, baseline), teacher, before, target_frame(truth(run[0], run[2][:1])))


@st.cache_data(max_entries=16, show_spinner="Correlating ...", show_time=True)
def correlations(run: At, baseline: At) -> pd.DataFrame:
    """Rank correlation of each property with gain."""
    return rank_correlations(properties(run, baseline))
