"""The shapes of the JSON files of a run. Every one of them is read through its schema, so that JSON of another shape reaches no code.

A key that is missing is no error here: earlier versions wrote fewer. Code that needs it gets an error that names the file
(``files.Entries``). Keys that are not listed are read as they are.
"""

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, model_validator

FORMAT_VERSION = 1


class Stored(BaseModel):
    """The base of all schemas: types are taken as they stand in the file, and none is converted."""

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)


class StoredData(Stored):
    """The data of a stored recipe."""

    path: str | None = None
    """Place of the data."""

    format: str = "auto"
    """Format of the data."""

    train: str | None = None
    """Split that was trained on."""

    val: str | None = None
    """Split that was evaluated during training."""

    test: str | None = None
    """Split that was evaluated at the end."""

    options: dict[str, Any] = {}
    """Options of the format."""

    policy: dict[str, Any] | None = None
    """What to do about problems of the data."""

    splits: dict[str, Any] | None = None
    """How splits are made."""


class StoredTrain(Stored):
    """The schedule of a stored recipe."""

    steps: PositiveInt = 1
    """Number of steps."""


class StoredRecipe(Stored):
    """As much of a stored recipe as is read without building it; ``recipe.loading.stored_recipe`` validates all of it."""

    data: StoredData = StoredData()
    """The data."""

    student: dict[str, Any] = {}
    """The student."""

    methods: list[dict[str, Any]] = []
    """The methods."""

    train: StoredTrain = StoredTrain()
    """The schedule."""


class Group(Stored):
    """Which comparison a run belongs to."""

    recipe: str = ""
    """Name of the recipe."""

    arm: str = ""
    """Arm of the recipe."""

    seed: int = 0
    """Seed of the run."""

    schedule: str = ""
    """Equal steps or equal compute."""


class CacheOfRun(Stored):
    """The teacher cache that taught a run."""

    name: str = ""
    """Name of the cache."""

    build_seconds: dict[str, float] = {}
    """CPU and wall seconds of its build."""


class SavedLog(Stored):
    """What a log held when a checkpoint was saved."""

    bytes: int
    """Its length."""

    sha256: str
    """Hash of these bytes."""


class RunInfo(Stored):
    """``run.json``; docs/formats.md says what each key means."""

    format_version: int
    """Version of the run's format."""

    created: str = ""
    """Time of creation, which sorts as text."""

    recipe: StoredRecipe = StoredRecipe()
    """The recipe."""

    group: Group = Group()
    """Which comparison the run belongs to."""

    classes: list[str] = []
    """Names of the classes."""

    dataset: str | None = None
    """Name of the data."""

    dataset_hash: str | None = None
    """Hash of the training data."""

    split_hashes: dict[str, str] | None = None
    """Hash of each split that the recipe makes."""

    teacher: str | None = None
    """Name or path of the teacher."""

    teacher_hash: str | None = None
    """Hash of its weights."""

    teacher_ap: float | None = None
    """Its AP before training."""

    cache: CacheOfRun | None = None
    """The teacher cache."""

    term_weights: dict[str, float] = {}
    """Weights of the terms."""

    alignment_start: dict[str, Any] | None = None
    """Alignment before the first step."""

    issues: list[str] = []
    """Problems of the data."""

    notes: list[str] = []
    """What the console said at the start."""

    libraries: dict[str, str] = {}
    """Versions of libraries."""

    commit: str | None = None
    """Commit of the code."""

    seed: int | None = None
    """Seed of the run."""

    gamma: float | None = None
    """Exponent of the quality score."""

    device: str | None = None
    """Device of the training."""

    processes: PositiveInt = 1
    """Number of processes."""

    reproducibility: dict[str, str] | None = None
    """How exactly the run can be repeated: ``kind`` and ``why``."""

    best_step: int | None = None
    """Step of the best checkpoint."""

    seconds: dict[str, float] | None = None
    """CPU and wall seconds of training."""

    logs: dict[str, str] = {}
    """SHA-256 of each log of a run that is done."""

    saved_logs: dict[str, SavedLog] = {}
    """Bytes and SHA-256 of the beginning of each log, as of the last checkpoint."""

    content_hash: str | None = None
    """Hash of everything else in the file."""

    state: str | None = None
    """How far the run is."""

    error: str | None = None
    """Message of a failure."""


class StoredLabels(Stored):
    """``labels.json``: what people say about a run."""

    tags: list[str] = []
    """Tags of the run."""

    note: str = ""
    """A note in free text."""

    archived: bool = False
    """Whether the run was put away, so that lists leave it out."""


