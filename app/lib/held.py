"""Holds results in memory until the files they were read from change. The library computes them and documents each one."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from workbench.analysis.of_run import RunData, RunSplit, stamp
from workbench.analysis.report.answer import Answer, answer, first_cause
from workbench.analysis.report.summary import table
from workbench.analysis.results.of_runs import Results
from workbench.errors import DataError
from workbench.store.run import Run
from workbench.views import caches_and_runs, overview, stability, training, training_compared
from workbench.views.catalog import lies_below

ANALYSING, READING, COMPARING = "Analysing the detections ...", "Reading the queries ...", "Comparing the queries ..."


def _copied(entries: int, spinner: Any, time: bool = False) -> Callable[..., Any]:
    """Returns a cache that gives each page its own copy of a result."""
    return st.cache_data(max_entries=entries, show_spinner=spinner, show_time=time)


def _shared(entries: int, spinner: Any, time: bool = False) -> Callable[..., Any]:
    """Returns a cache whose results all pages share and never change, because copying a million rows for each page would be slow."""
    return st.cache_resource(max_entries=entries, show_spinner=spinner, show_time=time)


_analysed = partial(_copied, 32, ANALYSING, True)
RESULTS = Results({
    "described": _copied(256, False), "opened": _shared(8, "Opening the data ..."), "opened_truth": _shared(8, "Opening the data ..."),
    "opened_mask_truth": _shared(4, "Opening the data ..."),
    "errors": _shared(4, ANALYSING, True), "confident_errors": _shared(4, ANALYSING, True), "class_pairs": _shared(4, ANALYSING, True),
    "error_costs": _analysed(), "confusion": _analysed(), "slices": _analysed(), "kitti": _analysed(), "calibration": _analysed(),
    "compared_confusion": _copied(16, ANALYSING, True), "cell_pairs": _copied(32, False),
    "boxes": _shared(8, READING), "compared_images": _shared(32, READING), "compared_targets": _shared(16, COMPARING),
    "found_cells": _copied(32, COMPARING), "lost_shares": _copied(32, COMPARING), "lost_outcomes": _copied(32, COMPARING),
    "compared_lost": _copied(32, COMPARING), "nearest_boxes": _copied(256, False),
    "compared_errors": _copied(32, "Comparing the errors ...", True),
    "behind": _copied(64, ANALYSING, True), "wrong": _copied(256, False),
    "ap_interval": _copied(64, "Resampling the images ...", True), "ap_resamples": _copied(256, "Resampling the images ...", True),
    "all_queries": _shared(4, READING), "matched_queries": _shared(8, READING), "slot_heatmaps": _shared(8, READING),
    "slot_drops": _analysed(), "slots": _analysed(), "slot_serves": _copied(64, False),
    "slot_drop_interval": _copied(64, "Resampling the images ...", True),
    "gains": _copied(16, COMPARING), "mean_gain": _copied(64, COMPARING), "slot_gains": _copied(16, COMPARING),
    "properties": _copied(16, COMPARING), "correlations": _copied(16, "Correlating ...", True),
    "matched_over_steps": _shared(4, "Reading the matchings ..."),
    "churn_by_layer": _copied(32, "Counting changes ..."), "churn_by": _copied(32, "Counting changes ..."),
    "explained_changes": _shared(4, "Explaining the changes ...", True), "churn_by_cause": _copied(64, False),
    "unsettled_targets": _copied(16, False), "unsettled_causes": _copied(64, False),
    "finders": _copied(256, ANALYSING, True), "found_by_churn": _copied(32, False), "found_by_churn_by": _copied(64, False),
    "agreement_by": _copied(32, "Comparing with the teacher ..."), "found_by_both": _copied(64, "Comparing the seeds ..."),
    "student_layers": _copied(256, False), "holders": _copied(256, False),
    "image_queries": _copied(256, False), "image_masks": _copied(256, False),
    "diagnosis": _copied(32, "Looking for causes ...", True), "verdicts": _copied(32, "Comparing the arms ...", True),
})  # fmt: skip


def pixels(data: RunData, number: int) -> np.ndarray:
    """Returns one image of a run's split, ``[H, W, 3]`` uint8, by its position from 0.

    Raises:
        DataError: the file is a link that leads out of the dataset's folder.
    """
    dataset, folder = RESULTS.dataset(data), Path(json.loads(RESULTS.described(data))["recipe"]["data"]["path"])
    if dataset.paths is not None and not lies_below(dataset.paths[number], folder):
        name = dataset.records[number].file_name
        raise DataError(f"{name} is a link that leads out of {folder}. Only files in that folder are shown. Copy the file there.")
    return dataset.image(number)


@st.cache_data(max_entries=256, show_spinner=READING)
def progress(split: RunSplit) -> pd.DataFrame:
    """Returns AP and match stability of a run at each evaluation."""
    return overview.progress_points(split.run, split.split, RESULTS)


@st.cache_data(max_entries=256, show_spinner=False)
def agreement(split: RunSplit) -> pd.DataFrame:
    """Returns the agreement of a run with its teacher at each evaluation, on the last layer; empty if there is no teacher."""
    return stability.agreement_points(split.run, split.split)


@st.cache_data(max_entries=256, show_spinner=False)
def layers(split: RunSplit) -> pd.DataFrame:
    """Returns the match stability of a run between decoder layers."""
    return overview.layer_points(split.run, split.split)


@st.cache_data(max_entries=64, show_spinner="Reading the runs ...")
def runs_table(splits: tuple[RunSplit, ...]) -> pd.DataFrame:
    """Returns the summary table of runs and their teachers, with the query statistics of one split."""
    return table([split.run for split in splits], splits[0].split, True, RESULTS)


@st.cache_data(max_entries=16, show_spinner="Reading the matchings ...")
def held_targets(split: RunSplit, layer: int) -> pd.DataFrame:
    """Returns the query of a layer that each target was matched to at each evaluation."""
    return stability.held(RESULTS.held_rows(split, layer))


def answers(runs: Sequence[Run]) -> list[Answer]:
    """Returns whether distillation helped each arm of these runs, and of a lone arm what held it back."""
    return _answers(tuple(stamp(run.info_path, run.evaluations_path) for run in runs), runs)


@st.cache_data(max_entries=16, show_spinner="Comparing the arms ...", show_time=True)
def _answers(key: tuple[str, ...], _runs: Sequence[Run]) -> list[Answer]:
    return answer(_runs, RESULTS, first_cause(_runs, RESULTS))


def training_lines(run: Run) -> tuple[pd.DataFrame, int]:
    """Returns the logged values of a run, averaged to as many rows as a page can draw, and the number of log lines per row."""
    return _training_lines(str(run.path), stamp(run.metrics_path, run.timings_path), run)


@st.cache_data(max_entries=64, show_spinner=False)
def _training_lines(path: str, key: str, _run: Run) -> tuple[pd.DataFrame, int]:
    return training.thinned(training.training_lines(_run))


def compared_curves(runs: Sequence[Run], window: int) -> tuple[pd.DataFrame, int]:
    """Returns the logged curves of several runs as one frame, and the most log lines that a row is averaged of."""
    found = {run.name: training_lines(run) for run in runs}
    lines = {name: own for name, (own, _) in found.items() if not own.empty}
    return training_compared.curves(lines, window), max(together for _, together in found.values())


def sizes(run: Run) -> dict[str, int]:
    """Returns the size in bytes of each part of a run."""
    return _sizes(str(run.path), run)


@st.cache_data(max_entries=4096, ttl=60, show_spinner="Measuring the folders ...")
def _sizes(path: str, _run: Run) -> dict[str, int]:
    return caches_and_runs.sizes(_run.path)
