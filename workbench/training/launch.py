"""Starts and resumes runs; ``workbench run``, the demo and the notebooks all train through here."""

import dataclasses
import platform
import shutil
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from workbench.datasets.base import Dataset
from workbench.datasets.made_splits import write_lists
from workbench.errors import ConfigError, Interrupted, MissingExtraError, RunError, WorkbenchError
from workbench.methods.selection import QUALITY_GAMMA
from workbench.recipe.loading import load_recipe, recipe_beside, stored_recipe
from workbench.recipe.naming import run_name
from workbench.recipe.pair import check_pair
from workbench.recipe.schema import CheckpointConfig, Recipe, TeacherRecipeConfig, flat
from workbench.recipe.setup import Setup, build, check_splits, open_split, stored_teacher
from workbench.resources import code_commit, share_path
from workbench.store.groups import EQUAL_STEPS
from workbench.store.run import Run, free_path, is_path, run_path, runs_root
from workbench.teacher_cache.read import TeacherCache, open_cache
from workbench.training.loop import Listener, Silent, Trainer
from workbench.training.optim import optimizer_copies
from workbench.training.processes import broadcast_from_main, init_processes
from workbench.training.sanity import check_teacher
from workbench.training.watch import Unwatched, Watch, watched

TRACKERS = ("tensorboard", "mlflow", "wandb")
# a teacher that is trained from a recipe uses the student's data
_SHARED_DATA = ("path", "format", "train", "val", "test", "splits", "options", "policy")
_CHECKPOINTS = 3
_NO_RESULT = ("name", "note", "seed", "data.path", "train.workers", "train.on_out_of_memory", "cache.name")


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a run is started; nothing here changes what is learned.

    Attributes:
        name: Name of the run; made from recipe, arm and seed if None.
        arm: Arm that is stored with the run.
        group: Schedule that is stored with the run: equal steps or equal compute.
        device: auto, cpu, cuda or cuda:N.
        trackers: Trackers of accelerate that log the run: tensorboard, mlflow, wandb.
    """

    name: str | None = None
    arm: str | None = None
    group: str = EQUAL_STEPS
    device: str = "auto"
    trackers: tuple[str, ...] = ()


def start(recipe: Recipe, launch: Launch, listener: Listener, folder: Path | None = None) -> Run:
    """Trains a recipe from its first step and returns the run.

    Args:
        recipe: a validated recipe.
        launch: how to start the run.
        listener: receives the progress.
        folder: folder of the recipe file, where a teacher recipe may lie beside it.

    Raises:
        WorkbenchError: a problem that the user can fix; if it is found before training, no run directory is made.
    """
    name = launch.name or run_name(recipe, launch.arm)
    with watched(name) as watch:
        return _start(recipe, launch, name, listener, folder, watch)


def _start(recipe: Recipe, launch: Launch, name: str, listener: Listener, folder: Path | None, watch: Watch | Unwatched) -> Run:
    processes = _init_processes(launch)
    run = Run(run_path(name))
    listener = listener if processes.is_main_process else Silent()
    if processes.is_main_process:
        refuse_taken(name, recipe)
        free_path(name, run.path.parent)
    _check_trackers(launch.trackers)
    check_splits(recipe)
    _check_teacher_to_be(recipe, folder)
    teacher = ready_teacher(recipe, launch, listener, folder)
    setup = build(recipe, teacher)
    if isinstance(teacher, Run) and teacher.info().get("dataset_hash") != setup.train.hash():
        raise RunError(f"the teacher's run '{teacher.name}' was trained on other data. {_train_again(teacher.name)}")
    _check_space(setup)
    cache = open_cache(setup)
    for note in (*setup.notes, *(f"{method.name}: {method.citation}" for method in setup.methods)):
        listener.on_message(note)
    teacher_ap = None
    if setup.teacher is not None and setup.methods:
        teacher_ap = check_teacher(setup)
        listener.on_message(f"teacher on '{setup.val.split}': {100 * teacher_ap:.1f} AP")
    if processes.is_main_process:
        teacher_name = teacher.name if isinstance(teacher, Run) else teacher and _settled(teacher)
        Run.create(name, {**_info(setup, cache, launch, teacher_name), "teacher_ap": teacher_ap}, run.path.parent)
        if recipe.data.splits is not None:
            write_lists(run.splits_path, _splits(setup))
    with watch.trains(run):  # another process may be lost before it comes here
        processes.wait_for_everyone()
        return _train(run, setup, cache, launch, listener, watch)


def refuse_taken(name: str, recipe: Recipe) -> None:
    """Refuses the name of an existing run, and offers to resume it only if it is unfinished and was made from the same recipe and data.

    Raises:
        RunError: a run of this name exists.
    """
    run = Run(run_path(name))
    if not run.info_path.exists():
        return
    state = run.info().get("state")
    others = changes_since(run, recipe) or other_data(run, recipe)
    if others:
        what = f" and was made with other data or settings: {'; '.join(others)}. Choose"
    elif state == "done":
        what = f" and is finished: 'workbench runs show {name}' shows it. To train again, choose"
    else:
        what = f". Resume it with 'workbench run --resume {name}', or choose"
    raise RunError(f"run '{name}' already exists in {runs_root()}{what} another --name, or remove it with 'workbench runs rm {name}'.")


def checkpoint_bytes(setup: Setup) -> int:
    """Returns the bytes that the checkpoints of a run take at most: the last, the best, and one that is being written."""
    train = setup.recipe.train
    weights = sum(value.numel() * value.element_size() for value in setup.student.state_dict().values())
    # the detector folder, and in the trainer's file the weights, their moments and their average
    return _CHECKPOINTS * weights * (2 + optimizer_copies(train) + (train.ema > 0))


def _check_space(setup: Setup) -> None:
    """Checks that the disk holds the checkpoints of a run.

    Raises:
        RunError: it does not; the message says how much is needed.
    """
    needed = checkpoint_bytes(setup)
    free = shutil.disk_usage(runs_root()).free
    if free < needed:
        raise RunError(
            f"the checkpoints of this run take {needed / 1e6:,.0f} MB and {runs_root()} has {free / 1e6:,.0f} MB free. Free some space, or "
            "choose another folder with --runs."
        )


def _check_teacher_to_be(recipe: Recipe, folder: Path | None) -> None:
    """Checks the pair if the teacher's recipe has still to be trained, because that costs the most.

    Raises:
        WorkbenchError: the pair does not fit, or the data cannot be used.
    """
    made = teacher_of(recipe, folder)
    if made is None or not (recipe.methods or recipe.inherit is not None):
        return
    run = Run(runs_root() / made[2])
    if not run.info_path.exists() or run.info().get("state") != "done":
        check_pair(recipe, made[0], open_split(recipe, recipe.data.val))


def resume(run: Run, launch: Launch, listener: Listener) -> Run:
    """Continues an interrupted run from its last checkpoint.

    Raises:
        DeviceError: this machine does not have the device.
        RunError: the run is finished, or another process is writing it.
    """
    with watched(run.name) as watch:
        return _resume(run, launch, listener, watch)


def _resume(run: Run, launch: Launch, listener: Listener, watch: Watch | Unwatched) -> Run:
    listener = listener if _init_processes(launch).is_main_process else Silent()
    _check_trackers(launch.trackers)
    info = run.info()
    if info.get("state") == "done":
        raise RunError(f"run '{run.name}' is finished, so there is nothing to resume.")
    recipe = stored_recipe(info["recipe"], str(run.info_path))
    setup = build(recipe, stored_teacher(run))
    for key, now in (("dataset_hash", setup.train.hash()), ("teacher_hash", setup.teacher_hash)):
        if info.get(key) != now:
            raise RunError(
                f"run '{run.name}' was started with another {key.removesuffix('_hash')} ({info.get(key)}, now {now}). Restore it, or "
                "start a new run."
            )
    cache = open_cache(setup)
    return _train(run, setup, cache, launch, listener, watch)


def _train(run: Run, setup: Setup, cache: TeacherCache | None, launch: Launch, listener: Listener, watch: Watch | Unwatched) -> Run:
    main = PartialState().is_main_process
    with run.locked() if main else nullcontext(), watch.trains(run):
        try:
            trainer = Trainer(run, setup, listener, launch.device, launch.trackers, cache)
            trainer.watch = watch
            trainer.train()
        except KeyboardInterrupt as error:
            # before the first step, or for the second time: what was not saved cannot be saved any more
            if not main:
                raise SystemExit(Interrupted.exit_code) from error
            run.update_info(state="interrupted")
            saved = run.checkpoint_steps()
            kept = f"Its checkpoint of step {saved[-1]} is kept" if saved else "It has no checkpoint yet and begins again at its first step"
            raise Interrupted(f"run '{run.name}' was stopped at once. {kept}: workbench run --resume {run.name}") from error
        except WorkbenchError as error:
            with suppress(WorkbenchError):  # where run.json is gone or damaged, the first error says more
                if main and run.info().get("state") != "interrupted":
                    run.update_info(state="failed", error=str(error))
            raise
    return run


def _init_processes(launch: Launch) -> PartialState:
    """Joins the other processes of the run. On a CPU each uses one thread, so that sums are always made in the same order."""
    processes = init_processes(launch.device)
    if str(processes.device) == "cpu":
        torch.set_num_threads(1)
    return processes


def teacher_of(recipe: Recipe, folder: Path | None = None) -> tuple[Recipe, Path, str] | None:
    """Returns the recipe that makes a recipe's teacher on the same data and splits, its folder, and the name of the teacher's run.

    Args:
        recipe: recipe of the student.
        folder: folder of the student's recipe file; a teacher recipe is looked up there, then among the shipped ones.

    Returns:
        None if the teacher is a checkpoint or there is no teacher.
    """
    if not isinstance(recipe.teacher, TeacherRecipeConfig):
        return None
    path = recipe_beside(recipe.teacher.recipe, folder or share_path("recipes"))
    made = load_recipe(path, [f"seed={recipe.teacher.seed}"])
    made = made.model_copy(update={"data": made.data.model_copy(update={key: getattr(recipe.data, key) for key in _SHARED_DATA})})
    return made, path.parent, run_name(made)


def teacher_name(recipe: Recipe, folder: Path | None = None) -> str | None:
    """Returns the name of the detector that teaches: the run that a recipe makes, or a checkpoint; None without a teacher.

    Args:
        recipe: recipe of the student.
        folder: folder of the student's recipe file.
    """
    made = teacher_of(recipe, folder)
    if made is not None:
        return made[2]
    return recipe.teacher.checkpoint if isinstance(recipe.teacher, CheckpointConfig) else None


def changes_since(run: Run, recipe: Recipe, but: Sequence[str] = ()) -> list[str]:
    """Lists the settings that affect the result and differ between a run and a recipe, such as ``train.steps 100, now 200``.

    Args:
        run: an existing run.
        recipe: the recipe to compare it with.
        but: keys that are not compared.
    """
    recipes = (stored_recipe(run.info()["recipe"], str(run.info_path)), recipe)
    before, now = (flat(one.model_dump(mode="json", exclude={"arms", "lineage"})) for one in recipes)
    keys = [key for key in sorted({*before, *now}) if key not in (*_NO_RESULT, *but) and before.get(key) != now.get(key)]
    return [f"{key} {before.get(key)}, now {now.get(key)}" for key in keys]


def other_data(run: Run, recipe: Recipe) -> list[str]:
    """Returns what ``changes_since`` leaves out: a line if the recipe's data lies elsewhere and is not the data of the run.

    Args:
        run: an existing run.
        recipe: the recipe to compare it with.
    """
    before, now = run.info()["recipe"]["data"]["path"], recipe.data.path
    if now is None or before == now:
        return []
    # the same data may have been moved; data that cannot be read is not the same
    with suppress(WorkbenchError):
        if open_split(recipe, recipe.data.train).hash() == run.info().get("dataset_hash"):
            return []
    return [f"data {before}, now {now}"]


def ready_teacher(recipe: Recipe, launch: Launch, listener: Listener, folder: Path | None) -> Run | str | None:
    """Returns the teacher to load: the run made from its recipe, trained first if it does not exist yet, or the name of a checkpoint.

    Args:
        recipe: recipe of the student.
        launch: how the teacher's run is started.
        listener: receives its progress.
        folder: folder of the student's recipe file.

    Raises:
        RunError: the teacher's run was made with another recipe.
    """
    made = teacher_of(recipe, folder)
    if made is None:
        return teacher_name(recipe, folder)
    teacher_recipe, beside, name = made
    run = Run(runs_root() / name)
    if broadcast_from_main(run.info_path.exists()):
        if changes := changes_since(run, teacher_recipe):
            raise RunError(f"the teacher's run '{name}' was made with another recipe: {'; '.join(changes)}. {_train_again(name)}")
        if broadcast_from_main(run.info().get("state")) != "done":
            listener.on_message(f"resuming the teacher's run '{name}'")
            resume(run, dataclasses.replace(launch, name=None, arm=None), listener)
        return run
    listener.on_message(f"training the teacher first: run '{name}'")
    return start(teacher_recipe, dataclasses.replace(launch, name=name, arm=None, group=EQUAL_STEPS), listener, beside)


def _train_again(name: str) -> str:
    return (
        f"Remove it with 'workbench runs rm {name}' to train it again, or name it in the recipe to use it as it is: "
        f"teacher: {{checkpoint: {name}}}."
    )


def _check_trackers(names: Sequence[str]) -> None:
    """Checks that every tracker is known and installed, because accelerate skips a missing one silently."""
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"--log {name}: this tracker is unknown. Choose from {', '.join(TRACKERS)}.")
        if find_spec(name) is None:
            raise MissingExtraError(f"--log {name} needs a package that is not installed. Run: pip install {name}")


def _splits(setup: Setup) -> dict[str, Dataset]:
    splits = {"train": setup.train, "val": setup.val, "test": setup.test}
    return {name: data for name, data in splits.items() if data is not None}


def _settled(name: str) -> str:
    """Returns a path as it is from every folder; a name and an address stay as they are."""
    return str(Path(name).absolute()) if is_path(name) and "://" not in name else name


def _settled_data(recipe: Recipe) -> str | None:
    """Returns the place of the recipe's data as it is from every folder, since a run is read from others than it was started in."""
    data = recipe.data
    made = data.format == "shapes" or (data.format == "auto" and data.path == "shapes")
    return data.path if data.path is None or made else str(Path(data.path).absolute())


