"""The run directory: creates, opens, lists, locks and removes it. Every path inside a run is made here."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from workbench.errors import RunError, WorkbenchError
from workbench.files import checked, hash_file, hash_json, parse_json, read_json, try_lock, write_json
from workbench.remote import as_path, is_remote
from workbench.store.intact import check_intact
from workbench.store.links import link_that_leads_out
from workbench.store.manifest import MANIFEST
from workbench.store.schemas import FORMAT_VERSION, EvaluationLine, MetricsLine, RunInfo, TimingLine

if TYPE_CHECKING:
    from pydantic import BaseModel

GRADIENT_EVERY = 10  # lines of metrics.jsonl between two that hold the gradients of the terms
DEFAULT_ROOT = Path("runs")
# another process that only checks whether a run is being written holds its lock for microseconds
LOCK_PATIENCE_SECONDS = 0.5
INFO_HASH = "content_hash"  # key of run.json
_REST_IS_WELL = "Restore it from a copy; the checkpoints and tables of the run are not affected."
_STEP = re.compile("[0-9]{1,18}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def runs_root() -> Path:
    """Returns the folder of runs: ``$WORKBENCH_RUNS``, a folder or an address such as s3://bucket/runs, or else ``./runs``."""
    return as_path(os.environ.get("WORKBENCH_RUNS") or DEFAULT_ROOT)


def is_path(name: str | Path) -> bool:
    """True for a path or an address (``runs/a``, ``./a``, ``/data/a``, ``s3://bucket/a``), False for a name (``a``)."""
    return not isinstance(name, str) or "/" in name or os.sep in name


