"""What the pages share: the state of a page in its address, banners, and reads that are kept until a file changes.

Names of runs and classes are data: they go into tables, text and options, which show characters, never into markdown.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import streamlit as st

from workbench.analysis.summary import table
from workbench.cache.queries import TEACHER_STEP, read_queries
from workbench.cache.states import read_masks
from workbench.datasets import Dataset
from workbench.errors import RunError
from workbench.runs import Run, runs_root
from workbench.views.catalog import VALIDATION, Entry, catalog, open_data
from workbench.views.overview import layer_points, progress_points

REFRESH_SECONDS = 5
T = TypeVar("T")


def choose(key: str, options: Sequence[T], default: T) -> T:
    """Sees to it that the widget ``key`` starts with what the address says, or ``default``, and never with a value that is not offered.

    Call it before the widget, and ``write_address`` once all widgets are made.
    """
    known = {str(option): option for option in options}
    asked = st.session_state.get(key, st.query_params.get(key))
    st.session_state[key] = known.get(str(asked), default)
    return st.session_state[key]


def choose_number(key: str, low: float, high: float, default: float) -> float:
    """``choose`` for numbers between two ends."""
    value = st.session_state.get(key)
    if value is None:
        try:
            value = float(st.query_params.get(key, default))
        except ValueError:
            value = default
    # also false for NaN
    st.session_state[key] = value if low <= value <= high else default
    return st.session_state[key]


def choose_several(key: str, options: Sequence[str], default: Sequence[str]) -> list[str]:
    """``choose`` for any number of names."""
    value = st.session_state.get(key)
    if value is None:
        value = st.query_params.get_all(key) if key in st.query_params else default
    st.session_state[key] = [name for name in value if name in options]
    return st.session_state[key]


def write_address(**state: Any) -> None:
    """Puts the state of the page into the address, so that a link opens the same view."""
    st.query_params.from_dict({key: [str(v) for v in value] if isinstance(value, list) else str(value) for key, value in state.items()})


def usable_runs() -> list[Entry]:
    """The runs that can be shown; a banner names the others. Ends the page where there is none."""
    root = runs_root()
    entries = catalog(root)
    usable = [entry for entry in entries if not entry.problem]
    for entry in entries:
        if entry.problem:
            banner("warning", "A run cannot be shown", f"{entry.run.name}: {entry.problem}")
    if not usable:
        st.subheader("No runs yet", anchor=False)
        st.caption("This page shows the runs of the folder below, and looks for them every few seconds. One of these commands makes some:")
        st.code(f"workbench demo --runs {root.resolve()}\nworkbench run shapes --runs {root.resolve()}", language=None)
        _wait_for_a_run(root)
        st.stop()
    return usable


@st.fragment(run_every=REFRESH_SECONDS)
def _wait_for_a_run(root: Path) -> None:
    if any(not entry.problem for entry in catalog(root)):
        st.rerun()


def banner(kind: str, title: str, detail: str) -> None:
    """A warning that does not end the page; ``detail`` is shown as text."""
    {"warning": st.warning, "error": st.error, "info": st.info}[kind](title, icon=":material/info:")
    st.text(detail)


def stamp(*paths: Path) -> tuple[tuple[str, int], ...]:
    """Names and times of files: the key under which what was read from them is kept."""
    return tuple((str(path), path.stat().st_mtime_ns if path.exists() else 0) for path in paths)


@st.cache_resource(max_entries=8, show_spinner="Opening the data ...")
def _dataset(_info: dict[str, Any], key: str) -> Dataset:
    return open_data(_info)


def dataset(info: dict[str, Any]) -> Dataset:
    """The validation data of a run, given its ``run.json``; opened once for all runs on the same data."""
    return _dataset(info, json.dumps([info["recipe"]["data"], info.get("dataset_hash")], sort_keys=True))


@st.cache_data(max_entries=256, show_spinner=False)
def image_queries(run_path: str, step: int, image_id: int, key: tuple[tuple[str, int], ...]) -> pd.DataFrame:
    """Rows of the query table of one image at one step, those of the teacher included where there are any."""
    run = Run(Path(run_path))
    steps = [step, *([TEACHER_STEP] if run.queries_path(VALIDATION, TEACHER_STEP).exists() else [])]
    return read_queries(run, VALIDATION, steps, where="image_id = $image", parameters={"image": image_id})


@st.cache_data(max_entries=256, show_spinner=False)
def image_masks(run_path: str, image_id: int, key: tuple[tuple[str, int], ...]) -> dict[tuple[int, int], np.ndarray]:
    """Selection masks of one image by layer and level; none for images that were not sampled and runs without a teacher."""
    try:
        return read_masks(Run(Path(run_path)), VALIDATION, TEACHER_STEP, image_id)
    except RunError:
        return {}


def run_stamp(run: Run) -> tuple[tuple[str, int], ...]:
    """Changes with every evaluation of a run, and with its state."""
    return stamp(run.info_path, run.evaluations_path, *(run.queries_path(VALIDATION, step) for step in run.query_steps(VALIDATION)))


@st.cache_data(max_entries=256, show_spinner="Reading the queries ...")
def progress(run_path: str, key: tuple[tuple[str, int], ...]) -> pd.DataFrame:
    """AP and stability of a run by evaluation."""
    return progress_points(Run(Path(run_path)))


@st.cache_data(max_entries=256, show_spinner=False)
def layers(run_path: str, key: tuple[tuple[str, int], ...]) -> pd.DataFrame:
    """Stability of a run between decoder layers."""
    return layer_points(Run(Path(run_path)))


@st.cache_data(max_entries=64, show_spinner="Reading the runs ...")
def summary(run_paths: tuple[str, ...], key: tuple[tuple[tuple[str, int], ...], ...]) -> pd.DataFrame:
    """The summary table of some runs and their teachers."""
    return table([Run(Path(path)) for path in run_paths], with_teacher=True)
