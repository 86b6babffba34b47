"""Lists the runs of a folder, and says of those that cannot be shown why."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError

from workbench.analysis.derived import kept_json
from workbench.analysis.report.summary import result_of
from workbench.errors import WorkbenchError
from workbench.files import time_of
from workbench.remote import is_remote
from workbench.store.groups import DISTILLED, EQUAL_COMPUTE, EQUAL_STEPS, UNDISTILLED
from workbench.store.labels import NO_LABELS, Labels, read_labels
from workbench.store.links import lies_below, link_that_leads_out
from workbench.store.run import Run

# errors that reading a damaged file of a run can raise: tables, states and all others
DAMAGED = (duckdb.Error, pa.ArrowException, SafetensorError, OSError)
LONG_LOGS = 100_000  # bytes of logs from which on it is worth keeping what they say
VALIDATION = "val"  # name, in the files of a run, of the split on which choices are made, whatever the data calls it


@dataclass(frozen=True)
class Entry:
    """One run of the catalog.

    Attributes:
        run: the run's directory.
        recipe: name of the recipe; arm, seed and schedule identify the run within a comparison.
        state: running, done, interrupted, failed, or stopped (neither finished nor being written).
        steps: number of steps of the whole schedule.
        step: last logged step.
        created: time of creation, as text that sorts.
        problem: reason why the run cannot be shown, otherwise "".
        error: error that ended a failed run, otherwise "".
        data: hash of the training data; runs of one recipe on other data belong to another comparison.
        dataset: name of the data.
        family: family of the student.
        ap: AP (0..1) of the evaluation that represents the run; None before the first.
        split: split of that AP.
        labels: tags and note of the run, and whether it was archived.
    """

    run: Run
    recipe: str = ""
    arm: str = ""
    seed: int = 0
    schedule: str = ""
    state: str = ""
    steps: int = 0
    step: int = 0
    created: str = ""
    problem: str = ""
    error: str = ""
    data: str = ""
    dataset: str = ""
    family: str = ""
    ap: float | None = None
    split: str = ""
    labels: Labels = NO_LABELS

    @property
    def title(self) -> str:
        """Returns the name for a list, with the state and progress of a run that is not done."""
        return self.run.name if self.state == "done" else f"{self.run.name} · {self.state} {self.step}/{self.steps}"


def catalog(root: Path) -> list[Entry]:
    """Returns every run below ``root``, ordered by recipe, seed, schedule and arm; runs that cannot be shown come last."""
    folders = sorted(path for path in root.iterdir() if (path / "run.json").is_file()) if root.is_dir() else []
    entries = [_entry(Run(path)) for path in folders]
    return sorted(entries, key=_order)


def latest_comparison(entries: Sequence[Entry]) -> list[Entry]:
    """Returns the runs of the newest comparison, the newest of each arm and schedule, in the order of the catalog.

    They have recipe, data and seed of the newest distilled run that has an undistilled one beside it. Without such a run they have those
    of the newest distilled run, else of the newest run.
    """
    compared = {(entry.recipe, entry.data) for entry in entries if entry.arm == UNDISTILLED}
    taught = [entry for entry in entries if entry.arm != UNDISTILLED]
    newest = max([entry for entry in taught if (entry.recipe, entry.data) in compared] or taught or entries, key=_created)
    same = [entry for entry in entries if (entry.recipe, entry.data, entry.seed) == (newest.recipe, newest.data, newest.seed)]
    latest: dict[tuple[str, str], Entry] = {}
    for entry in sorted(same, key=_created):
        latest[entry.arm, entry.schedule] = entry
    return [entry for entry in same if latest[entry.arm, entry.schedule] is entry]


def opening_run(entries: Sequence[Entry]) -> Entry:
    """Returns the run that pages open on: of the newest comparison a distilled run, one that is done and at equal steps if there is one,
    the recipe's own arm before others.
    """
    return min(latest_comparison(entries), key=lambda entry: (
        entry.arm == UNDISTILLED, entry.state != "done", entry.schedule != EQUAL_STEPS, entry.arm != DISTILLED))  # fmt: skip


def finished(entries: Sequence[Entry]) -> list[Entry]:
    """Returns the newest finished run of each recipe, data, arm, schedule and seed, in the order of the entries."""
    newest: dict[tuple[str, str, str, str, int], Entry] = {}
    for entry in sorted((entry for entry in entries if entry.state == "done"), key=_created):
        newest[entry.recipe, entry.data, entry.arm, entry.schedule, entry.seed] = entry
    return [entry for entry in entries if newest.get((entry.recipe, entry.data, entry.arm, entry.schedule, entry.seed)) is entry]


def comparisons(chosen: Sequence[Entry], entries: Sequence[Entry]) -> list[list[Run]]:
    """Returns, for each recipe and data of the distilled runs among the chosen ones, the finished runs of the chosen and undistilled arms.

    Args:
        chosen: runs whose arms are compared.
        entries: all runs, from which every seed of these arms is taken.
    """
    arms = {(entry.recipe, entry.data): {UNDISTILLED} for entry in chosen if entry.arm != UNDISTILLED}
    for entry in chosen:
        arms.get((entry.recipe, entry.data), set()).add(entry.arm)
    done = finished(entries)
    return [[own.run for own in done if (own.recipe, own.data) == key and own.arm in names] for key, names in arms.items()]


def baseline_of(entry: Entry, entries: Sequence[Entry], pinned: str | None = None) -> Entry | None:
    """Returns the run that a run is compared with: the pinned one, else the undistilled run of the same recipe, data and seed.

    Of several undistilled runs it is one with as many steps if there is one, then the newest. A pinned run counts only for other runs on
    the same data.

    Args:
        entry: the run.
        entries: the runs to take it from.
        pinned: name of the pinned run, of ``sets.read_sets``.

    Returns:
        None if there is no such run.
    """
    for other in entries:
        if other.run.name == pinned and other.data == entry.data and pinned != entry.run.name:
            return other
    wanted = (entry.recipe, entry.data, entry.seed, UNDISTILLED)
    same = [other for other in entries if (other.recipe, other.data, other.seed, other.arm) == wanted]
    same = [other for other in same if other.run.name != entry.run.name]
    return max(same, key=lambda other: (other.steps == entry.steps, other.created), default=None)


def _created(entry: Entry) -> str:
    return entry.created


def _order(entry: Entry) -> tuple[Any, ...]:
    schedule = (EQUAL_STEPS, EQUAL_COMPUTE).index(entry.schedule) if entry.schedule in (EQUAL_STEPS, EQUAL_COMPUTE) else 2
    return bool(entry.problem), entry.recipe, entry.seed, schedule, entry.arm != UNDISTILLED, entry.arm, entry.run.name


def _entry(run: Run) -> Entry:
    """Returns the run's current entry; its files are read again only if they have changed."""
    files = (run.info_path, run.metrics_path, run.timings_path, run.evaluations_path)
    entry = _read(run.path, tuple(time_of(path) for path in files))
    if (labelled := time_of(run.labels_path)) != (0, 0) and not entry.problem:
        entry = dataclasses.replace(entry, labels=_labels(run.path, labelled))
    return dataclasses.replace(entry, state="running", error="") if entry.state and run.is_running() else entry


