"""Plans a job before any time is spent: what the data is, which settings follow from it, which pair is trained, and how long it takes."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import RunError
from workbench.recipe.loading import changed, load_recipe, parse_recipe
from workbench.recipe.naming import data_name
from workbench.recipe.own_data import own_data
from workbench.recipe.pair import check_pair
from workbench.recipe.schema import DataConfig, Recipe
from workbench.recipe.setup import open_split
from workbench.store.run import runs_root
from workbench.tasks.distill.budget import Division, divide, refuse_hopeless
from workbench.tasks.distill.pace import Pace, measure
from workbench.tasks.distill.recipes import STUDENT, TEACHER, Pair, make_pair, shipped
from workbench.tasks.distill.rules import Choice, choose, facts_of

MOST_CLASSES = 20  # whose boxes are told


@dataclass(frozen=True)
class Request:
    """What the user asked for; a job is continued only by the same request.

    Attributes:
        data: Path of the dataset.
        student: Size of a shipped student, or a recipe.
        teacher: A detector folder, a run or a name on the hub; None trains the teacher.
        budget: Wall seconds for everything.
        seeds: Number of seeds of each student.
        val: Share of the images to validate on, where the data has no such split.
        test: Share of the images to report on, likewise.
        split_seed: Seed of these splits.
        changes: ``key=value`` for the recipes.
        device: auto, cpu, cuda or cuda:N.
    """

    data: str
    student: str
    teacher: str | None
    budget: float
    seeds: int
    val: float
    test: float
    split_seed: int
    changes: tuple[str, ...]
    device: str


@dataclass(frozen=True)
class Plan:
    """A job that is ready to start.

    Attributes:
        name: Name of the job.
        request: What was asked for.
        data: ``data:`` of both recipes: path, format and splits.
        told: What the check of the data found, in sentences.
        choices: Settings that follow from the data.
        pair: The recipes, without their steps.
        teacher_pace: Pace of the teacher; None if it is there.
        student_pace: Pace of the undistilled student.
        division: How the budget is divided.
        jobs: Runs at a time.
    """

    name: str
    request: Request
    data: dict[str, Any]
    told: tuple[str, ...]
    choices: tuple[Choice, ...]
    pair: Pair
    teacher_pace: Pace | None
    student_pace: Pace
    division: Division
    jobs: int


def default_name(request: Request) -> str:
    """Returns the name of a job that was given none: that of the data's folder and of the student."""
    data = "shapes" if request.data == "shapes" else data_name(request.data) or "data"
    return f"{data}-{Path(request.student).stem}"


def make_plan(name: str, request: Request, jobs: int) -> Plan:
    """Reads the data, chooses the settings, checks the pair and measures its pace; trains nothing and keeps nothing.

    Raises:
        WorkbenchError: a problem that would stop the job later.
    """
    refuse_hopeless(request.budget, request.seeds, jobs)
    config, told = _data(request)
    changes: dict[str, Any] = {}
    for text in request.changes:
        changes = changed(changes, text)
    path = shipped(request.student)
    written = load_recipe(path)
    data = config.model_dump(mode="json", exclude_unset=True)
    train = open_split(written.model_copy(update={"data": config}), config.train)
    choices = choose(facts_of(train), written.student.model_dump(exclude_unset=True))
    pair = make_pair(name, path, request.teacher, data, choices, changes)
    own, taught = parsed(pair)
    check_pair(own, taught, train)
    teacher_pace = measure(taught, request.device) if taught is not None else None
    student_pace = measure(own, request.device)
    check_space(teacher_pace, student_pace, request.seeds)
    # until the teacher is there, one of its steps says how long its forward pass takes
    asked = (teacher_pace or student_pace).step / own.train.batch_size / 2
    cached = asked * len(train) * own.cache.variants if own.cache is not None else 0.0
    division = divide(request.budget, teacher_pace, student_pace, cached, request.seeds, jobs)
    return Plan(name, request, data, told, tuple(choices), pair, teacher_pace, student_pace, division, jobs)


def _data(request: Request) -> tuple[DataConfig, tuple[str, ...]]:
    """Checks the data and decides on its splits; returns them, and what was found in sentences."""
    if request.data == "shapes":
        return DataConfig(path="shapes", format="shapes", train="train", val="val", test="test"), ("the embedded shapes",)
    found = own_data(Path(request.data).expanduser().resolve(), request.val, request.test, request.split_seed)
    sizes = ", ".join(f"{role} {count:,}" for role, count in found.images.items())
    boxes = {name: sum(counts[name] for counts in found.boxes.values()) for name in found.boxes["train"]}
    classes = ", ".join(f"{name} {count:,}" for name, count in list(boxes.items())[:MOST_CLASSES])
    if len(boxes) > MOST_CLASSES:
        classes += f" and {len(boxes) - MOST_CLASSES:,} more classes"
    lines = [f"{found.config.path} ({found.config.format}); images: {sizes}", f"boxes: {classes}", *found.notes]
    return found.config, tuple(lines)


def check_space(teacher: Pace | None, student: Pace, seeds: int) -> None:
    """Checks that the disk holds the checkpoints of every run of a job.

    Raises:
        RunError: it does not; the message says how much is needed.
    """
    needed = (teacher.checkpoints if teacher is not None else 0) + 3 * seeds * student.checkpoints
    place = Path(runs_root()).absolute()
    free = shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.is_dir())).free
    if free < needed:
        raise RunError(
            f"the checkpoints of the job take {needed / 1e6:,.0f} MB and {place} has {free / 1e6:,.0f} MB free. Free some space, or choose "
            "another folder with --runs."
        )


def parsed(pair: Pair) -> tuple[Recipe, Recipe | None]:
    """Returns the recipes of student and teacher, validated.

    Raises:
        ConfigError: a value is wrong; the message names its key.
    """
    taught = parse_recipe(pair.teacher, TEACHER) if pair.teacher is not None else None
    return parse_recipe(pair.student, STUDENT), taught
