"""Holds what was read of searches in memory until their journals change. The library computes everything."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from workbench.analysis.of_run import stamp
from workbench.search.reader import Read, SearchReader
from workbench.search.shown import TABLES, Details, details, listed
from workbench.views import search as views

FIGURES: Mapping[str, tuple[Callable[..., go.Figure], tuple[str, ...]]] = {
    "trials": (views.trials_figure, ("trials", "rungs", "leaders")),
    "survivors": (views.survivors_figure, ("survivors",)),
}
"""Figures that take long to make, with the tables that they draw."""


@dataclass(frozen=True)
class Moment:
    """A search as it was when its journal had a certain length.

    Attributes:
        folder: Folder of the search.
        key: Stamp of its files; another one as soon as they change.
    """

    folder: Path
    key: str


def moment(folder: Path) -> Moment:
    """Returns a search as it is now."""
    return Moment(folder, stamp(folder / "study.json", folder / "journal.log"))


def read(at: Moment) -> Read:
    """Returns the trials of a search.

    Raises:
        RunError: the journal cannot be read.
    """
    return _read(str(at.folder), at.key)


@st.cache_resource(max_entries=8, show_spinner="Reading the journal ...")
def _read(folder: str, key: str) -> Read:
    return _reader(folder, stamp(Path(folder) / "study.json")).read()


@st.cache_resource(max_entries=4, show_spinner=False)
def _reader(folder: str, key: str) -> SearchReader:
    return SearchReader(Path(folder))


def table(at: Moment, study: str, name: str) -> Any:
    """Returns one of ``TABLES`` of a study. Pages share it and never change it."""
    return _table(str(at.folder), at.key, study, name)


@st.cache_resource(max_entries=64, show_spinner=False)
def _table(folder: str, key: str, study: str, name: str) -> Any:
    return TABLES[name](_read(folder, key).records[study])


def figure(at: Moment, study: str, name: str) -> go.Figure:
    """Returns one of the figures of a study that depend on its trials alone. Pages share it."""
    return _figure(str(at.folder), at.key, study, name)


@st.cache_resource(max_entries=32, show_spinner=False)
def _figure(folder: str, key: str, study: str, name: str) -> go.Figure:
    function, names = FIGURES[name]
    return function(*(_table(folder, key, study, one) for one in names))


def all_searches(folders: list[Path]) -> pd.DataFrame:
    """Returns what each search is, without its trials."""
    return pd.DataFrame([listed(folder) for folder in folders])


def trial_details(at: Moment, study: str, number: int) -> Details:
    """Returns what a trial trained, with equation, code and the entry of a recipe.

    Raises:
        RunError: this version lacks one of its operations.
    """
    found = read(at)
    return details(found.plan, next(one for one in found.records[study] if one.number == number and not one.repeat))