class Run:
    """One training and its directory (layout: docs/formats.md).

    ``Run`` only reads unless a method says otherwise; the training process holds ``locked()`` while it writes.

    Args:
        path: the folder of a run, there or still to be made. A text is what ``open`` takes, most often the name of a run that is there.

    Raises:
        RunError: there is no run of this name.

    Example:
        >>> Run("shapes-distilled-seed0").state()
    """

    card: ClassVar["Callable[[Run], str] | None"] = None  # makes the HTML of a run in a notebook; ``workbench.notebook`` sets it

    def __init__(self, path: Path | str):
        folder = Run.open(path).path if isinstance(path, str) else path
        # absolute, so that it stays the same run when the process changes its current folder
        self.path = folder if is_remote(folder) else folder.absolute()
        self.name = self.path.name

    def __repr__(self) -> str:
        return f"Run({self.name!r})"

    def _repr_html_(self) -> str | None:
        """Returns the run as a card, which notebooks show in place of the text."""
        make = type(self).card
        return make(self) if make is not None else None

    @classmethod
    def create(cls, name: str, info: dict[str, Any], root: Path | None = None) -> "Run":
        """Makes a new run directory with its ``run.json``.

        Raises:
            RunError: the name is not a plain file name or is taken, or the folder cannot be written.
        """
        path = free_path(name, root)
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot create {path}: {error.strerror}. Choose a writable folder with --runs.") from error
        run = cls(path)
        created = datetime.now(UTC).isoformat(timespec="microseconds")
        run._write_info({"format_version": FORMAT_VERSION, "created": created, **info})
        return run

    @classmethod
    def open(cls, name: str | Path, root: Path | None = None) -> "Run":
        """Opens a run.

        Args:
            name: name of a run in the folder of runs; or a path, which contains a separator; or the address of a remote run.
            root: the folder of runs; None uses ``runs_root()``.

        Raises:
            RunError: there is no such run (the message lists the existing ones), or it has a link that leads out of the folder of runs.
        """
        root = root or runs_root()
        if is_path(name):
            path = as_path(name)
            if not _exists(path / "run.json"):
                raise RunError(f"there is no run at {path}: it has no run.json. To open a run in {root}, give only its name.")
            return _without_links(cls(path))
        path = run_path(str(name), root)
        if not _exists(path / "run.json"):
            known = ", ".join(run.name for run in list_runs(root)) or "none"
            here = f" To open the folder of that name in the current directory, write ./{name}." if _exists(Path(name, "run.json")) else ""
            raise RunError(f"there is no run '{name}' in {root}. Runs there: {known}.{here}")
        return _without_links(cls(path))

    @classmethod
    def find(cls, name: str | Path, root: Path | None = None) -> "Run | None":
        """Opens a run as ``open`` does; returns None if no run has that name or path."""
        path = as_path(name) if is_path(name) else (root or runs_root()) / name if _NAME.fullmatch(str(name)) else None
        return _without_links(cls(path)) if path is not None and _exists(path / "run.json") else None

    @property
    def info_path(self) -> Path:
        return self.path / "run.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def timings_path(self) -> Path:
        return self.path / "timings.jsonl"

    @property
    def evaluations_path(self) -> Path:
        return self.path / "evaluations.jsonl"

    @property
    def labels_path(self) -> Path:
        """Returns the file of tags and notes, which only runs that somebody labelled have."""
        return self.path / "labels.json"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint_path(self, step: int) -> Path:
        """Returns the folder of one checkpoint, which counts only once its DONE file exists."""
        return self.checkpoints_path / f"{step:07d}"

    def checkpoint_steps(self) -> list[int]:
        """Lists the steps of the complete checkpoints, ascending."""
        if not self.checkpoints_path.is_dir():
            return []
        return _steps(p.name for p in self.checkpoints_path.iterdir() if (p / "DONE").exists())

    def complete_checkpoint(self, step: int) -> Path:
        """Returns the folder of a complete checkpoint.

        Raises:
            RunError: the run has no checkpoint of this step; the message lists the existing ones.
        """
        steps = self.checkpoint_steps()
        if step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise RunError(f"run '{self.name}' has no checkpoint of step {step}. Steps with a checkpoint: {there}.")
        return self.checkpoint_path(step)

    @property
    def splits_path(self) -> Path:
        """Returns the folder of the lists of images, which a run has whose recipe makes its splits."""
        return self.path / "splits"

    def detections_path(self, split: str, step: int) -> Path:
        return self.path / "detections" / f"split={split}" / f"step={step}.parquet"

    def queries_path(self, split: str, step: int) -> Path:
        """Returns the folder of the query table of one split and step; teacher rows are at step -1."""
        return self.path / "queries" / f"split={split}" / f"step={step}"

    def derived_path(self, name: str, key: str, suffix: str) -> Path:
        """Returns the file of an analysis result; ``key`` is the hash of what it was made from."""
        return self.path / "derived" / f"{name}-{key}.{suffix}"

    def pictures_path(self, split: str, key: str) -> Path:
        """Returns the folder of PNG files of a split whose images exist only in memory; ``key`` is the hash of the data."""
        return self.path / "pictures" / f"{split}-{key}"

    def states_path(self, split: str, step: int) -> Path:
        return self.path / "states" / f"split={split}" / f"step={step}"

    def query_steps(self, split: str) -> list[int]:
        """Lists the steps with complete student rows in the query table, ascending."""
        folder = self.path / "queries" / f"split={split}"
        if not folder.is_dir():
            return []
        return _steps(p.name.removeprefix("step=") for p in folder.glob("step=*") if (p / MANIFEST).exists())

    def detection_steps(self, split: str) -> list[int]:
        """Lists the steps with stored detections, ascending."""
        folder = self.path / "detections" / f"split={split}"
        return _steps(path.stem.removeprefix("step=") for path in folder.glob("step=*.parquet"))

    def info(self) -> dict[str, Any]:
        """Returns the content of ``run.json``.

        Raises:
            WorkbenchError: it is damaged, or lacks a key that is asked for.
            RunError: its format is of another version, or it does not hold what was written there.
        """
        info = read_json(self.info_path)
        version = info.get("format_version") if isinstance(info, dict) else None
        if isinstance(version, int) and version != FORMAT_VERSION:
            raise RunError(
                f"run '{self.name}' cannot be read: its format is version {version}, but this workbench reads version {FORMAT_VERSION}. "
                "Use the version of the workbench that made it."
            )
        checked(info, RunInfo, str(self.info_path))
        written = info.pop(INFO_HASH, None)
        if written is not None and written != hash_json(info):
            raise RunError(
                f"{self.info_path} is damaged: it does not hold what was written there. Restore it from a copy. If you have changed it, "
                f"remove '{INFO_HASH}' from it."
            )
        return info

    def state(self) -> str:
        """Returns how far the run is: created, running, done, interrupted, failed, or stopped.

        A run is running while a process holds its lock. It has stopped if its process ended without a word, by a kill or a power cut.

        Raises:
            WorkbenchError: ``run.json`` is damaged.
        """
        told = str(self.info().get("state") or "created")
        if self.is_running():
            return "running"
        return "stopped" if told == "running" else told

    def update_info(self, **changes: Any) -> None:
        """Rewrites ``run.json`` with ``changes``; only the training process calls this."""
        self._write_info({**self.info(), **changes})

    def _write_info(self, info: dict[str, Any]) -> None:
        """Writes ``run.json`` with the hash of everything else in it, so that a changed digit is noticed."""
        read = json.loads(json.dumps(info, allow_nan=False))  # as it will be read: JSON makes text of every key
        write_json(self.info_path, {**read, INFO_HASH: hash_json(read)})

    def metrics(self) -> list[dict[str, Any]]:
        """Returns one dict per logged step."""
        return self._log(self.metrics_path, MetricsLine)

    def timings(self) -> list[dict[str, Any]]:
        """Returns wall and process seconds, one dict per logged step."""
        return self._log(self.timings_path, TimingLine)

    def evaluations(self) -> list[dict[str, Any]]:
        """Returns one dict per evaluation."""
        return self._log(self.evaluations_path, EvaluationLine)

    def _log(self, path: Path, schema: "type[BaseModel]") -> list[dict[str, Any]]:
        info = self.info()
        if info.get("state") == "done" and path.exists() and (wanted := info.get("logs", {}).get(path.name)):
            check_intact(path, wanted, _REST_IS_WELL)
        elif beginning := info.get("saved_logs", {}).get(path.name):
            try:
                _check_beginning(path, beginning["bytes"], beginning["sha256"])
            except RunError:
                if self.info().get("saved_logs") == info.get("saved_logs"):
                    raise
                return self._log(path, schema)  # a run that is resumed has cut its logs meanwhile
        return read_lines(path, schema)

    def save_logs(self) -> None:
        """Keeps how long the logs are and the hashes of what they hold, to notice damage in them while more is added."""
        logs = [path for path in self.logs() if path.is_file()]
        self.update_info(saved_logs={path.name: {"bytes": path.stat().st_size, "sha256": hash_file(path)} for path in logs})

    def logs(self) -> dict[Path, Callable[[], list[dict[str, Any]]]]:
        """Returns the logs of the run, each with what reads it."""
        return {self.metrics_path: self.metrics, self.timings_path: self.timings, self.evaluations_path: self.evaluations}

    def finish(self, **changes: Any) -> None:
        """Marks the run as done, and keeps the hashes of its logs, to which nothing is added any more."""
        logs = {path.name: hash_file(path) for path in self.logs() if path.is_file()}
        self.update_info(state="done", logs=logs, saved_logs={}, **changes)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the run for writing; a remote run has no lock.

        Raises:
            RunError: another process is writing to it.
        """
        if is_remote(self.path):
            yield
            return
        deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
        self.check_there()
        try:
            file = open(self.path / ".lock", "w", encoding="ascii")
        except OSError as error:
            raise RunError(f"cannot write in {self.path}: {error.strerror or error}. Choose a writable folder with --runs.") from error
        with file:
            while not try_lock(file):
                if time.monotonic() > deadline:
                    raise RunError(f"run '{self.name}' is being written by another process. Wait for it or stop it.")
                time.sleep(0.02)
            yield

    def check_there(self) -> None:
        """Raises a ``RunError`` if the run's folder was removed while it was trained."""
        if not _exists(self.info_path):
            raise RunError(
                f"the folder of run '{self.name}' has been removed or moved: there is no {self.info_path}. Nothing more can be saved. "
                "Start a new run."
            )

    def is_running(self) -> bool:
        """True while a process holds the lock; this check writes nothing. A remote run always gives False."""
        if is_remote(self.path):
            return False
        try:
            with open(self.path / ".lock", "rb") as file:
                return not try_lock(file)
        except OSError:
            return False

    def check_removable(self) -> None:
        """Raises a ``RunError`` if the directory is remote or a link, so that it may neither be removed nor moved."""
        if is_remote(self.path):
            raise RunError(f"{self.path} is remote, and the workbench only reads remote runs. Remove it with a tool of its storage.")
        if self.path.is_symlink():
            raise RunError(
                f"{self.path} is a link to {os.path.realpath(self.path)}, so nothing was removed. Remove the link itself, or that run."
            )

    def remove(self) -> None:
        """Deletes the directory for good; ``trash.throw_away`` keeps it until the trash is emptied.

        Raises:
            RunError: a process is writing to it, or it is remote, a link, or cannot be removed.
        """
        self.check_removable()
        try:
            with self.locked():
                shutil.rmtree(self.path)
        except OSError as error:
            raise RunError(f"cannot remove {self.path}: {error.strerror or error}. What is left of it can be removed by hand.") from error