def _info(setup: Setup, cache: TeacherCache | None, launch: Launch, teacher: str | None) -> dict[str, Any]:
    recipe = setup.recipe
    libraries = {name: version(name) for name in ("torch", "torchvision", "transformers", "accelerate", "scipy", "numpy")}
    stored = recipe.model_dump(mode="json")
    stored["data"]["path"] = _settled_data(recipe)
    return {
        "recipe": stored,
        "recipe_hash": recipe.hash(),
        "group": {"recipe": recipe.name, "arm": launch.arm or recipe.own_arm, "seed": recipe.seed, "schedule": launch.group},
        "commit": code_commit(),
        "libraries": libraries,
        "python": platform.python_version(),
        "seed": recipe.seed,
        "dataset": setup.train.name,
        "dataset_hash": setup.train.hash(),
        "split_hashes": {split: data.hash() for split, data in _splits(setup).items()} if recipe.data.splits is not None else None,
        "classes": list(setup.train.classes),
        "teacher": teacher,
        "teacher_hash": setup.teacher_hash,
        "cache": {"name": cache.folder.name, "build_seconds": cache.manifest.seconds} if cache is not None else None,
        "gamma": QUALITY_GAMMA,
        "state": "created",
        "issues": [str(issue) for issue in setup.train.issues],
        "notes": setup.notes,
    }
