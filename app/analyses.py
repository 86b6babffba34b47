"""Analyses of a run that take seconds: made when a page first asks, kept until the files they came from change."""

from typing import Any

import pandas as pd
import reads
import streamlit as st
from reads import Stamp

from workbench.analysis.agreement import agreement_by, teacher_agreement
from workbench.analysis.between_runs import found_by_both
from workbench.analysis.bootstrap import bootstrap_ap
from workbench.analysis.calibration import reliability
from workbench.analysis.confusion import confusion_matrix, confusion_pairs
from workbench.analysis.derived import identity_over_steps
from workbench.analysis.diagnosis import Diagnosis, diagnose
from workbench.analysis.gain import mean_gain, slot_gain, target_gain
from workbench.analysis.kitti_ap import kitti_ap
from workbench.analysis.matches import Matches
from workbench.analysis.predictors import rank_correlations, target_properties
from workbench.analysis.same_box import BOX
from workbench.analysis.slices import slices
from workbench.analysis.slots import slot_serves, slot_table
from workbench.analysis.stability import NEEDED, Identity
from workbench.analysis.stability_slices import image_counts, pooled_by, stability_by
from workbench.analysis.targets import target_frame
from workbench.analysis.tide import Errors, error_table, find_errors
from workbench.analysis.value import ap_drops, slot_interval
from workbench.analysis.verdict import changed_targets, compare_errors
from workbench.cache.detections import read_detections
from workbench.cache.manifest import is_complete
from workbench.cache.queries import TEACHER_STEP, read_queries
from workbench.remote import as_path
from workbench.runs import Run
from workbench.views.catalog import VALIDATION

SPINNER = "Analysing the detections ..."


@st.cache_resource(max_entries=8, show_spinner="Opening the data ...")
def truth(run_path: str, key: Stamp, split: str = VALIDATION) -> dict[str, Any]:
    """COCO ground truth of a split of a run's data."""
    return reads.dataset(Run(as_path(run_path)).info(), split).coco()


def evaluated(run: Run) -> list[int]:
    """Steps whose detections on the validation split were kept, ascending."""
    folder = run.detections_path(VALIDATION, 0).parent
    return sorted(int(path.stem.removeprefix("step=")) for path in folder.glob("step=*.parquet"))


def at(run: Run, step: int) -> tuple[str, int, Stamp]:
    """What the functions below ask for."""
    return str(run.path), step, reads.stamp(run.info_path, run.detections_path(VALIDATION, step), run.queries_path(VALIDATION, step))


@st.cache_resource(max_entries=4, show_spinner=SPINNER)
def errors(run_path: str, step: int, key: Stamp) -> Errors:
    """Detections and targets with their error types."""
    return find_errors(truth(run_path, key[:1]), read_detections(Run(as_path(run_path)), VALIDATION, step))


@st.cache_data(max_entries=32, show_spinner=SPINNER)
def costs(run_path: str, step: int, key: Stamp) -> pd.DataFrame:
    """What each error type costs."""
    return error_table(errors(run_path, step, key))