def free_path(name: str, root: Path | None = None) -> Path:
    """Returns the path for a new run of this name and makes the folder of runs, so that a folder problem shows before training.

    Raises:
        RunError: the name is not a plain file name or is taken, or the folder cannot be made or written.
    """
    root = root or runs_root()
    path = run_path(name, root)
    if is_remote(root):
        raise RunError(f"{root} is not a local folder, but training needs one. Choose one with --runs and copy the run when it is done.")
    try:
        root.mkdir(parents=True, exist_ok=True)
        taken = (path / "run.json").exists()
    except OSError as error:
        raise RunError(f"cannot create {root}: {error.strerror}. Choose a writable folder with --runs.") from error
    if taken:
        raise RunError(
            f"run '{name}' already exists in {root}. Resume it with 'workbench run --resume {name}', remove it with "
            f"'workbench runs rm {name}', or choose another --name."
        )
    if not os.access(root, os.W_OK):
        raise RunError(f"cannot write in {root}. Choose a writable folder with --runs.")
    return path


def list_runs(root: Path | None = None) -> list[Run]:
    """Lists all runs below ``root``, oldest first, then those whose ``run.json`` cannot be read."""
    root = root or runs_root()
    if not root.is_dir():
        return []
    return sorted((Run(path) for path in root.iterdir() if (path / "run.json").is_file()), key=_age)