class StoredSets(Stored):
    """``sets.json`` of a folder of runs."""

    sets: dict[str, list[str]] = {}
    """Names of the runs of each saved set."""

    baseline: str | None = None
    """Name of the run that is pinned as the baseline."""


class MetricsLine(BaseModel):
    """A line of ``metrics.jsonl``: a step, and numbers by name."""

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)
    __pydantic_extra__: dict[str, float | None]  # pyright: ignore[reportIncompatibleVariableOverride] - how pydantic types further keys

    step: NonNegativeInt
    """Number of steps that were made."""


class TimingLine(Stored):
    """A line of ``timings.jsonl``."""

    step: NonNegativeInt
    """Number of steps that were made."""

    cpu: float
    """Seconds of the process."""

    wall: float
    """Seconds of the clock."""


class ClassNumbers(Stored):
    """AP of one class."""

    ap: float | None = None
    """AP, 0 to 1."""

    ap50: float | None = None
    """AP at an IoU of 0.5."""

    targets: NonNegativeInt = 0
    """Number of targets."""


class ErrorNumbers(Stored):
    """How often an error occurs and what it costs."""

    count: NonNegativeInt = 0
    """Number of errors."""

    cost: float | None = None
    """Cost in AP50."""


class Numbers(Stored):
    """Results of one detector on a split."""

    coco: dict[str, float | None]
    """The twelve COCO numbers; ``ap`` is always there."""

    per_class: dict[str, ClassNumbers] = {}
    """AP by class."""

    errors: dict[str, ErrorNumbers] = {}
    """Errors by type."""

    parameters: int | None = None
    """Number of parameters."""

    flops: float | None = None
    """FLOPs of one image."""

    ms_per_image: float | None = None
    """Milliseconds per image."""

    @model_validator(mode="after")
    def _has_ap(self) -> "Numbers":
        if "ap" not in self.coco:
            raise ValueError("coco lacks ap")
        return self


class EvaluationLine(Numbers):
    """A line of ``evaluations.jsonl``."""

    step: NonNegativeInt
    """Step of the weights."""

    split: str
    """Split of the data."""

    alignment: dict[str, dict[str, dict[str, Any]]] | None = None
    """Alignment with the teacher, by kind of level and stride."""

    teacher: Numbers | None = None
    """Results of the teacher."""


class Hashes(Stored):
    """``hashes.json`` of a folder, and what every manifest has."""

    files: dict[str, str]
    """SHA-256 of each file by its name, which is that of a file in the same folder."""

    @model_validator(mode="after")
    def _names_files_of_its_folder(self) -> "Hashes":
        for name in self.files:
            if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
                raise ValueError(f"names the file {name[:100]!r}, which is not in its folder")
        return self


class Manifest(Hashes):
    """``manifest.json`` of a folder of tables or tensors."""

    rows: NonNegativeInt = 0
    """Number of rows of a table."""

    sampled: bool = False
    """True if the split has more images."""

    input: str | None = None
    """Equal where candidates are the same places."""

    images: int | dict[str, str] | None = None
    """Number of images of a table; of tensors the file that each image is in."""

    kinds: list[str] = []
    """Kinds of tensors."""

    assignment: str = "one"
    """Whether a target may have several positive candidates."""

    geometric: bool = False
    """True if the assignment depends on boxes alone."""

    kept: str = "all"
    """Which candidates have a row."""

    grid: dict[str, Any] | None = None
    """Cells of a dense detector."""

    @model_validator(mode="after")
    def _images_are_in_its_files(self) -> "Manifest":
        for image, name in self.images.items() if isinstance(self.images, dict) else ():
            if not re.fullmatch("-?[0-9]{1,19}", image):
                raise ValueError(f"has an image {image[:100]!r}, which is no number")
            if name not in self.files:
                raise ValueError(f"says that image {image} is in {name[:100]!r}, which it does not list")
        return self


class TrainerState(Stored):
    """``trainer.json`` of a checkpoint."""

    step: NonNegativeInt
    """Number of steps that were made."""

    scaler: dict[str, Any] | None = None
    """State of the loss scaler."""

    seconds: dict[str, float] = {"cpu": 0.0, "wall": 0.0}
    """CPU and wall seconds of training."""

    taught: dict[str, bool] = {}
    """Which terms had a gradient."""

    best: list[float] = [-1.0, -1.0]
    """Best AP on the validation split, and its step."""

    @model_validator(mode="after")
    def _best_is_a_pair(self) -> "TrainerState":
        if len(self.best) != 2 or not {"cpu", "wall"} <= self.seconds.keys():
            raise ValueError("best or seconds is incomplete")
        return self