@st.cache_data(max_entries=32, show_spinner="Comparing the errors ...")
def compared(seeds: tuple[int, int], baseline: tuple[str, int, Stamp], other: tuple[str, int, Stamp]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Verdicts on every error type, and the targets that became something else."""
    first, second = errors(*baseline), errors(*other)
    # one run a side: the seeds only name them
    return compare_errors({seeds[0]: first}, {seeds[1]: second}), changed_targets(first, second)


@st.cache_resource(max_entries=4, show_spinner=SPINNER)
def confused(run_path: str, step: int, key: Stamp) -> pd.DataFrame:
    """Pairs of target and detection, the best scores first."""
    pairs = confusion_pairs(truth(run_path, key[:1]), read_detections(Run(as_path(run_path)), VALIDATION, step))
    return pairs.sort_values("score", ascending=False, ignore_index=True)


@st.cache_data(max_entries=32, show_spinner=SPINNER)
def confusion(run_path: str, step: int, key: Stamp) -> pd.DataFrame:
    """Counts by class of the target and of the detection."""
    return confusion_matrix(confused(run_path, step, key), errors(run_path, step, key).classes)


@st.cache_data(max_entries=32, show_spinner=SPINNER)
def by_slice(run_path: str, step: int, key: Stamp) -> pd.DataFrame:
    """AP and recall by size, crowding and overlap."""
    return slices(truth(run_path, key[:1]), read_detections(Run(as_path(run_path)), VALIDATION, step))


@st.cache_data(max_entries=32, show_spinner=SPINNER)
def kitti(run_path: str, step: int, key: Stamp) -> pd.DataFrame:
    """KITTI's AP by class and difficulty."""
    run = Run(as_path(run_path))
    return kitti_ap(reads.dataset(run.info()), read_detections(run, VALIDATION, step), samples=300)


@st.cache_data(max_entries=32, show_spinner=SPINNER)
def calibration(run_path: str, step: int, key: Stamp) -> pd.DataFrame:
    """Score against precision."""
    found = errors(run_path, step, key)
    return reliability(Matches(found.detections, found.targets, found.images, found.classes))


@st.cache_data(max_entries=32, show_spinner="Looking for causes ...")
def diagnosis(run_path: str, baseline_path: str | None, key: Stamp) -> Diagnosis:
    """Every cause looked for in a run."""
    return diagnose(Run(as_path(run_path)), Run(as_path(baseline_path)) if baseline_path else None, VALIDATION)


# a resource: millions of rows, which pages read and never change, are not copied for each of them
@st.cache_resource(max_entries=4, show_spinner="Reading the queries ...")
def last_layer(run_path: str, step: int, model: str, key: Stamp) -> pd.DataFrame:
    """Rows of the last decoder layer of one model."""
    columns = ["step", "model", "image_id", "layer", "query", "source", "label", "score", "cx", "cy", "w", "h", "match", "match_iou",
               "best_iou", "quality", "selected"]  # fmt: skip
    run = Run(as_path(run_path))
    if model == "teacher" and not is_complete(run.queries_path(VALIDATION, TEACHER_STEP)):
        return pd.DataFrame(columns=columns)
    steps = [TEACHER_STEP if model == "teacher" else step]
    # every layer has a query 0: the last layer is known without the rows of the others, which would fill the memory
    layers = read_queries(run, VALIDATION, steps, ["layer"], "model = $model and query = 0", {"model": model})
    known = {"model": model, "layer": int(layers["layer"].max())}
    return read_queries(run, VALIDATION, steps, columns, "model = $model and layer = $layer", known)


@st.cache_resource(max_entries=8, show_spinner="Reading the queries ...")
def matched(run_path: str, step: int, model: str, key: Stamp) -> pd.DataFrame:
    """Those of ``last_layer`` that are matched to a target, best quality first."""
    rows = last_layer(run_path, step, model, key)
    return rows[rows["match"] >= 0].sort_values(["quality", "score"], ascending=False, kind="stable")


@st.cache_data(max_entries=32, show_spinner=SPINNER)
def drops(run_path: str, step: int, key: Stamp) -> pd.DataFrame:
    """AP drop of every slot."""
    return ap_drops(truth(run_path, key[:1]), read_detections(Run(as_path(run_path)), VALIDATION, step))


@st.cache_data(max_entries=64, show_spinner="Resampling the images ...")
def drop_interval(run_path: str, step: int, query: int, key: Stamp) -> tuple[float, float, float, int]:
    """AP drop of one slot with its interval by Poisson resamples, and the number of these."""
    found = slot_interval(truth(run_path, key[:1]), read_detections(Run(as_path(run_path)), VALIDATION, step), query)
    return found.value, found.low, found.high, found.samples


@st.cache_data(max_entries=32, show_spinner=SPINNER)
def slots(run_path: str, step: int, key: Stamp) -> pd.DataFrame:
    """What every slot of the student does."""
    return slot_table(last_layer(run_path, step, "student", key))


@st.cache_data(max_entries=64, show_spinner=False)
def served(run_path: str, step: int, by: str, key: Stamp) -> pd.DataFrame:
    """Classes or sizes of the targets of each slot."""
    return slot_serves(last_layer(run_path, step, "student", key), target_frame(truth(run_path, key[:1])), by)


@st.cache_data(max_entries=16, show_spinner="Comparing the answers ...")
def gains(run: tuple[str, int, Stamp], baseline: tuple[str, int, Stamp]) -> pd.DataFrame:
    """Gain of every target over the baseline at the same step."""
    return target_gain(last_layer(*run[:2], "student", run[2]), last_layer(*baseline[:2], "student", baseline[2]), run[1])


@st.cache_data(max_entries=64, show_spinner="Resampling the images ...")
def ap_interval(run_path: str, split: str, step: int, key: Stamp) -> tuple[float, float]:
    """Ends of the 95 % interval of AP."""
    found = bootstrap_ap(truth(run_path, key[:1], split), read_detections(Run(as_path(run_path)), split, step))
    return found.low, found.high


@st.cache_data(max_entries=64, show_spinner="Comparing the answers ...")
def run_gain(run: tuple[str, int, Stamp], baseline: tuple[str, int, Stamp]) -> dict[str, float]:
    """Mean gain over all targets with its interval."""
    found = mean_gain(gains(run, baseline)).rename(columns={"low": "gain_low", "high": "gain_high", "n": "gain_n"})
    return {name: float(found[name].iloc[0]) for name in ("gain", "gain_low", "gain_high", "gain_n")} if len(found) else {}


@st.cache_data(max_entries=16, show_spinner="Comparing the answers ...")
def slot_gains(run: tuple[str, int, Stamp], baseline: tuple[str, int, Stamp]) -> pd.DataFrame:
    """Mean gain of every slot."""
    return slot_gain(gains(run, baseline))


@st.cache_data(max_entries=16, show_spinner="Comparing the answers ...")
def properties(run: tuple[str, int, Stamp], baseline: tuple[str, int, Stamp]) -> pd.DataFrame:
    """Every target's gain beside what was known of it before training."""
    teacher, before = last_layer(*run[:2], "teacher", run[2]), last_layer(*baseline[:2], "student", baseline[2])
    return target_properties(gains(run, baseline), teacher, before, target_frame(truth(run[0], run[2][:1])))


@st.cache_data(max_entries=16, show_spinner="Correlating ...")
def correlations(run: tuple[str, int, Stamp], baseline: tuple[str, int, Stamp]) -> pd.DataFrame:
    """Rank correlation of each property with gain."""
    return rank_correlations(properties(run, baseline))


@st.cache_resource(max_entries=4, show_spinner="Reading the matchings ...")
def _matched(run_path: str, key: Stamp) -> tuple[pd.DataFrame, Identity]:
    """Matched rows of the student at every evaluation, and what makes a query the same at two of them."""
    run = Run(as_path(run_path))
    columns = [*NEEDED, *BOX]
    rows = read_queries(run, VALIDATION, run.query_steps(VALIDATION), columns, "model = 'student'", matched=True)
    return rows, identity_over_steps(run, VALIDATION, rows)


@st.cache_data(max_entries=32, show_spinner="Comparing with the teacher ...")
def agreement_by_slice(run_path: str, by: str, key: Stamp) -> pd.DataFrame:
    """Agreement with the teacher at the last evaluation and layer, by class or size of the targets; empty without a teacher."""
    run = Run(as_path(run_path))
    if not is_complete(run.queries_path(VALIDATION, TEACHER_STEP)):
        return pd.DataFrame(columns=["step", "layer", by, "agreement", "low", "high", "n", "images"])
    steps = [TEACHER_STEP, *run.query_steps(VALIDATION)[-1:]]
    pairs = teacher_agreement(read_queries(run, VALIDATION, steps, NEEDED, matched=True))
    return agreement_by(pairs[pairs["layer"] == pairs["layer"].max()], by, target_frame(truth(run_path, key[:1])))


@st.cache_data(max_entries=64, show_spinner="Comparing the seeds ...")
def found_by_pair(first: tuple[str, int, Stamp], second: tuple[str, int, Stamp]) -> pd.DataFrame:
    """How many targets both of two runs find."""
    rows = [read_queries(Run(as_path(path)), VALIDATION, [step], ["image_id", "layer", "match", "label", "match_iou"],
                         "model = 'student'", matched=True) for path, step, _ in (first, second)]  # fmt: skip
    return found_by_both(rows[0], rows[1], target_frame(truth(first[0], first[2][:1])))


@st.cache_data(max_entries=32, show_spinner="Counting changes ...")
def churn_by_layer(run_path: str, key: Stamp) -> pd.DataFrame:
    """Churn between evaluations by step and layer."""
    rows, identity = _matched(run_path, key)
    return stability_by(image_counts(rows, layers="all", identity=identity))


@st.cache_data(max_entries=32, show_spinner="Counting changes ...")
def churn_by(run_path: str, by: str, key: Stamp) -> pd.DataFrame:
    """Churn between evaluations by class or size of the targets."""
    rows, identity = _matched(run_path, key)
    return pooled_by(image_counts(rows, identity=identity, targets=target_frame(truth(run_path, key[:1])), by=by), by)