def _age(run: Run) -> tuple[bool, str, str]:
    try:
        return False, run.info().get("created", ""), run.name
    except WorkbenchError:
        return True, "", run.name


def _check_beginning(path: Path, size: int, wanted: str) -> None:
    """Raises a ``RunError`` if the first ``size`` bytes of a log are not those that were there when a checkpoint was saved."""
    if is_remote(path):
        return
    try:
        with path.open("rb") as file:
            found = hashlib.sha256(file.read(size)).hexdigest()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}. {_REST_IS_WELL}") from error
    if found != wanted:
        raise RunError(f"{path} is damaged: it does not hold what was written there. {_REST_IS_WELL}")


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Appends one line of JSON; a kill meanwhile leaves at most a broken last line, which ``read_lines`` skips.

    Raises:
        RunError: the disk is full or the file cannot be written.
    """
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            Run(path.parent).check_there()
        raise RunError(
            f"cannot write {path}: {error.strerror or error}. Free some space, then resume with 'workbench run --resume "
            f"{path.parent.name}'; the last checkpoint is kept."
        ) from error


def read_lines(path: Path, schema: "type[BaseModel] | None" = None) -> list[dict[str, Any]]:
    """Returns the JSON lines of a file; a last line that was cut off by a kill is skipped.

    Args:
        path: the file; without it there are no lines.
        schema: what each line must hold; None accepts every mapping.

    Raises:
        RunError: another line is broken; the message names it.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
        numbered = [(number, parse_json(line, f"{path}, line {number},")) for number, line in enumerate(lines, start=1) if line]
        for number, value in numbered:
            if not isinstance(value, dict):
                raise RunError(f"{path}, line {number}, is damaged: it is no mapping.")
            if schema is not None:
                checked(value, schema, f"{path}, line {number},", advice="")
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}.") from error
    except WorkbenchError as error:
        raise RunError(f"{str(error).strip()} Remove the line, or restore the file.") from error
    return [value for _, value in numbered]


def run_path(name: str, root: Path | None = None) -> Path:
    """Returns the path of the run of this name in the folder of runs, whether it exists or not.

    Raises:
        RunError: the name is not a plain file name.
    """
    if not _NAME.fullmatch(name):
        raise RunError(f"{name[:200]!r} cannot be a run name: use letters, digits, '.', '_' and '-', starting with a letter or digit.")
    return (root or runs_root()) / name


def _without_links(run: Run) -> Run:
    if link := link_that_leads_out(run.path):
        raise RunError(f"{link} is a link that leads out of the folder of runs. Only files below it are read. Copy them there.")
    return run


def _steps(names: Iterable[str]) -> list[int]:
    """Returns the steps among names of files, ascending; whatever else lies there is no step."""
    return sorted(int(name) for name in names if _STEP.fullmatch(name))


def _exists(path: Path) -> bool:
    """True if there is such a file; False also for a name that no file can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def result_folder(run: Run) -> Path:
    """Returns the detector folder of the run's result: the best checkpoint if the recipe keeps it, else the last.

    Raises:
        RunError: the run has no checkpoint yet.
    """
    steps = run.checkpoint_steps()
    if not steps:
        raise RunError(f"run '{run.name}' has no checkpoint yet.")
    best = run.info().get("best_step")
    return run.checkpoint_path(best if best in steps else steps[-1])
