"""Builds the objects of a recipe that training needs: datasets, student, teacher, pairing and methods."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from workbench.datasets.base import Dataset
from workbench.datasets.opening import find_format, open_dataset
from workbench.datasets.reading import match_split
from workbench.datasets.splitting import complete_splits
from workbench.datasets.transforms import Transform, fixed_size
from workbench.datasets.variants import Variants
from workbench.detectors.backbone import BackboneConfig
from workbench.detectors.detector import Detector, InputSpec
from workbench.detectors.output import DetectorOutput
from workbench.detectors.pretrained import origin_of_weights
from workbench.detectors.registry import family, family_in, load_detector
from workbench.errors import CheckpointError, ConfigError, RunError, WorkbenchError
from workbench.files import hash_file
from workbench.methods.context import Pairing, make_pairing
from workbench.methods.method import Method
from workbench.methods.registry import build_method
from workbench.recipe.coverage import check_coverage, check_strides
from workbench.recipe.inherit import architecture_of, bare, inherit_parts
from workbench.recipe.schema import CheckpointConfig, Recipe
from workbench.remote import is_remote
from workbench.resources import share_path
from workbench.store.intact import check_hashes
from workbench.store.run import Run, is_path, result_folder, runs_root


class FrozenTeacher(nn.Module):
    """A teacher in eval mode and without gradients, which receives images in its own normalisation.

    Args:
        detector: the teacher.
        student_spec: normalisation of the incoming batches; images are re-normalised if the teacher's mean or std differ.
        own_spec: normalisation the teacher expects; None uses that of the detector.

    Attributes:
        attentions: True if the output should hold attention maps.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, detector: Detector, student_spec: InputSpec, own_spec: InputSpec | None = None):
        super().__init__()
        self.detector = detector.eval().requires_grad_(False)
        self.attentions = False
        own, other = own_spec or detector.spec, student_spec
        self.same = own.mean == other.mean and own.std == other.std
        scale = torch.tensor(other.std) / torch.tensor(own.std)
        shift = (torch.tensor(other.mean) - torch.tensor(own.mean)) / torch.tensor(own.std)
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", shift[:, None, None], persistent=False)

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Stays in eval mode, whatever the mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor, padding: Tensor) -> DetectorOutput:
        """Returns the teacher's output for a batch normalised for the student; padding stays 0."""
        if not self.same:
            images = (images * self.scale + self.shift).masked_fill(padding[:, None], 0.0)
        with self.detector.collecting_attentions(self.attentions):
            return self.detector(images, padding)


@dataclass
class Setup:
    """All objects of one run, built in a fixed order from the seed.

    Attributes:
        recipe: The recipe that all of this was built from.
        train: The split that is trained on.
        val: The split that is evaluated during training.
        test: The split that is evaluated at the end; None if the recipe leaves it out.
        transform: Transform of training images.
        evaluation_transform: Transform of evaluation images.
        student: The detector that is trained.
        teacher: The frozen teacher; None if there is none, or if no method and no recording needs it.
        teacher_hash: SHA-256 of the teacher's weights; None without a teacher.
        pairing: Layers and classes of teacher and student; None without a teacher.
        methods: Methods with their adapters, in the order of the recipe.
        notes: What the user should know about the data and the models, one sentence each.
        variants: Fixed augmentations of each image that training cycles through, if the recipe has a ``cache:``; None draws new ones.
    """

    recipe: Recipe
    train: Dataset
    val: Dataset
    test: Dataset | None
    transform: Transform
    evaluation_transform: Transform
    student: Detector
    teacher: FrozenTeacher | None
    teacher_hash: str | None
    pairing: Pairing | None
    methods: list[Method]
    notes: list[str]
    variants: Variants | None = None


def open_split(recipe: Recipe, split: str) -> Dataset:
    """Opens one split of the recipe's data, with masks if the student learns them.

    Raises:
        ConfigError: the recipe has no data path.
        DataError: the data cannot be used.
    """
    data = recipe.data
    if data.path is None:
        raise ConfigError(f"recipe '{recipe.name}' has no path of its data. Give --data PATH, or set data.path in the recipe.")
    masks = "masks" in student_class(recipe).provides
    return open_dataset(data.path, split, format=data.format, policy=data.policy, splits=data.splits, masks=masks, **data.options)


def student_class(recipe: Recipe) -> type[Detector]:
    """Returns the class of the recipe's student, which is not built.

    Raises:
        CheckpointError: the recipe starts from a checkpoint that does not exist.
    """
    if isinstance(recipe.student, CheckpointConfig):
        return family_in(find_detector(recipe.student.checkpoint).folder).detector
    return family(architecture_of(recipe.student).family).detector


