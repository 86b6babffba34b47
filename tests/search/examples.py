"""A search that trains nothing: fitness from a table, a plan of a shipped recipe, and a worker that can be killed."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.search.candidate import Candidate, Outcome
from workbench.search.plan import SearchPlan
from workbench.search.study import SearchStudy
from workbench.search.workers import work

PLAN: dict[str, Any] = {
    "name": "tried", "recipe": "shapes", "inputs": ("logits",), "sampler": "random", "seeded": False, "trials": 6, "share_trials": 3,
    "repeated": 2, "repeats": 2, "unpruned": 4, "steps": 100,
}  # fmt: skip
FITNESS = "0" * 16


def plan(**changes: Any) -> SearchPlan:
    """Returns a plan of few trials."""
    return SearchPlan.model_validate(PLAN | changes)


def opened(folder: Path, **changes: Any) -> SearchStudy:
    """Opens the search of ``plan`` in a folder."""
    return SearchStudy.open(plan(**changes), folder, FITNESS, other_code=True)


def share_of(text: str) -> float:
    """Returns a number in 0..1 that only the text decides."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


class TableTrainer:
    """Returns an AP that the candidate and the seed decide, after a rung at half of the steps.

    Args:
        seconds: how long a trial takes.
        noise: largest difference between seeds.
    """

    def __init__(self, seconds: float = 0.0, noise: float = 0.02):
        self.seconds, self.noise = seconds, noise
        self.trained: list[tuple[str, int]] = []

    def ap(self, candidate: Candidate, seed: int) -> float:
        return 0.5 * share_of(str(candidate)) + self.noise * share_of(f"{candidate} {seed}")

    def train(self, candidate: Candidate, seed: int, rung: Callable[[int, float], bool]) -> Outcome:
        self.trained.append((str(candidate), seed))
        time.sleep(self.seconds)
        ap = self.ap(candidate, seed)
        if rung(50, ap / 2):
            return Outcome(None, {50: ap / 2}, "rung", "others were better at step 50", seconds=1.0)
        return Outcome(ap, {50: ap / 2, 100: ap}, seconds=2.0)


def train_in_a_process(folder: str, trials: int) -> None:
    """Works on a search until it is done; the target of a process that is killed."""
    work(opened(Path(folder), trials=trials, sampler="recommended"), TableTrainer(seconds=0.15))
