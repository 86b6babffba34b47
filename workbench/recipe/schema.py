"""The models of a recipe, the YAML file that describes an experiment."""

import difflib
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, SerializeAsAny, Tag, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from workbench.datasets.issues import Policy
from workbench.datasets.splitting import SplitConfig
from workbench.datasets.transforms import TransformConfig
from workbench.detectors.registry import FAMILIES
from workbench.files import hash_json
from workbench.methods.registry import MethodConfig
from workbench.recipe.inherit import InheritConfig, InheritingConfig, inheriting
from workbench.store.groups import own_arm_name

STRICT = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DataConfig(BaseModel):
    """Says where the images come from and how they are prepared."""

    model_config = STRICT
    path: str | None = None
    """Dataset folder or file, or ``shapes`` for the embedded generator. Null means that ``--data`` names it when the recipe is run."""
    format: Literal["auto", "shapes", "coco", "voc", "kitti", "yolo"] = "auto"
    """Format of the annotations: ``coco``, ``voc``, ``kitti`` or ``yolo``. ``auto`` recognises it from the files at ``path``; ``shapes`` is
    the embedded generator.
    """
    train: str = "train"
    """Name of the split that the student is trained on."""
    val: str = "val"
    """Name of the split that is evaluated during training. Choices such as the best checkpoint are made on it."""
    test: str | None = "test"
    """Name of the split that is evaluated once, when training has ended. Null skips this evaluation."""
    splits: SplitConfig | None = None
    """Makes the splits ``train``, ``val`` and ``test`` where the files have none. Each class is in all of them if possible, near-duplicate
    images are never apart, and the same files give the same splits on every machine. Null takes the splits of the files.
    """
    options: dict[str, Any] = {}
    """Options of the format: ``images`` (another folder of images) for coco, ``classes`` (their names and order) for voc, kitti and yolo,
    and what to draw for shapes.
    """
    policy: Policy = Policy()
    """What to do about each kind of problem in the files. ``fix`` mends it, ``drop`` leaves the image or annotation out and counts it, and
    ``refuse`` stops with a list of what was found.
    """
    transform: TransformConfig = TransformConfig()
    """How images are prepared: augmentation (in training only), size and normalisation."""
    evaluation_transform: TransformConfig | None = None
    """How images are prepared where a model is evaluated or exported. Null uses ``transform`` without its augmentation."""


class CheckpointConfig(BaseModel):
    """Names a detector that already exists."""

    model_config = STRICT
    checkpoint: str
    """A detector folder, the name of a run, an embedded detector such as ``shapes_teacher``, or a name on the Hugging Face hub, which needs
    a network.
    """
    head: Literal["keep", "reset"] = "keep"
    """What happens to a student's class head. ``keep`` leaves it as it is, and its classes must be those of the data; ``reset`` draws a new
    head for the classes of the data. A teacher always keeps its head.
    """


class TeacherRecipeConfig(BaseModel):
    """Names the recipe that trains the teacher. The teacher's run is made first if it does not exist yet."""

    model_config = STRICT
    recipe: str
    """Recipe file, relative to the student's, or the name of a shipped recipe."""
    seed: int = 0
    """Seed that the teacher is trained with."""


def _of_family(values: Any) -> Any:
    """Turns a mapping into the configuration of the family or checkpoint it names; only now is the family imported."""
    if not isinstance(values, dict):
        return values
    if "checkpoint" in values:
        return CheckpointConfig.model_validate(values)
    name = values.get("family")
    if name is None:
        raise PydanticCustomError(NO_FAMILY, "it has no checkpoint and no family. Families are {families}.", {"families": _families()})
    if not isinstance(name, str) or name not in FAMILIES:  # a list cannot be looked up
        near = difflib.get_close_matches(str(name), FAMILIES, n=1, cutoff=0.5)
        hint = f"Did you mean '{near[0]}'? " if near else ""
        raise PydanticCustomError(
            UNKNOWN_FAMILY,
            "there is no family '{name}'. {hint}Families are {families}.",
            {"name": str(name), "hint": hint, "families": _families()},
        )
    config = FAMILIES[name].config
    if values.get("inherit") is not None:
        return inheriting(config).model_validate(values)
    return config.model_validate({key: value for key, value in values.items() if key != "inherit"})


def _families() -> str:
    return ", ".join(FAMILIES)


def _teacher_tag(value: Any) -> str:
    given = value.model_fields_set if isinstance(value, BaseModel) else value if isinstance(value, dict) else ()
    return "checkpoint" if "checkpoint" in given else "recipe"


NO_FAMILY, UNKNOWN_FAMILY = "no_family", "unknown_family"
Student = Annotated[SerializeAsAny[BaseModel], BeforeValidator(_of_family)]
Teacher = Annotated[
    Annotated[CheckpointConfig, Tag("checkpoint")] | Annotated[TeacherRecipeConfig, Tag("recipe")], Discriminator(_teacher_tag)
]


