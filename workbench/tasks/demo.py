"""Runs the main job on the embedded data: trains undistilled and distilled students of one seed and compares them."""

from collections.abc import Callable

import pandas as pd

from workbench.recipe.written import recipe_path
from workbench.store.groups import DISTILLED, EQUAL_STEPS, UNDISTILLED
from workbench.store.run import Run
from workbench.tasks.compare import compare_rows, execute, plan

QUICK = ("train.steps=240", "train.evaluate_every=60", "train.checkpoint_every=120", "data.options.val=100", "data.options.test=100")


def run_demo(seed: int, quick: bool, jobs: int, watch: Callable[[list[Run]], None]) -> pd.DataFrame:
    """Trains the missing runs and returns the table.

    Args:
        seed: seed of the students.
        quick: use short schedules and fewer images; do not quote the numbers.
        jobs: number of processes at a time.
        watch: called with the runs in progress.
    """
    rows = plan(recipe_path("shapes"), [UNDISTILLED, DISTILLED], [seed], [DISTILLED], prefix="quick-" if quick else "")
    # the distilled run is the longest; starting it first lets the two short ones run beside it
    by_length = sorted(rows, key=lambda row: (row.schedule != EQUAL_STEPS, row.arm != DISTILLED))
    execute(by_length, jobs, QUICK if quick else (), watch=watch)
    return compare_rows(rows)
