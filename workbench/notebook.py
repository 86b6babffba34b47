"""The library under one name, for notebooks: ``import workbench.notebook as wb``.

``wb.train`` makes runs. ``wb.summary``, ``wb.evaluate``, ``wb.compare`` and ``wb.diagnose`` analyse them. ``wb.figures`` draws them.

Example:
    >>> import workbench.notebook as wb
    >>> wb.check("my-images").ok
    >>> alone, taught = wb.train("shapes", arm="undistilled"), wb.train("shapes", arm="features")
    >>> wb.diagnose(taught, baseline=alone).findings
    >>> dataset = wb.open_data(taught.info(), "test")
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workbench.analysis.detection.ap_tests import Verdict, compare_ap
from workbench.analysis.diagnosis.diagnose import diagnose
from workbench.analysis.of_run import last_with_detections, open_data
from workbench.analysis.report.summary import table
from workbench.analysis.results.of_runs import Results
from workbench.commands.progress import cell_listener
from workbench.datasets.check import check
from workbench.datasets.opening import open_dataset
from workbench.errors import MissingExtraError, RunError, pip_install
from workbench.export.onnx_file import export_onnx
from workbench.export.transformers_folder import export_transformers
from workbench.methods.registry import register
from workbench.recipe.loading import load_recipe, recipe_path
from workbench.recipe.naming import run_name
from workbench.store.run import Run, run_path
from workbench.tasks.evaluate import evaluate
from workbench.tasks.predict import predict
from workbench.training.launch import Launch, changes_since, other_data, resume, start
from workbench.training.loop import Listener
from workbench.views import figures
from workbench.views.run_card import run_card

Run.card = staticmethod(run_card)


def train(
    recipe: str,
    arm: str | None = None,
    seed: int = 0,
    name: str | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    listener: Listener | None = None,
) -> Run:
    """Trains a recipe with a progress bar in the cell and returns the run.

    If a run of this name exists and was made from the same recipe, it is opened instead of made again, and resumed if it is unfinished.

    Args:
        recipe: path of a recipe file, or name of a shipped one.
        arm: arm of the recipe; None trains the recipe as written.
        seed: seed of initialisation and data order.
        name: name of the run; made from recipe, data, arm and seed if None.
        overrides: values for keys of the recipe, such as ``train.steps=300``.
        device: auto, cpu, cuda or cuda:N.
        listener: receives the progress in place of the cell.

    Raises:
        DeviceError: this machine does not have the device.
        RunError: a run of that name was made from another recipe, or is being trained by another process.
        WorkbenchError: any other problem that the user can fix.

    Example:
        >>> run = wb.train("shapes", arm="features", overrides=["train.steps=300"])
    """
    path = recipe_path(recipe)
    resolved = load_recipe(path, [*overrides, f"seed={seed}"], arm)
    name = name or run_name(resolved, arm)
    launch = Launch(name=name, arm=arm, device=device)
    run = Run(run_path(name))
    if not run.info_path.exists():
        return start(resolved, launch, listener or cell_listener(name), path.parent)
    if changes := changes_since(run, resolved) or other_data(run, resolved):
        raise RunError(
            f"run '{name}' already exists and was made with other settings: {'; '.join(changes)}. Give this run another name=, or "
            f"remove the old one with 'workbench runs rm {name}'."
        )
    return run if run.info().get("state") == "done" else resume(run, launch, listener or cell_listener(name))


def summary(*runs: Run, split: str = "val") -> Any:
    """Returns a frame with one row per run and one per teacher, indexed by run; ``analysis.report.summary.summarise`` lists the columns.

    Args:
        *runs: the runs.
        split: recorded split that stability and agreement are of.

    Example:
        >>> wb.summary(alone, taught)[["ap", "ap50", "compute_seconds"]]
    """
    return table(runs, split, with_teacher=True).set_index("run")


def stepper(run: Run, number: int = 1, split: str = "val") -> Any:
    """Returns a widget that steps through the evaluations and decoder layers of one image; see ``views.stepper``.

    Args:
        run: a run with recorded queries.
        number: which image of the split, counted from 1.
        split: a recorded split of the run.

    Raises:
        MissingExtraError: anywidget is not installed.

    Example:
        >>> wb.stepper(run, number=3)
    """
    from workbench.views.stepper import stepper as make

    return make(run, number, split)


def compare(baseline: Mapping[int, Run], other: Mapping[int, Run], split: str = "val") -> Verdict:
    """Compares the AP of two sides, paired by seed, and returns the verdict.

    With five seeds a side the verdict is about the method; with fewer it is about these checkpoints.

    Args:
        baseline: runs by seed, all on the same data.
        other: runs of the other side by seed, on the same data.
        split: split whose detections are compared, each at the run's last evaluation of it.

    Example:
        >>> wb.compare({0: alone}, {0: taught}).sentence()
    """
    results = Results()
    truth = results.truth(last_with_detections(next(iter(baseline.values())), split).data)
    first, second = (
        {seed: results.detections(last_with_detections(run, split)) for seed, run in runs.items()} for runs in (baseline, other)
    )
    return compare_ap(truth, first, second)


def fitness_table(path: str | None = None) -> Any:
    """Returns a table of formulas whose AP is known, to search in without training; see ``search.table.FitnessTable``.

    Args:
        path: its file; by default the one that comes with the checkout.

    Raises:
        MissingExtraError: Optuna is not installed.
        RunError: there is no table.

    Example:
        >>> wb.fitness_table().race(["random", "recommended"], trials=60)
    """
    _require_optuna()
    from workbench.search.table import FitnessTable

    return FitnessTable.read(Path(path) if path else None)


def survivors(trials: Sequence[Any]) -> Any:
    """Returns how common each choice is among the best fifth of the trials as a search goes on; ``figures.survivors`` draws it.

    Args:
        trials: of ``FitnessTable.search``, or of a study of a real search.

    Raises:
        MissingExtraError: Optuna is not installed.
    """
    _require_optuna()
    from workbench.search.shown import survivor_table

    return survivor_table(trials)


def _require_optuna() -> None:
    if find_spec("optuna") is None:
        raise MissingExtraError(f"a search needs Optuna. Run: {pip_install('search')}")


__all__ = [
    "Run", "check", "compare", "diagnose", "evaluate", "export_onnx", "export_transformers", "figures", "fitness_table", "load_recipe",
    "open_data", "open_dataset", "predict", "register", "stepper", "summary", "survivors", "train",
]  # fmt: skip


def __dir__() -> list[str]:
    """Lists what is meant for notebooks, so that completion offers nothing else."""
    return __all__