class TrainConfig(BaseModel):
    """Describes the training schedule and the optimiser."""

    model_config = STRICT
    steps: int = Field(gt=0)
    """Number of optimiser steps."""
    batch_size: int = Field(16, gt=0)
    """Images per step, summed over all processes and accumulated parts."""
    accumulate: int = Field(1, ge=1)
    """Number of parts that a batch is split into to save memory. Their gradients are averaged before the optimiser's step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimiser. ``adamw`` is what DETRs are published with, ``sgd`` (with momentum) what most detectors without queries are."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD; AdamW ignores it."""
    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate."""
    backbone_factor: float = Field(1.0, gt=0)
    """Factor on the learning rate of the backbone."""
    sampling_factor: float = Field(1.0, gt=0)
    """Factor on the learning rate of sampling offsets and reference points."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay. AdamW leaves biases and normalisation layers out; DETRDistill's released recipe decays them too. SGD decays every
    parameter, as the published detectors that are trained with it do.
    """
    warmup: int = Field(0, ge=0)
    """Number of steps at the start over which the learning rate rises linearly to its peak."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Learning rate after the warm-up: ``cosine`` falls to zero, ``step`` multiplies it by 0.1 at each of ``drops``, and ``constant`` keeps
    the peak.
    """
    drops: tuple[float, ...] = (0.8,)
    """When the schedule ``step`` lowers the learning rate, as shares of ``steps``. Other schedules ignore it."""
    clip_norm: float = Field(0.1, ge=0)
    """Largest norm of the gradient; a longer gradient is scaled down to it. 0 turns clipping off."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of the averaged weights; 0 turns averaging off. The averaged weights are the ones evaluated and exported."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the forward and backward pass. ``fp32`` is full precision; ``bf16`` and ``fp16`` are mixed precision."""
    class_weight: float | None = Field(None, gt=0)
    """Weight of the class terms in the detection loss. Null uses the weight published for the family."""
    evaluate_every: int = Field(500, gt=0)
    """Steps between evaluations on the validation split. Stability is measured from one evaluation to the next."""
    checkpoint_every: int = Field(500, gt=0)
    """Steps between checkpoints. A run that was stopped is resumed from the last one."""
    keep: Literal["last", "best"] = "last"
    """Which weights are the result of the run. ``last`` takes the final ones; ``best`` takes those with the highest AP on the validation
    split.
    """
    log_every: int = Field(10, gt=0)
    """Steps between lines of metrics.jsonl. Every tenth line also holds the gradient norm of each distillation term."""
    workers: int = Field(0, ge=0)
    """Number of processes that load data. 0 loads it in the training process."""
    on_out_of_memory: Literal["halve", "stop"] = "halve"
    """What happens if the memory of a GPU is too small for a step. ``halve`` lets half as many images through at once, as often as needed,
    with the same gradient; only the statistics of batch norms are then those of fewer images. ``stop`` ends the run, as a run of several
    processes always does; its last checkpoint is kept.
    """

    @model_validator(mode="after")
    def _divisible(self) -> "TrainConfig":
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        return self


class CacheConfig(BaseModel):
    """Takes the teacher's answers from a cache on disk (``workbench cache build``) that holds a fixed number of augmentations of every
    image.
    """

    model_config = STRICT
    variants: int = Field(gt=0)
    """Number of augmentations of each image. Each epoch uses the next one; arms without methods see the same ones."""
    precision: Literal["fp16", "fp32"] = "fp16"
    """Precision of the stored logits, states and maps: ``fp16`` or ``fp32``. Boxes are always stored in 32 bits."""
    top_k: int | None = Field(None, gt=0)
    """Number of classes stored per query, those with the best scores. Null stores all of them, which methods that read every class need."""
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$")
    """Name of the cache. Null uses the name of the recipe."""


class LineageConfig(BaseModel):
    """Says where a recipe that a search has found comes from. The search writes it, and it changes nothing."""

    model_config = STRICT
    search: str
    """Name of the search."""
    hash: str
    """Hash of everything that says what a trial of the search means."""
    space: str
    """Version of the space of formulas."""
    fitness: str
    """Hash of the list of training images that were held out and measured the trials."""
    candidate: str
    """The distiller as the search writes it."""
    study: str
    """Part of the search that tried it: an input, or ``shares``."""
    trial: int
    """Number of its first trial in that study."""
    repeats: tuple[int, ...] = ()
    """Numbers of the trials that trained it again with fresh seeds."""
    seeds: tuple[int, ...] = ()
    """Seeds of its first trial and of those repeats."""
    mean: float | None = None
    """Mean AP (0..1) of those repeats on the held-out images, the first trial left out. Null if there are none."""
    commit: str | None = None
    """Commit of the code that trained its first trial."""


class Recipe(BaseModel):
    """Describes one experiment: data, student, teacher, methods and schedule."""

    model_config = STRICT
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$")
    """Name of the experiment, which the names of its runs begin with. It has at most 61 letters, digits, dots, dashes and underscores."""
    note: str = ""
    """Free text that is stored with the run and changes nothing."""
    lineage: LineageConfig | None = None
    """The search that found the recipe. Null if a person wrote it."""
    seed: int = Field(0, ge=0)
    """Seed of the student's first weights, the order of the images and their augmentation."""
    data: DataConfig
    """Where the images come from and how they are prepared."""
    student: Student
    """The detector that is trained: an architecture of one of the families, some parts of which may start from the teacher's weights
    (``inherit``), or a checkpoint to start from.
    """
    teacher: Teacher | None = None
    """The detector that the student learns from: a checkpoint, or another recipe that trains it. Null trains without a teacher."""
    layer_map: tuple[tuple[int, ...], ...] | None = None
    """For each decoder layer of the student, the 0-based decoder layers of the teacher that teach it. Null divides the teacher's layers
    evenly, in order and the last to the last.
    """
    class_map: dict[str, str] = {}
    """Maps class names of the teacher to class names of the data where they differ. Equal names need no entry."""
    methods: tuple[MethodConfig, ...] = ()
    """Distillation methods whose terms are added to the detection loss. An empty list trains the student undistilled."""
    train: TrainConfig
    """The training schedule and the optimiser's settings."""
    cache: CacheConfig | None = None
    """Takes the teacher's answers from a cache on disk. Null asks the teacher itself in every step, about newly drawn augmentations."""
    arms: dict[str, dict[str, Any]] = {}
    """Named variants of the recipe, such as an undistilled one. Each lists the keys that it changes and becomes a run of its own."""

    @model_validator(mode="after")
    def _methods_need_a_teacher(self) -> "Recipe":
        if self.methods and self.teacher is None:
            raise ValueError("methods need a teacher: add 'teacher:' with a checkpoint or a recipe")
        if self.inherit is not None and self.teacher is None:
            raise ValueError("student.inherit needs a teacher: add 'teacher:' with a checkpoint or a recipe")
        names = [config.method for config in self.methods]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"method {', '.join(twice)} is listed twice, so its terms could not be told apart. List it once")
        return self

    @model_validator(mode="after")
    def _batch_for_the_methods(self) -> "Recipe":
        images = self.train.batch_size // self.train.accumulate
        for config in self.methods:
            if config.least_images > images:
                raise ValueError(
                    f"method {config.method} compares the images of a batch and needs {config.least_images} of them at a time, but "
                    f"train.batch_size {self.train.batch_size} in {self.train.accumulate} parts gives {images}. Raise batch_size, lower "
                    "accumulate, or choose formulas that do not name the batch"
                )
        return self

    @property
    def inherit(self) -> InheritConfig | None:
        """Returns which parts of the student start from the teacher's weights; None if all of them are new."""
        return self.student.inherit if isinstance(self.student, InheritingConfig) else None

    @property
    def own_arm(self) -> str:
        """Name of the arm that the recipe itself is, without any of ``arms``."""
        return own_arm_name(bool(self.methods))

    def hash(self) -> str:
        """Returns the hash of every setting that affects the result, except seed and dataset path; it is the key of a committed table.

        ``arms`` are left out because they are other recipes. Settings at their default are left out too, so that a new setting keeps old
        tables valid. Whoever changes a default must therefore make the tables again.
        """
        values = _decisive(self)
        for key in ("seed", "note", "lineage", "arms"):
            values.pop(key, None)
        values["data"].pop("path", None)
        for key in ("workers", "on_out_of_memory"):
            values["train"].pop(key, None)
        if values.get("cache"):
            values["cache"].pop("name", None)
        return hash_json(values)[:16]


def _decisive(value: Any) -> Any:
    """Returns a model as plain values without settings at their default; a tag such as ``family`` or ``method`` stays."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {
            name: _decisive(getattr(value, name))
            for name, field in fields.items()
            if is_tag(field.annotation) or getattr(value, name) != field.get_default(call_default_factory=True)
        }
    if isinstance(value, tuple | list):
        return [_decisive(item) for item in value]
    if isinstance(value, dict):
        return {key: _decisive(item) for key, item in value.items()}
    return value


def is_tag(annotation: Any) -> bool:
    """True if a field has one possible value, which names its model: ``family``, ``method`` or ``op``."""
    return typing.get_origin(annotation) is Literal and len(typing.get_args(annotation)) == 1


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Lists the fields of a model in the order to be read in: the one that names the model comes first."""
    return dict(sorted(model.model_fields.items(), key=lambda item: not is_tag(item[1].annotation)))


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Finds the models that a field's annotation mentions, in lists and unions too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in models_in(part)]


def flat(values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Flattens nested mappings to keys such as ``train.steps``; an empty mapping counts as a value."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        here = f"{place}.{key}" if place else key
        leaves |= flat(value, here) if isinstance(value, dict) and value else {here: value}
    return leaves