@functools.lru_cache(maxsize=4096)
def _labels(path: Path, stamp: tuple[float, int]) -> Labels:
    try:
        return read_labels(Run(path))
    except WorkbenchError as error:  # a run is shown whatever has become of its labels
        return Labels(note=str(error))


class _Facts(BaseModel):
    """What is kept of a run that is done, by the names of ``Entry``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    recipe: str
    data: str
    arm: str
    seed: int
    schedule: str
    state: str
    steps: int
    step: int
    created: str
    error: str
    dataset: str
    family: str
    ap: float | None
    split: str


@functools.lru_cache(maxsize=4096)
def _read(path: Path, stamps: tuple[tuple[float, int], ...]) -> Entry:
    run = Run(path)
    if link := link_that_leads_out(path):
        return Entry(run, problem=f"{link} is a link that leads out of the folder of runs. Only files below it are shown. Copy them there.")
    try:
        if is_remote(path) or sum(size for _, size in stamps) < LONG_LOGS or run.info().get("state") != "done":
            return Entry(run, **_facts(run))
        # the logs of a run that is done do not change; validating thousands of lines of a hundred runs takes a server many seconds
        facts = kept_json(run, "catalog", [list(stamp) for stamp in stamps], lambda: _facts(run))
        return Entry(run, **_Facts.model_validate(facts).model_dump())
    except (WorkbenchError, ValidationError) as error:
        return Entry(run, problem=str(error))


def _facts(run: Run) -> dict[str, Any]:
    """Returns what the files of a run say of it, by the names of ``Entry``.

    Raises:
        WorkbenchError: a file is damaged. Damaged lines are reported here as a problem of the run, so that no page has to.
    """
    info = run.info()
    group = info["group"]
    lines = run.metrics()
    run.timings()
    result = result_of(run.evaluations(), info.get("best_step"))
    recorded = str(info.get("state", ""))
    state = recorded if recorded in ("done", "failed", "interrupted") else "stopped"
    return {
        "recipe": group["recipe"],
        "data": str(info.get("dataset_hash") or ""),
        "arm": group["arm"],
        "seed": group["seed"],
        "schedule": group["schedule"],
        "state": state,
        "steps": info["recipe"]["train"]["steps"],
        "step": lines[-1]["step"] if lines else 0,
        "created": info.get("created", ""),
        "error": str(info.get("error", "")) if state == "failed" else "",
        "dataset": str(info.get("dataset") or ""),
        "family": str(info["recipe"].get("student", {}).get("family", "")),
        "ap": result["coco"]["ap"] if result else None,
        "split": result["split"] if result else "",
    }


__all__ = ["DAMAGED", "VALIDATION", "Entry", "baseline_of", "catalog", "latest_comparison", "lies_below"]
