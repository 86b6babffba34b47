"""Groups runs into the sides of a comparison: a side holds the runs of one recipe, arm and schedule, which differ in their seed."""

from collections.abc import Sequence
from typing import NamedTuple

from workbench.analysis.results.detections import seed_of
from workbench.store.groups import EQUAL_STEPS, UNDISTILLED
from workbench.store.run import Run


class SideKey(NamedTuple):
    """Names a side; a run that belongs to no comparison has None in each field."""

    recipe: str | None
    arm: str | None
    schedule: str | None

    def baseline(self) -> "SideKey":
        """Returns the side that this one is compared with: the undistilled runs of the recipe at equal steps."""
        return SideKey(self.recipe, UNDISTILLED, EQUAL_STEPS)


def side_of(run: Run) -> SideKey:
    """Returns the side that a run is on."""
    group = run.info().get("group") or {}
    return SideKey(group.get("recipe"), group.get("arm"), group.get("schedule"))


def sides(runs: Sequence[Run]) -> dict[SideKey, list[Run]]:
    """Returns the runs of each side, sides and runs in the order of ``runs``."""
    found: dict[SideKey, list[Run]] = {}
    for run in runs:
        found.setdefault(side_of(run), []).append(run)
    return found


def baseline_run(run: Run, runs: Sequence[Run]) -> Run | None:
    """Returns the run of the baseline's side to compare a run with: that of the same seed, else the first; None if there is none."""
    same = [other for other in sides(runs).get(side_of(run).baseline(), []) if other.name != run.name]
    return next((other for other in same if seed_of(other) == seed_of(run)), same[0] if same else None)
