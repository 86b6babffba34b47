"""Starting and resuming a run: the one function behind ``workbench run``, the demo and the notebooks."""

import dataclasses
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from workbench.config import CheckpointConfig, Recipe, TeacherRecipeConfig, load_recipe, parse_recipe
from workbench.errors import RunError, WorkbenchError
from workbench.runs import Run, runs_root
from workbench.share import code_commit, share_path
from workbench.training.loop import Listener, Trainer
from workbench.training.sanity import check_teacher
from workbench.training.setup import Setup, build


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a run is started; nothing here changes what is learned.

    Attributes:
        name: of the run; made from recipe, arm and seed when None.
        arm: recorded with the run.
        group: recorded with the run: equal steps or equal compute.
        device: auto, cpu or cuda.
        trackers: of accelerate: tensorboard, mlflow, wandb.
    """

    name: str | None = None
    arm: str | None = None
    group: str = "equal steps"
    device: str = "auto"
    trackers: tuple[str, ...] = ()


def recipe_path(name: str) -> Path:
    """A recipe file by path, or by the name of one that ships with the package.

    Raises:
        RunError: neither; lists the shipped ones.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = share_path("recipes")
    for candidate in (folder / name, folder / f"{name}.yaml", folder / path.name):
        if candidate.is_file():
            return candidate
    shipped = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
    raise RunError(f"no recipe '{name}': it is no file, and the shipped recipes are {shipped}.")


def start(recipe: Recipe, launch: Launch, listener: Listener, folder: Path | None = None) -> Run:
    """Trains a recipe from its first step.

    Args:
        recipe: validated.
        launch: how.
        listener: shown progress.
        folder: of the recipe file, for a teacher recipe beside it.

    Raises:
        WorkbenchError: anything a user can mend; the run directory is not made when it is found before training.
    """
    torch.set_num_threads(1 if launch.device == "cpu" or not torch.cuda.is_available() else torch.get_num_threads())
    name = launch.name or f"{recipe.name}-{launch.arm or recipe.own_arm}-seed{recipe.seed}"
    if (runs_root() / name / "run.json").exists():
        raise RunError(f"run '{name}' exists in {runs_root()}. Resume it with 'workbench run --resume {name}', remove it with "
                       f"'workbench runs rm {name}', or choose another --name.")
    teacher = _teacher(recipe, launch, listener, folder)
    setup = build(recipe, teacher)
    for note in setup.notes:
        listener.on_message(note)
    teacher_ap = None
    if setup.teacher is not None and setup.methods:
        teacher_ap = check_teacher(setup)
        listener.on_message(f"teacher on '{setup.val.split}': {100 * teacher_ap:.1f} AP")
    run = Run.create(name, {**_info(setup, launch, teacher), "teacher_ap": teacher_ap})
    return _train(run, setup, launch, listener)


def resume(name: str, launch: Launch, listener: Listener) -> Run:
    """Goes on with an interrupted run from its last checkpoint.

    Raises:
        RunError: it is finished, or being written.
    """
    torch.set_num_threads(1 if launch.device == "cpu" or not torch.cuda.is_available() else torch.get_num_threads())
    run = Run.open(name)
    info = run.info()
    if info.get("state") == "done":
        raise RunError(f"run '{name}' is finished; nothing to resume.")
    recipe = parse_recipe(info["recipe"], str(run.info_path))
    setup = build(recipe, info.get("teacher"))
    for key, now in (("dataset_hash", setup.train.hash()), ("teacher_hash", setup.teacher_hash)):
        if info.get(key) != now:
            raise RunError(f"run '{name}' was started with another {key.removesuffix('_hash')} ({info.get(key)}, now {now}). Put it back, "
                           "or start a new run.")
    return _train(run, setup, launch, listener)


def _train(run: Run, setup: Setup, launch: Launch, listener: Listener) -> Run:
    with run.locked():
        try:
            Trainer(run, setup, listener, launch.device, launch.trackers).train()
        except WorkbenchError as error:
            if run.info().get("state") != "interrupted":
                run.update_info(state="failed", error=str(error))
            raise
    return run


def _teacher(recipe: Recipe, launch: Launch, listener: Listener, folder: Path | None) -> str | None:
    """Name of the teacher to load; one that a recipe makes is trained first unless it is there."""
    if recipe.teacher is None or isinstance(recipe.teacher, CheckpointConfig):
        return recipe.teacher.checkpoint if recipe.teacher else None
    assert isinstance(recipe.teacher, TeacherRecipeConfig)
    path = (folder or share_path("recipes")) / recipe.teacher.recipe
    overrides = [f"seed={recipe.teacher.seed}"]
    if recipe.data.path is not None:
        overrides.append(f"data.path={recipe.data.path}")
    teacher_recipe = load_recipe(path if path.is_file() else recipe_path(recipe.teacher.recipe), overrides)
    name = f"{teacher_recipe.name}-{teacher_recipe.own_arm}-seed{teacher_recipe.seed}"
    if (runs_root() / name / "run.json").exists():
        if Run.open(name).info().get("state") != "done":
            listener.on_message(f"going on with the teacher's run '{name}'")
            resume(name, dataclasses.replace(launch, name=None, arm=None), listener)
    else:
        listener.on_message(f"training the teacher first: run '{name}'")
        start(teacher_recipe, dataclasses.replace(launch, name=name, arm=None), listener, path.parent)
    return name


def _info(setup: Setup, launch: Launch, teacher: str | None) -> dict[str, Any]:
    recipe = setup.recipe
    libraries = {name: version(name) for name in ("torch", "torchvision", "transformers", "accelerate", "scipy", "numpy")}
    return {
        "recipe": recipe.model_dump(mode="json"),
        "recipe_hash": recipe.hash(),
        "group": {"recipe": recipe.name, "arm": launch.arm or recipe.own_arm, "seed": recipe.seed, "schedule": launch.group},
        "commit": code_commit(),
        "libraries": libraries,
        "python": platform.python_version(),
        "seed": recipe.seed,
        "dataset": setup.train.name,
        "dataset_hash": setup.train.hash(),
        "classes": list(setup.train.classes),
        "teacher": teacher,
        "teacher_hash": setup.teacher_hash,
        "gamma": 0.5,
        "state": "created",
        "issues": [str(issue) for issue in setup.train.issues],
    }
