"""Analyses of a run's detections, and its matchings: made when a page first asks, kept until the files they came from change.

What takes long is kept in the run's ``derived/`` too, so that a server that is started anew has it at once.
"""

from typing import Any

import pandas as pd
import reads
import streamlit as st
from reads import Stamp

from workbench.analysis.derived import diagnosis_inputs, evaluation_hash, identity_over_steps, kept_frame, kept_json
from workbench.analysis.detection.ap_tests import changed_targets, compare_errors
from workbench.analysis.detection.bootstrap import bootstrap_ap
from workbench.analysis.detection.calibration import reliability
from workbench.analysis.detection.confusion import confusion_matrix, confusion_pairs
from workbench.analysis.detection.kitti_ap import kitti_ap
from workbench.analysis.detection.matches import Matches
from workbench.analysis.detection.slices import slices
from workbench.analysis.detection.targets import target_frame
from workbench.analysis.detection.tide import Error, Errors, error_table, find_errors, images_behind, queries_behind, rows_behind
from workbench.analysis.diagnosis.diagnose import diagnose
from workbench.analysis.diagnosis.findings import Diagnosis
from workbench.analysis.stability.agreement import agreement_by, teacher_agreement
from workbench.analysis.stability.churn import NEEDED, Identity
from workbench.analysis.stability.grouped import image_counts, pooled_by, stability_by
from workbench.analysis.stability.same_box import BOX
from workbench.analysis.stability.seeds import found_by_both
from workbench.remote import as_path
from workbench.store.detections import read_detections
from workbench.store.manifest import is_complete
from workbench.store.queries import TEACHER_STEP, read_queries
from workbench.store.run import Run
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


def inputs(run_path: str, step: int, split: str = VALIDATION) -> list[str]:
    """Hashes of what the analyses of one evaluation are made of: the data and what the run wrote."""
    run = Run(as_path(run_path))
    return [reads.dataset(run.info(), split).hash(), evaluation_hash(run, split, step)]


def at(run: Run, step: int) -> tuple[str, int, Stamp]:
    """What the functions below ask for."""
    return str(run.path), step, reads.stamp(run.info_path, run.detections_path(VALIDATION, step), run.queries_path(VALIDATION, step))


@st.cache_resource(max_entries=4, show_spinner=SPINNER, show_time=True)
def errors(run_path: str, step: int, key: Stamp) -> Errors:
    """Detections and targets with their error types."""
    return find_errors(truth(run_path, key[:1]), read_detections(Run(as_path(run_path)), VALIDATION, step))


@st.cache_data(max_entries=32, show_spinner=SPINNER, show_time=True)
def costs(run_path: str, step: int, key: Stamp) -> pd.DataFrame:
    """What each error type costs."""
    run = Run(as_path(run_path))
    return kept_frame(run, f"errors-{VALIDATION}-{step}", inputs(run_path, step), lambda: error_table(errors(run_path, step, key)))


@st.cache_data(max_entries=32, show_spinner="Comparing the errors ...", show_time=True)
def compared(seeds: tuple[int, int], baseline: tuple[str, int, Stamp], other: tuple[str, int, Stamp]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Verdicts on every error type, and the targets that became something else."""
    first, second = errors(*baseline), errors(*other)
    # one run a side: the seeds only name them
    verdicts = kept_frame(
        Run(as_path(other[0])), f"errors-against-{VALIDATION}-{other[1]}", [seeds, inputs(*baseline[:2]), inputs(*other[:2])],
        lambda: compare_errors({seeds[0]: first}, {seeds[1]: second}),
    )  # fmt: skip
    return verdicts, changed_targets(first, second)


@st.cache_data(max_entries=64, show_spinner=SPINNER, show_time=True)
def behind(run_path: str, step: int, error: Error, key: Stamp) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The images, and the query slots, with errors of a type."""
    found = errors(run_path, step, key)
    return images_behind(found, error), queries_behind(found, error)


@st.cache_data(max_entries=256, show_spinner=False)
def wrong(run_path: str, step: int, error: Error, image_id: int, key: Stamp) -> pd.DataFrame:
    """The errors of a type in one image, the best scores first."""
    return rows_behind(errors(run_path, step, key), error, image_id)


@st.cache_resource(max_entries=4, show_spinner=SPINNER, show_time=True)
def confused(run_path: str, step: int, key: Stamp) -> pd.DataFrame:
    """Pairs of target and detection, the best scores first."""
    pairs = confusion_pairs(truth(run_path, key[:1]), read_detections(Run(as_path(run_path)), VALIDATION, step))
    return pairs.sort_values("score", ascending=False, ignore_index=True)


@st.cache_data(max_entries=32, show_spinner=SPINNER, show_time=True)
def confusion(run_path: str, step: int, key: Stamp) -> pd.DataFrame:
    """Counts by class of the target and of the detection."""
    return confusion_matrix(confused(run_path, step, key), errors(run_path, step, key).classes)


@st.cache_data(max_entries=32, show_spinner=SPINNER, show_time=True)
def by_slice(run_path: str, step: int, key: Stamp) -> pd.DataFrame:
    """AP and recall by size, crowding and overlap."""
    run = Run(as_path(run_path))
    return kept_frame(
        run,
        f"slices-{VALIDATION}-{step}",
        inputs(run_path, step),
        lambda: slices(truth(run_path, key[:1]), read_detections(run, VALIDATION, step)),
    )


@st.cache_data(max_entries=32, show_spinner=SPINNER, show_time=True)
def kitti(run_path: str, step: int, key: Stamp) -> pd.DataFrame:
    """KITTI's AP by class and difficulty."""
    run = Run(as_path(run_path))
    return kept_frame(
        run,
        f"kitti-{VALIDATION}-{step}",
        inputs(run_path, step),
        lambda: kitti_ap(reads.dataset(run.info()), read_detections(run, VALIDATION, step), samples=300),
    )


@st.cache_data(max_entries=32, show_spinner=SPINNER, show_time=True)
def calibration(run_path: str, step: int, key: Stamp) -> pd.DataFrame:
    """Score against precision."""
    found = errors(run_path, step, key)
    return reliability(Matches(found.detections, found.targets, found.images, found.classes))


@st.cache_data(max_entries=32, show_spinner="Looking for causes ...", show_time=True)
def diagnosis(run_path: str, baseline_path: str | None, key: Stamp) -> Diagnosis:
    """Every cause looked for in a run."""
    run, baseline = (Run(as_path(path)) if path else None for path in (run_path, baseline_path))
    assert run
    made_of = [diagnosis_inputs(one, VALIDATION) for one in (run, baseline) if one]
    return Diagnosis.from_json(kept_json(run, f"diagnosis-{VALIDATION}", made_of, lambda: diagnose(run, baseline, VALIDATION).to_json()))


@st.cache_data(max_entries=64, show_spinner="Resampling the images ...", show_time=True)
def ap_interval(run_path: str, split: str, step: int, key: Stamp) -> tuple[float, float]:
    """Ends of the 95 % interval of AP."""
    run = Run(as_path(run_path))

    def made() -> pd.DataFrame:
        found = bootstrap_ap(truth(run_path, key[:1], split), read_detections(run, split, step))
        return pd.DataFrame({"low": [found.low], "high": [found.high]})

    low, high = kept_frame(run, f"ap-interval-{split}-{step}", inputs(run_path, step, split), made).iloc[0]
    return float(low), float(high)


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
