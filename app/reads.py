"""Reads that are kept until the files they came from change."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from workbench.analysis.of_run import open_data
from workbench.analysis.report.summary import table
from workbench.datasets.base import Dataset
from workbench.errors import DataError, RunError
from workbench.remote import as_path
from workbench.store.queries import TEACHER_STEP, read_queries
from workbench.store.run import Run
from workbench.store.states import read_masks
from workbench.views import caches_and_runs as storage
from workbench.views import stability, training
from workbench.views.catalog import VALIDATION, lies_below, time_of
from workbench.views.overview import layer_points, progress_points

Stamp = tuple[tuple[str, float, int], ...]


def stamp(*paths: Path) -> Stamp:
    """Names and times of files: the key under which what was read from them is kept."""
    return tuple((str(path), *time_of(path)) for path in paths)


@st.cache_resource(max_entries=8, show_spinner="Opening the data ...")
def _dataset(_info: dict[str, Any], split: str, key: str) -> Dataset:
    return open_data(_info, split)


def dataset(info: dict[str, Any], split: str = VALIDATION) -> Dataset:
    """A split of the data of a run, given its ``run.json``; opened once for all runs on the same data."""
    return _dataset(info, split, json.dumps([info["recipe"]["data"], info.get("dataset_hash")], sort_keys=True))


def pixels(info: dict[str, Any], data: Dataset, number: int) -> np.ndarray:
    """One image of a run's data, ``[H, W, 3]`` uint8, by its position from 0.

    Raises:
        DataError: its file is a link that leads out of the folder of the data.
    """
    folder = Path(info["recipe"]["data"]["path"])
    if data.paths is not None and not lies_below(data.paths[number], folder):
        name = data.records[number].file_name
        raise DataError(f"{name} is a link that leads out of {folder}. Only files below it are shown: copy it there.")
    return data.image(number)


@st.cache_data(max_entries=256, show_spinner=False)
def image_queries(run_path: str, step: int, image_id: int, key: Stamp) -> pd.DataFrame:
    """Rows of the query table of one image at one step, those of the teacher included where there are any."""
    run = Run(as_path(run_path))
    steps = [step, *([TEACHER_STEP] if run.queries_path(VALIDATION, TEACHER_STEP).exists() else [])]
    return read_queries(run, VALIDATION, steps, where="image_id = $image", parameters={"image": image_id})


@st.cache_data(max_entries=256, show_spinner=False)
def image_masks(run_path: str, step: int, image_id: int, key: Stamp) -> dict[tuple[int, int], np.ndarray]:
    """Selection masks of one image by layer and level, of the teacher at its own step; none for images and steps that were not kept."""
    try:
        return read_masks(Run(as_path(run_path)), VALIDATION, step, image_id)
    except RunError:
        return {}


def run_stamp(run: Run) -> Stamp:
    """Changes with every evaluation of a run, and with its state."""
    return stamp(run.info_path, run.evaluations_path, *(run.queries_path(VALIDATION, step) for step in run.query_steps(VALIDATION)))


@st.cache_data(max_entries=256, show_spinner="Reading the queries ...")
def progress(run_path: str, key: Stamp) -> pd.DataFrame:
    """AP and stability of a run by evaluation."""
    return progress_points(Run(as_path(run_path)))


@st.cache_data(max_entries=256, show_spinner=False)
def agreement(run_path: str, key: Stamp) -> pd.DataFrame:
    """Agreement of a run with its teacher by evaluation, at the last layer; empty without a teacher."""
    return stability.agreement_points(Run(as_path(run_path)))


@st.cache_data(max_entries=256, show_spinner=False)
def layers(run_path: str, key: Stamp) -> pd.DataFrame:
    """Stability of a run between decoder layers."""
    return layer_points(Run(as_path(run_path)))


@st.cache_data(max_entries=64, show_spinner="Reading the runs ...")
def summary(run_paths: tuple[str, ...], key: tuple[Stamp, ...]) -> pd.DataFrame:
    """The summary table of some runs and their teachers."""
    return table([Run(as_path(path)) for path in run_paths], with_teacher=True)


@st.cache_data(max_entries=64, show_spinner=False)
def training_lines(run_path: str, key: Stamp) -> tuple[pd.DataFrame, int]:
    """What a run logged, thinned to what a page can draw, and how many lines each row is the mean of."""
    return training.thinned(training.training_lines(Run(as_path(run_path))))


@st.cache_data(max_entries=256, show_spinner=False)
def student_layers(run_path: str, key: Stamp) -> list[int]:
    """Decoder layers of a run's student, in order."""
    run = Run(as_path(run_path))
    last = run.query_steps(VALIDATION)[-1:]
    return sorted(read_queries(run, VALIDATION, last, ["layer"], "model = 'student' and query = 0")["layer"].unique().tolist())


@st.cache_data(max_entries=16, show_spinner="Reading the matchings ...")
def held(run_path: str, layer: int, key: Stamp) -> pd.DataFrame:
    """Which query of a layer held each target at each evaluation."""
    run = Run(as_path(run_path))
    columns = ["step", "image_id", "query", "source", "match", "score", "match_iou"]
    where = "model = 'student' and layer = $layer"
    return stability.held(read_queries(run, VALIDATION, run.query_steps(VALIDATION), columns, where, {"layer": layer}, matched=True))


@st.cache_data(max_entries=256, show_spinner=False)
def holders(run_path: str, image_id: int, target: int, layer: int, key: Stamp) -> pd.DataFrame:
    """Rows of the queries that held one target, by step."""
    run = Run(as_path(run_path))
    where = "model = 'student' and image_id = $image and match = $target and layer = $layer"
    return read_queries(run, VALIDATION, run.query_steps(VALIDATION), None, where, {"image": image_id, "target": target, "layer": layer})


@st.cache_data(max_entries=4096, ttl=60, show_spinner="Measuring the folders ...")
def sizes(run_path: str) -> dict[str, int]:
    """Bytes of a run by part."""
    return storage.sizes(as_path(run_path))
