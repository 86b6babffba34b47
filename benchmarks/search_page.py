"""Measures the dashboard's page of searches in a browser, on a search of 5,000 trials, with the server on two cores.

The search is written by the functions that workers write with, only that nothing is trained: a formula decides its AP.
"""

import hashlib
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.app import WATCH, painted, serving, settle
from benchmarks.harness import Figure
from workbench.errors import WorkbenchError
from workbench.search.candidate import Outcome
from workbench.search.plan import SearchPlan
from workbench.search.records import best
from workbench.search.study import Asked, SearchStudy
from workbench.services.doctor import HOW_TO_GET_A_BROWSER, find_browser

TRIALS, REPEATED, REPEATS = 5_000, 20, 2
CHANGES = 10
NAME, STUDY = "large", "global"
PARTS = {"trials": "Trials", "best": "Best candidates", "survivors": "What survives", "space": "The space",
         "gates": "Gates, rungs and cost", "searches": "All searches"}  # fmt: skip
_REFUSED = 0.1


def figures() -> Iterator[Figure]:
    """Makes the search in a temporary folder, measures each part of its page, and removes the folder."""
    from playwright.sync_api import sync_playwright

    executable = find_browser()
    if executable is None:
        raise WorkbenchError(HOW_TO_GET_A_BROWSER)
    with tempfile.TemporaryDirectory(prefix="workbench-search-page-") as name:
        folder = Path(name)
        make_search(folder / "searches" / NAME, TRIALS)
        yield from measured(sync_playwright, executable, folder)


def measured(sync_playwright: Any, executable: Path, folder: Path) -> Iterator[Figure]:
    """Yields the seconds of a first visit and of every change of the page.

    Args:
        sync_playwright: of playwright.
        executable: of the browser.
        folder: holds the folder ``searches``.
    """
    before = os.environ.get("WORKBENCH_SEARCHES")
    os.environ["WORKBENCH_SEARCHES"] = str(folder / "searches")
    try:
        with sync_playwright() as playwright, serving(folder / "runs") as (address, _):
            browser = playwright.chromium.launch(executable_path=str(executable), args=["--no-sandbox"])
            page: Any = browser.new_page(viewport={"width": 1900, "height": 1000})
            page.set_default_timeout(600_000)
            page.goto(address)  # another page: the browser loads what all pages have in common
            settle(page)
            start = time.perf_counter()
            page.goto(f"{address}/search?study={STUDY}&part=searches")
            settle(page)
            yield Figure(f"visit of a search of {TRIALS:,} trials the first time", time.perf_counter() - start, "s")
            page.evaluate(WATCH)
            yield from parts(page)
            yield from trials(page)
            browser.close()
    finally:
        os.environ.pop("WORKBENCH_SEARCHES") if before is None else os.environ.update(WORKBENCH_SEARCHES=before)


def parts(page: Any) -> Iterator[Figure]:
    """Yields the seconds from the press on a part until it is complete."""
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    for _ in range(1 + CHANGES):
        for part, title in PARTS.items():
            page.get_by_role("radio", name=title, exact=True).click()
            seconds[part].append(painted(page, "part", part))
    for part, (first, *later) in seconds.items():
        yield Figure(f"change to part '{part}', the first time", first, "s")
        yield Figure(f"change to part '{part}'", float(np.median(later)), "s", "<= 0.5", repeats=CHANGES)


def trials(page: Any) -> Iterator[Figure]:
    """Yields the seconds from the choice of another trial until its formula is shown."""
    page.get_by_role("radio", name=PARTS["trials"], exact=True).click()
    painted(page, "part", "trials")
    box = page.get_by_role("spinbutton", name="Trial by number", exact=True)
    seconds: list[float] = []
    for number in range(CHANGES):
        box.fill(str(number + 7))
        box.press("Enter")
        seconds.append(painted(page, "trial", str(number + 7)))
    yield Figure("choice of another trial", float(np.median(seconds)), "s", "<= 0.5", repeats=CHANGES)


def make_search(folder: Path, trials: int) -> SearchStudy:
    """Writes a search of the formulas of whole maps, with repeats of the best.

    Args:
        folder: folder of the search.
        trials: trials that it has, refused ones included.
    """
    plan = SearchPlan.model_validate({"name": NAME, "recipe": "shapes", "inputs": (STUDY,), "sampler": "random", "seeded": False,
                                      "trials": trials, "repeated": REPEATED, "repeats": REPEATS, "steps": 100})  # fmt: skip
    search = SearchStudy.open(plan, folder, "0" * 16, other_code=True)
    with search.journal.together():
        for _ in range(trials):
            _tell(search, search.ask(STUDY))
        for first in best(search.records(STUDY), REPEATED):
            for seed in range(plan.seed + 1, plan.seed + 1 + REPEATS):
                _tell(search, search.ask_repeat(STUDY, first, seed))
    return search


def _tell(search: SearchStudy, asked: Asked) -> None:
    """Ends a trial with an AP that its choices and its seed decide."""
    drawn = random.Random(hashlib.sha256(f"{asked.candidate} {asked.seed}".encode()).hexdigest())
    if drawn.random() < _REFUSED:
        search.tell(asked, Outcome(None, gate="R1", reason="its gradient is too small", seconds=0.5))
    else:
        ap = 0.3 * sum(random.Random(f"{gene}").random() for gene in asked.genes.values()) / len(asked.genes) + 0.02 * drawn.random()
        half = ap / 2 + 0.02 * drawn.random()
        if search.rung(asked, 50, half):
            search.tell(asked, Outcome(None, {50: half}, "rung", "others were better at step 50", seconds=3.0))
        else:
            search.tell(asked, Outcome(ap, {50: half, 100: ap}, seconds=5.0))