def check_splits(recipe: Recipe) -> None:
    """Checks that all splits exist, before the first of them is read.

    Raises:
        ConfigError: the data lacks a split that the recipe names; the message says what to set.
        DataError: there is no dataset of the recipe's format.
    """
    data = recipe.data
    if data.path is None or data.format == "shapes" or (data.format == "auto" and data.path == "shapes"):
        return
    found, root = find_format(Path(data.path), data.format)
    there = found.splits(root)
    made = tuple(data.splits.shares) if data.splits is not None else ()
    wanted = {"train": data.train, "val": data.val, "test": data.test}
    missing = [key for key, split in wanted.items() if split is not None and split not in made and match_split(split, there) is None]
    if data.splits is not None and match_split(pool := data.splits.pool(there), there) is None:
        raise ConfigError(f"{root} has the splits {', '.join(there) or 'none'}, so data.splits.of cannot be {pool}. Name one of them.")
    if missing:
        asked = ", ".join(f"{key}: {wanted[key]}" for key in missing)
        names = ", ".join(there) or "none"
        raise ConfigError(f"{root} has the splits {names}, but the recipe asks for {asked}. {_way_out(missing, there)}")


def _way_out(missing: list[str], there: tuple[str, ...]) -> str:
    """Returns what to set if splits are missing: have them made, or choose others."""
    choice = {key: "null" if key == "test" else there[0] if len(there) == 1 else "SPLIT" for key in missing}
    chosen = "hoose a split with " + " ".join(f"--set data.{key}={value}" for key, value in choice.items()) + "."
    both = " Training and validating on the same images shows only that the recipe runs." if len(there) == 1 else ""
    try:
        made = complete_splits(there)[1]
    except ConfigError:
        made = None
    if made is None:
        return f"C{chosen}{both}"
    values = {**({"of": made.of} if made.of else {}), "val": made.val, "test": made.test}
    return f"Have them made with {' '.join(f'--set data.splits.{key}={value:}' for key, value in values.items())}, or c{chosen}{both}"


def input_spec(recipe: Recipe, dataset: Dataset) -> InputSpec:
    """Returns the input specification of this recipe's student: classes, normalisation and size."""
    transform = recipe.data.evaluation_transform or recipe.data.transform
    values = transform.model_dump(mode="json")
    return InputSpec(tuple(dataset.classes), transform.mean, transform.std, values.get("resize"))


@dataclass(frozen=True)
class FoundDetector:
    """The folder of a detector.

    Attributes:
        name: The name used in messages.
        folder: The folder with its ``config.json`` and weights.
        run: The run that produced it; None for any other detector.
    """

    name: str
    folder: Path
    run: Run | None = None


def find_detector(name: str | Run, step: int | None = None, root: Path | None = None) -> FoundDetector:
    """Finds a detector by name, and the run that produced it.

    Args:
        name: an open run; or a name, looked up in the folder of runs, then among the embedded detectors, then on the hub; or the path of
            a run or a detector folder. A path contains a separator.
        step: step of a checkpoint of the run; None takes the run's result.
        root: the folder of runs; None uses ``runs_root()``.

    Raises:
        CheckpointError: nothing has that name (the message lists where it was looked up), or the run is in a remote folder.
        RunError: the run has no such checkpoint or none at all, or a step is given for something that is not a run.
    """
    if isinstance(name, Run):
        return _of_run(name, step)
    run = Run.find(name, root)
    if run is not None:
        return _of_run(run, step)
    if step is not None:
        raise RunError(f"'{name}' is not a run, so it has no checkpoint of step {step}. Leave the step out, or name a run.")
    folder = Path(name) if is_path(name) else share_path("data") / name
    if name and _exists(folder / "config.json"):
        _check_intact(folder, "Restore it from a copy.")
        return FoundDetector(name, folder)
    return FoundDetector(name, _from_hub(name))


def stored_teacher(run: Run) -> FoundDetector | None:
    """Finds the teacher that a run was made with, a run beside it if there is one of that name. Returns None without a teacher.

    Callers compare its weights with ``teacher_hash``, since other weights may have the name today.

    Raises:
        CheckpointError: it is no longer there.
    """
    name = run.info().get("teacher")
    if name is None:
        return None
    beside = run.path.parent
    return find_detector(name, root=beside if Run.find(name, beside) is not None else None)


def _of_run(run: Run, step: int | None) -> FoundDetector:
    if is_remote(run.path):
        raise CheckpointError(f"{run.path} is not a local folder, and weights can only be read locally. Copy the run first.")
    folder = result_folder(run) if step is None else run.complete_checkpoint(step)
    _check_intact(folder, "Restore it from a copy, choose another checkpoint, or train the run again.")
    return FoundDetector(run.name, folder, run)


