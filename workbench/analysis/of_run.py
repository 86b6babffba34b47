"""Names a run, split and evaluation, and opens the data of a run; ``rows_of_run`` reads its queries.

Every number about a run starts here, whether the dashboard, a notebook, a report, FiftyOne or the command line shows it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from workbench.datasets.base import Dataset
from workbench.datasets.issues import Policy
from workbench.datasets.opening import open_dataset
from workbench.datasets.splitting import SplitConfig
from workbench.errors import RunError
from workbench.files import hash_json, time_of
from workbench.remote import as_path
from workbench.store.queries import TEACHER_STEP
from workbench.store.run import Run
from workbench.store.states import masked_images

SPLITS = ("val", "test", "train")  # as the files of a run call them, whatever the data calls them; the first available one is shown


@dataclass(frozen=True)
class RunData:
    """Names one split of the data of a run; equal as long as ``run.json`` is the same file, so that it can be the key of a cache.

    Attributes:
        path: path or address of the run.
        split: val, test or train.
        info: stamp of ``run.json``.
    """

    path: str
    split: str
    info: str

    @property
    def run(self) -> Run:
        return Run(as_path(self.path))

    @property
    def data(self) -> "RunData":
        """Names only the data, without the rest of this key."""
        return RunData(self.path, self.split, self.info)


@dataclass(frozen=True)
class RunSplit(RunData):
    """Names all evaluations of one split of a run; it becomes another key as soon as one is added.

    Attributes:
        evaluations: stamp of their results and query tables.
    """

    evaluations: str


@dataclass(frozen=True)
class RunAt(RunData):
    """Names one evaluation of one split of a run; it becomes another key as soon as its files change.

    Attributes:
        step: step of the student's weights.
        files: stamp of its detections, its query table and the teacher's, and its tensors.
    """

    step: int
    files: str

    @property
    def teacher(self) -> "RunAt":
        """Names the teacher's outputs on the same images, whatever the step."""
        return one_evaluation(self.run, self.split, TEACHER_STEP)


def all_evaluations(run: Run, split: str = "val") -> RunSplit:
    """Names all evaluations of a split as their files are now."""
    tables = [run.queries_path(split, step) for step in run.query_steps(split)]
    return RunSplit(str(run.path), split, stamp(run.info_path), stamp(run.evaluations_path, *tables))


def one_evaluation(run: Run, split: str, step: int) -> RunAt:
    """Names one evaluation as its files are now."""
    tables = [run.queries_path(split, one) for one in (TEACHER_STEP, step)]
    files = stamp(run.detections_path(split, step), *tables, run.states_path(split, step))
    return RunAt(str(run.path), split, stamp(run.info_path), step, files)


def stamp(*paths: Path) -> str:
    """Returns a hash of the paths, times and sizes of files; it is short because it is part of a key."""
    return hash_json([[str(path), *time_of(path)] for path in paths])


def splits_with_queries(run: Run) -> Iterator[str]:
    """Yields the splits of which the run keeps queries."""
    return (split for split in SPLITS if run.query_steps(split))


def splits_with_detections(run: Run) -> Iterator[str]:
    """Yields the splits of which the run keeps detections."""
    return (split for split in SPLITS if run.detection_steps(split))


def splits_with_masks(run: Run) -> Iterator[str]:
    """Yields the splits of which the run keeps queries and the teacher's selection masks."""
    return (split for split in splits_with_queries(run) if images_with_masks(run, split))


def images_with_masks(run: Run, split: str) -> list[int]:
    """Returns the ids of the images of which the teacher's selection masks were kept."""
    return masked_images(run, split, TEACHER_STEP)


def last_with_queries(run: Run, split: str = "val", step: int | None = None) -> RunAt:
    """Names an evaluation with queries: the one at this step, by default the last.

    Raises:
        RunError: the run keeps no queries of this split and step.
    """
    steps = run.query_steps(split)
    if not steps or step not in (None, *steps):
        there, wanted = ", ".join(map(str, steps)) or "none", "" if step is None else f", not of {step}"
        raise RunError(
            f"split '{split}' of run '{run.name}' keeps queries of the steps {there}{wanted}. "
            f"Record them with 'workbench record {run.name} --split {split}'."
        )
    return one_evaluation(run, split, steps[-1] if step is None else step)


def last_with_detections(run: Run, split: str = "val") -> RunAt:
    """Names the last evaluation with detections.

    Raises:
        RunError: the run keeps no detections of this split.
    """
    steps = run.detection_steps(split)
    if not steps:
        raise RunError(f"run '{run.name}' keeps no detections of split '{split}'. Make them: workbench evaluate {run.name} --split {split}")
    return one_evaluation(run, split, steps[-1])


def common_step(run: Run, baseline: Run | None, split: str) -> int:
    """Returns the last step at which both runs keep queries.

    Raises:
        RunError: there is no such step.
    """
    steps = set(run.query_steps(split))
    if not steps:
        raise RunError(
            f"run '{run.name}' has no evaluation with queries of split '{split}'. "
            f"Record them with 'workbench record {run.name} --split {split}'."
        )
    common = steps & set(baseline.query_steps(split)) if baseline is not None else steps
    if not common:
        names = f"'{run.name}' and '{baseline.name}'" if baseline is not None else ""
        raise RunError(
            f"runs {names} have no step in common at which both keep queries of split '{split}'. "
            "Train both with the same evaluation interval, or record the queries of checkpoints of the same step."
        )
    return max(common)


def open_data(info: dict[str, Any], split: str = "val", masks: bool = False) -> Dataset:
    """Opens a split of the data that a run was made with.

    Args:
        info: content of its ``run.json``.
        split: train, val or test.
        masks: also reads the masks of the targets.

    Raises:
        DataError: the data is missing or cannot be used.
        RunError: the data has changed since the run.
    """
    data = info["recipe"]["data"]
    try:
        policy = Policy.model_validate(data["policy"]) if data.get("policy") else None
        splits = SplitConfig.model_validate(data["splits"]) if data.get("splits") else None
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:3])
        raise RunError(f"the run's recipe describes its data in a way that this workbench does not know: {wrong}.") from error
    options = data.get("options", {})
    dataset = open_dataset(data["path"], data[split], format=data["format"], policy=policy, splits=splits, masks=masks, **options)
    made = (info.get("split_hashes") or {}).get(split)
    if made is not None and made != dataset.hash():
        raise RunError(
            f"{data['path']} has changed since the run, so split '{split}' would hold other images, perhaps some that it was trained on. "
            "Restore the files; splits/ in the run's folder lists them."
        )
    if list(dataset.classes) != info["classes"]:
        raise RunError(f"{data['path']} now has other classes than when the run was made.")
    return dataset
