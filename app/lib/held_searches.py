"""Holds what was read of searches in memory until their journals change. The library computes everything."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import pandas as pd
import streamlit as st

from workbench.analysis.of_run import stamp
from workbench.search import shown
from workbench.search.plan import SearchPlan
from workbench.search.records import TrialRecord, noise
from workbench.search.stages import Cost, Stage, stages, total_cost
from workbench.search.study import SearchStudy

# the study of Optuna reads only what a journal has grown by, and is not made for two readers at a time
_READING = Lock()
TABLES: Mapping[str, Callable[[list[TrialRecord]], Any]] = {
    "trials": shown.trial_table, "rungs": shown.rung_table, "leaders": shown.leader_table, "means": shown.mean_table,
    "survivors": shown.survivor_table, "space": shown.space_table, "calibration": shown.calibration_table,
    "rejections": shown.rejection_table, "cost": shown.cost_table, "noise": noise,
}  # fmt: skip


@dataclass(frozen=True)
class Moment:
    """A search as it was when its journal had a certain length.

    Attributes:
        folder: Folder of the search.
        key: Stamp of its files; another one as soon as they change.
    """

    folder: Path
    key: str


@dataclass(frozen=True)
class Read:
    """What was read of a search.

    Attributes:
        plan: What is searched.
        records: The trials of each study, behind them its repeats.
        stages: How far each study has come.
        cost: What the search has cost and will cost.
    """

    plan: SearchPlan
    records: dict[str, list[TrialRecord]]
    stages: dict[str, Stage]
    cost: Cost


def moment(folder: Path) -> Moment:
    """Returns a search as it is now."""
    return Moment(folder, stamp(folder / "study.json", folder / "journal.log"))


def read(at: Moment) -> Read:
    """Returns the trials of a search; of a journal that has grown only the new lines are read.

    Raises:
        RunError: the journal cannot be read.
    """
    return _read(str(at.folder), at.key)


@st.cache_resource(max_entries=8, show_spinner="Reading the journal ...")
def _read(folder: str, key: str) -> Read:
    with _READING:
        search = _opened(folder, stamp(Path(folder) / "study.json"))
        records = {name: list(search.records(name)) for name in search.studies}
        return Read(search.plan, records, {one.study: one for one in stages(search)}, total_cost(search))


@st.cache_resource(max_entries=4, show_spinner=False)
def _opened(folder: str, key: str) -> SearchStudy:
    return SearchStudy.read(Path(folder))


def table(at: Moment, study: str, name: str) -> Any:
    """Returns one of ``TABLES`` of a study. Pages share it and never change it."""
    return _table(str(at.folder), at.key, study, name)


@st.cache_resource(max_entries=64, show_spinner=False)
def _table(folder: str, key: str, study: str, name: str) -> Any:
    return TABLES[name](_read(folder, key).records[study])


def everything(at: Moment) -> list[TrialRecord]:
    """Returns the trials of all studies."""
    return [record for records in read(at).records.values() for record in records]


def all_searches(folders: list[Path]) -> pd.DataFrame:
    """Returns what each search is, without its trials."""
    return pd.DataFrame([shown.listed(folder) for folder in folders])


def details(at: Moment, record: TrialRecord) -> shown.Details | None:
    """Returns what the candidate of a trial is: equation, code and the entry of a recipe; None if its choices leave nothing.

    Raises:
        RunError: this version lacks one of its operations.
    """
    return shown.details(read(at).plan, record)