def _check_intact(folder: Path, remedy: str) -> None:
    """Raises a ``CheckpointError`` if a file of a detector does not hold what was written there; without hashes nobody knows."""
    try:
        check_hashes(folder, remedy)
    except WorkbenchError as error:
        raise CheckpointError(str(error)) from error


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "model.safetensors"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        known = ", ".join(sorted(p.parent.name for p in share_path("data").glob("*/config.json")))
        here = f" To use the folder of that name in the current directory, write ./{name}." if _is_local_folder(name) else ""
        raise CheckpointError(
            f"there is no detector '{name[:200]}': it is no folder with config.json, not a run in {runs_root()}, not an embedded detector"
            f"{f' ({known})' if known else ''}, and {_of_hub(error)}.{here}"
        ) from error


def _of_hub(error: Exception) -> str:
    """Says what the hub answered, or that it could not be asked."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if isinstance(error, HfHubHTTPError | HFValidationError):
        return f"the hub answered {type(error).__name__}"
    return (
        f"the hub could not be reached ({type(error).__name__}). If it lies there, check the network and repeat the command: what was "
        "downloaded so far is kept"
    )


def _is_local_folder(name: str) -> bool:
    return any(_exists(Path(name, file)) for file in ("config.json", "run.json"))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file can have
        return False


def build_student(recipe: Recipe, dataset: Dataset, notes: list[str]) -> Detector:
    """Returns the student, with random weights (torch's global generator) or from a checkpoint with its head kept or reset.

    Raises:
        ConfigError: the recipe says ``head: keep`` and the classes differ.
    """
    spec = input_spec(recipe, dataset)
    if not isinstance(recipe.student, CheckpointConfig):
        architecture = architecture_of(recipe.student)
        student = family(architecture.family).detector.build(architecture, spec)
        if isinstance(architecture.backbone, BackboneConfig):
            notes += origin_of_weights(architecture.backbone, spec.mean, spec.std)
        return student
    student = load_detector(find_detector(recipe.student.checkpoint).folder)
    if recipe.student.head == "reset":
        fresh = student.reset_classes(spec)
        notes.append(f"head reset for {len(spec.classes)} classes; re-initialised: {', '.join(fresh)}")
    elif student.spec.classes != spec.classes:
        raise ConfigError(
            f"checkpoint '{recipe.student.checkpoint}' has the classes {list(student.spec.classes)}, the data has {list(spec.classes)}. "
            "Set 'head: reset' to train a new class head, or rename the classes."
        )
    student.spec = spec
    return student


def inherited(recipe: Recipe, student: Detector, teacher: Detector, pairing: Pairing) -> list[str]:
    """Starts the parts of the student that the recipe names from the teacher's weights, and returns what to say about it.

    Raises:
        IncompatibleError: see ``inherit_parts``.
    """
    if recipe.inherit is None:
        return []
    architecture = bare(architecture_of(recipe.student))
    build_as = family(architecture.family).detector.build
    return inherit_parts(recipe.inherit, student, teacher, pairing, lambda spec: build_as(architecture, spec))


def check_sizes(detector: Detector, role: str, recipe: Recipe, splits: Iterable[Dataset]) -> None:
    """Checks that a detector accepts the image sizes, and that they are all equal if it does not see which cells are padding.

    Args:
        detector: the student or the teacher.
        role: which of the two, for the message.
        recipe: the recipe with the transforms.
        splits: training data first, then splits that are only evaluated on.

    Raises:
        ConfigError: a size does not fit; the message says what to set.
    """
    step = detector.side_multiple
    if detector.reads_padding and step == 1:
        return
    wanted = f"resize: {{height: H, width: W}}{f' with multiples of {step}' if step > 1 else ''}"
    for index, split in enumerate(splits):
        name = "evaluation_transform" if index and recipe.data.evaluation_transform else "transform"
        size = fixed_size(getattr(recipe.data, name), ((record.width, record.height) for record in split.records), training=index == 0)
        if size is None:
            raise ConfigError(
                f"{role} {detector.family} accepts images of one size only, but data.{name} leaves those of '{split.split}' with "
                f"different sizes, which are padded. Set data.{name}.{wanted}."
            )
        if size[0] % step or size[1] % step:
            raise ConfigError(
                f"{role} {detector.family} accepts images whose sides are multiples of {step}, but those of '{split.split}' become "
                f"{size[0]}x{size[1]}. Set data.{name}.{wanted}."
            )


def _on_layers(recipe: Recipe, student: Detector, teacher: Detector, pairing: Pairing) -> list[str]:
    """Says which layers teach which where the depths have no whole ratio and the recipe leaves it open."""
    depths = student.num_stages, teacher.num_stages
    whole = depths[1] % depths[0] == 0
    if recipe.layer_map is not None or not recipe.methods or whole or "queries" not in student.provides & teacher.provides:
        return []
    groups = [list(group) for group in pairing.layer_map]
    return [f"the student's {depths[0]} decoder layers learn from these of the teacher's {depths[1]}: {groups}; 'layer_map:' changes that"]


def in_data_words(spec: InputSpec, class_map: dict[str, str], classes: tuple[str, ...]) -> InputSpec:
    """Returns the teacher's specification with the data's class names.

    Raises:
        ConfigError: a name does not exist, or two teacher classes would get the same name.
    """
    for name, known, side in [(k, spec.classes, "teacher") for k in class_map] + [(v, classes, "data") for v in class_map.values()]:
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name, known, n=3)) or ", ".join(known[:20])
            raise ConfigError(
                f"class_map: the {side} has no class {name!r}; similar: {near}. Write each entry as teacher class: class of the data."
            )
    renamed = tuple(class_map.get(name, name) for name in spec.classes)
    if twice := sorted({name for name in renamed if renamed.count(name) > 1}):
        raise ConfigError(
            f"class_map: more than one teacher class would become {', '.join(map(repr, twice))}. Map one teacher class to each class."
        )
    return replace(spec, classes=renamed)


def build(recipe: Recipe, teacher: str | Run | FoundDetector | None, record_teacher: bool = True) -> Setup:
    """Builds all objects of a run.

    Args:
        recipe: a validated recipe.
        teacher: the detector to load as teacher, found or in any form that ``find_detector`` takes, or None.
        record_teacher: load the teacher even if no method uses it, to compare queries with it.

    Raises:
        WorkbenchError: a problem that the user can fix.
    """
    check_splits(recipe)
    train, val = open_split(recipe, recipe.data.train), open_split(recipe, recipe.data.val)
    test = open_split(recipe, recipe.data.test) if recipe.data.test else None
    return build_on(recipe, teacher, train, val, test, record_teacher)


def build_on(
    recipe: Recipe,
    teacher: str | Run | FoundDetector | None,
    train: Dataset,
    val: Dataset,
    test: Dataset | None,
    record_teacher: bool = True,
) -> Setup:
    """Builds all objects of a run on splits that are open; see ``build``."""
    notes: list[str] = []
    for other in filter(None, (val, test)):
        if other.classes != train.classes:
            raise ConfigError(
                f"split '{other.split}' has the classes {list(other.classes)}, but the training split has {list(train.classes)}. "
                "Give all splits the same classes."
            )
    notes += [f"{data.split}: {issue}" for data in (train, val, test) if data is not None for issue in data.issues]
    torch.manual_seed(recipe.seed)
    student = build_student(recipe, train, notes)
    splits = [train, val, *([test] if test is not None else [])]
    if "masks" in student.provides and not train.has_masks:
        raise ConfigError(
            f"student {student.family} learns masks, but '{train.name}', split '{train.split}', has none. Take a family without masks, "
            "such as faster_rcnn, or data with masks (docs/data.md)."
        )
    check_sizes(student, "student", recipe, splits)
    notes += check_strides(student, recipe.data.transform.resize)
    notes += check_coverage(student, train, Transform(recipe.data.transform))
    frozen, pairing, methods, teacher_hash = None, None, [], None
    if teacher is not None and (recipe.methods or record_teacher or recipe.inherit is not None):
        folder = (teacher if isinstance(teacher, FoundDetector) else find_detector(teacher)).folder
        detector = load_detector(folder)
        check_sizes(detector, "teacher", recipe, splits)
        detector.spec = in_data_words(detector.spec, recipe.class_map, student.spec.classes)
        if dropped := [name for name in detector.spec.classes if name not in student.spec.classes]:
            notes.append(f"teacher classes that the data lacks and every term leaves out: {', '.join(dropped)}")
        pairing = make_pairing(student, detector, recipe.layer_map)
        notes += _on_layers(recipe, student, detector, pairing)
        notes += inherited(recipe, student, detector, pairing)
        frozen = FrozenTeacher(detector, student.spec)
        teacher_hash = hash_file(folder / "model.safetensors")
        methods = [build_method(config, student, detector, pairing) for config in recipe.methods]
        notes += [note for method in methods for note in method.notes]
        frozen.attentions = any("attentions" in method.config.needs_teacher for method in methods)
    # every arm draws the same dropout, whatever adapters its methods made
    torch.manual_seed(recipe.seed + 1)
    transform = Transform(recipe.data.transform)
    evaluation = Transform(recipe.data.evaluation_transform or recipe.data.transform)
    variants = Variants(train, transform, recipe.cache.variants) if recipe.cache is not None else None
    return Setup(recipe, train, val, test, transform, evaluation, student, frozen, teacher_hash, pairing, methods, notes, variants)
