"""Keeps results of analysis that take seconds in ``derived/`` of the run until what they were computed from changes."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from workbench.analysis.defined import Number, require, undefined
from workbench.analysis.rows_of_run import identity_over_steps, step_columns
from workbench.analysis.stability.churn import CHURN_NEEDED, agreement, churn_over_layers, churn_over_steps, mean_quality
from workbench.errors import WorkbenchError
from workbench.files import hash_file, hash_json, read_json, replacing, write_json
from workbench.store.intact import check_hash, forget_hash, write_hash
from workbench.store.manifest import content_hash, is_complete
from workbench.store.queries import TEACHER_STEP, complete_steps, read_queries
from workbench.store.run import Run

logger = logging.getLogger(__name__)

DEFINITIONS = 1  # raise it when a definition changes, so that older results are computed again
_KEY = 16  # characters of the hash in a file's name
Name = Literal["churn_steps", "churn_layers", "teacher_churn_layers", "agreement", "quality", "teacher_quality"]
# what each frame needs to be defined; quality always is
_DEFINED_AS: dict[Name, Number] = {
    "churn_steps": "churn", "churn_layers": "layer churn", "teacher_churn_layers": "teacher layer churn", "agreement": "agreement",
}  # fmt: skip
_QUALITY = ("step", "model", "layer", "match", "quality")
# function that makes each frame, and the columns it needs: every column less saves a fifth of the time
_FRAMES: dict[Name, tuple[Callable[[pd.DataFrame], pd.DataFrame], tuple[str, ...]]] = {
    "churn_layers": (churn_over_layers, CHURN_NEEDED),
    "teacher_churn_layers": (lambda rows: churn_over_layers(rows, model="teacher"), CHURN_NEEDED),
    "agreement": (agreement, (*CHURN_NEEDED, "mate", "mate_layer")),
    "quality": (lambda rows: mean_quality(rows, "student"), _QUALITY),
    "teacher_quality": (mean_quality, _QUALITY),
}


def match_frame(run: Run, name: Name, split: str = "val") -> pd.DataFrame:
    """Returns one frame of ``analysis.stability`` over all evaluations of a run.

    Args:
        run: run, finished or in progress.
        name: ``churn_steps`` (last layer), ``churn_layers`` of the student, ``teacher_churn_layers``, ``agreement``, ``quality`` of the
            student, ``teacher_quality``.
        split: split of the query table.

    Returns:
        The frame, empty if the run has no query table of that split.

    Raises:
        NotDefined: the frame is about the query of a target, and the assignment of student or teacher is many-to-one.
    """
    if name in _DEFINED_AS:
        require(run, _DEFINED_AS[name])
    steps = complete_steps(run, split)
    if not steps:
        return pd.DataFrame(columns=["step", "layer"])

    def made() -> pd.DataFrame:
        if name == "churn_steps":
            rows = read_queries(run, split, steps, step_columns(run, split), matched=True)
            return churn_over_steps(rows, identity=identity_over_steps(run, split, rows))
        make, columns = _FRAMES[name]
        return make(read_queries(run, split, steps, columns, matched=True))

    return kept_frame(run, f"{name}-{split}", [content_hash([run.queries_path(split, step) for step in steps])], made)


def frame_if_defined(run: Run, name: Name, split: str = "val") -> tuple[pd.DataFrame, str]:
    """Returns ``match_frame`` and "", or an empty frame and what ``defined.undefined`` says if the run does not define its number."""
    if name in _DEFINED_AS and (why := undefined(run, _DEFINED_AS[name])):
        return pd.DataFrame(columns=["step", "layer"]), why
    return match_frame(run, name, split), ""


def kept_frame(run: Run, name: str, inputs: Sequence[Any], make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Returns a kept frame; computes it if it is missing or was computed from something else.

    Args:
        run: run in whose folder the frame is kept; if that cannot be written, the frame is computed every time.
        name: name of the frame; only the last of a name is kept.
        inputs: JSON-able values that determine the frame, such as hashes of files, and settings.
        make: computes the frame.
    """

    def read(path: Path) -> pd.DataFrame:
        with path.open("rb") as file:
            return pd.read_parquet(file)

    def write(path: Path, frame: pd.DataFrame) -> None:
        with replacing(path) as temporary:
            frame.to_parquet(temporary)

    return _kept(run, name, inputs, "parquet", read, write, make)


def kept_json(run: Run, name: str, inputs: Sequence[Any], make: Callable[[], Any]) -> Any:
    """Works like ``kept_frame`` for a JSON value without NaN."""
    return _kept(run, name, inputs, "json", read_json, write_json, make)


def evaluation_hash(run: Run, split: str, step: int) -> str:
    """Returns a hash of everything that one evaluation of a run wrote: detections and queries, including the teacher's."""
    detections, folders = run.detections_path(split, step), [run.queries_path(split, one) for one in (TEACHER_STEP, step)]
    there = [folder for folder in folders if is_complete(folder)]
    return hash_json([hash_file(detections) if detections.is_file() else "", content_hash(there)])


def diagnosis_inputs(run: Run, split: str) -> list[str]:
    """Returns hashes of every file of a run that a diagnosis reads, including the results of trying its teacher."""
    files = [run.info_path, run.metrics_path, run.evaluations_path, *sorted((run.path / "derived").glob("teacher-readings-*.json"))]
    steps = complete_steps(run, split)
    folders = [folder(split, step) for folder in (run.queries_path, run.states_path) for step in steps]
    return [*(hash_file(file) for file in files if file.is_file()), content_hash([folder for folder in folders if is_complete(folder)])]


def _kept(
    run: Run, name: str, inputs: Sequence[Any], suffix: str, read: Callable[[Path], Any], write: Callable[[Path, Any], None],
    make: Callable[[], Any],
) -> Any:  # fmt: skip
    key = hash_json([DEFINITIONS, *inputs])[:_KEY]
    path = run.derived_path(name, key, suffix)
    if path.is_file():
        try:
            check_hash(path, "It is computed again.")
            return read(path)
        except (WorkbenchError, OSError, ValueError, KeyError) as error:  # pyarrow's errors are these too
            logger.warning("%s", error)
    found = make()
    try:
        forget_hash(path)
        write(path, found)
        write_hash(path)
        for other in set(path.parent.glob(f"{name}-{'?' * _KEY}.{suffix}")) - {path}:
            forget_hash(other)
            other.unlink(missing_ok=True)
    except WorkbenchError as error:
        logger.debug("not kept: %s", error)  # the run of another user may be readable but not writable
    return found
