"""Decides whether a trial ends at a rung, from how well the rung has told so far what trials reach at their end."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from workbench.search.records import TrialRecord


@dataclass(frozen=True)
class Rung:
    """How well a rung tells what a trial will reach.

    Attributes:
        step: Step of the rung.
        trials: Number of trials that it was measured on.
        correlation: Spearman's rank correlation of the AP there and at the end; None with fewer than three trials, or if all are alike.
    """

    step: int
    trials: int
    correlation: float | None


def calibration(records: Iterable[TrialRecord]) -> list[Rung]:
    """Returns what the first trials, which run to their end whatever a rung says, tell about each rung before the end."""
    whole = [r for r in records if r.unpruned and not r.repeat and r.value is not None and r.same_as is None]
    last = max((step for record in whole for step in record.rungs), default=0)
    rungs: list[Rung] = []
    for step in sorted({step for record in whole for step in record.rungs if step < last}):
        reached = [r for r in whole if step in r.rungs]
        ranks = [stats.rankdata(values) for values in ([r.rungs[step] for r in reached], [r.value or 0.0 for r in reached])]
        alike = len(reached) < 3 or any(np.ptp(one) == 0 for one in ranks)
        rungs.append(Rung(step, len(reached), None if alike else float(np.corrcoef(*ranks)[0, 1])))
    return rungs


def may_prune(records: Iterable[TrialRecord], step: int, trials: int, correlation: float) -> bool:
    """True if a rung may end trials: it was measured on enough of them, and its rank correlation with the end is large enough.

    Args:
        records: trials of one study.
        step: step of the rung.
        trials: how many trials are enough.
        correlation: how large is enough.
    """
    found = next((rung for rung in calibration(records) if rung.step == step), None)
    return found is not None and found.trials >= trials and found.correlation is not None and found.correlation >= correlation


def should_end(records: Sequence[TrialRecord], step: int, ap: float, trials: int, correlation: float) -> bool:
    """True if a trial should end at a rung: the rung may end trials, and the AP is below the median of the trials that reached it.

    Args:
        records: trials of one study.
        step: step of the rung.
        ap: the trial's AP there.
        trials: see ``may_prune``.
        correlation: see ``may_prune``.
    """
    if not may_prune(records, step, trials, correlation):
        return False
    others = [record.rungs[step] for record in records if record.trained and step in record.rungs]
    return ap < float(np.median(others))
