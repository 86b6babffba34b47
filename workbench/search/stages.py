"""Decides what is trained next: the formulas of each input, the repeats of the best, then the shares of the best formulas together."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from workbench.methods.detkds.genotype import FEATURES, INPUTS, Genotype
from workbench.search.asked import Asked
from workbench.search.genes import ShareSpace
from workbench.search.records import Mean, TrialRecord, best, cost, means
from workbench.search.study import MOST_TRIES, SearchStudy

SHARES = "shares"
Next = Asked | Literal["wait", "done"]


@dataclass(frozen=True)
class Stage:
    """How far the study of an input, or that of the shares, has come.

    Attributes:
        study: Name of the study.
        trained: Trials that were trained.
        open: Trials that run or wait.
        target: Trials to train.
        repeats: Repeats that are done.
        missing: Candidates and fresh seeds that are still to be trained.
        repeating: Repeats that run.
        ended: Whether all trials are trained, or nothing is left to propose.
    """

    study: str
    trained: int
    open: int
    target: int
    repeats: int
    missing: list[tuple[TrialRecord, int]]
    repeating: int
    ended: bool

    @property
    def done(self) -> bool:
        """True if its trials and repeats are all trained."""
        return self.ended and not self.open and not self.missing and not self.repeating


def stage(search: SearchStudy, name: str, target: int) -> Stage:
    """Returns how far a study has come.

    Args:
        search: the search.
        name: name of the study.
        target: trials to train in it.
    """
    plan, records = search.plan, search.records(name)
    trained = sum(record.trained for record in records)
    running = sum(record.open and not record.repeat for record in records)
    ended = trained >= target or (running == 0 and search.sampling(name).exhausted(search.study(name)))
    repeats = [record for record in records if record.repeat]
    there = {(r.repeat_of, r.seed) for r in repeats if r.state != "FAIL"}
    missing: list[tuple[TrialRecord, int]] = []
    if ended and not running:
        seeds = range(plan.seed + 1, plan.seed + 1 + plan.repeats)
        missing = [(one, seed) for one in best(records, plan.repeated) for seed in seeds if (one.number, seed) not in there]
        missing = [(one, seed) for one, seed in missing if _deaths(repeats, one, seed) < MOST_TRIES]
    done = sum(record.state in ("COMPLETE", "PRUNED") for record in repeats)
    return Stage(name, trained, running, target, done, missing, sum(record.open for record in repeats), ended)


def _deaths(repeats: list[TrialRecord], of: TrialRecord, seed: int) -> int:
    return sum(r.state == "FAIL" and (r.repeat_of, r.seed) == (of.number, seed) for r in repeats)


def next_trial(search: SearchStudy) -> Next:
    """Begins the trial that comes next.

    Returns:
        The trial; ``wait`` if it depends on trials that others are training; ``done`` if the search is at its end.
    """
    with search.journal.together():
        plan, waiting = search.plan, False
        for input in plan.inputs:
            found = _next_of(search, input, plan.trials)
            if isinstance(found, Asked):
                return found
            waiting |= found == "wait"
        if waiting:
            return "wait"
        name = shares_study(search, create=True)
        return "done" if name is None else _next_of(search, name, plan.share_trials)


def _next_of(search: SearchStudy, name: str, target: int) -> Next:
    now = stage(search, name, target)
    if not now.ended:
        # proposing more than are missing would train too many; those that run may still be refused
        waits = any(record.state == "WAITING" for record in search.records(name) if not record.repeat)
        if waits or (now.trained + now.open < target and not search.sampling(name).exhausted(search.study(name))):
            return search.ask(name)
        return "wait"
    if now.missing:
        return search.ask_repeat(name, *now.missing[0])
    return "done" if now.done else "wait"


def winner(search: SearchStudy, name: str) -> TrialRecord | None:
    """Returns the candidate of a study with the best mean over fresh seeds; the best single trial if the plan repeats none."""
    records = search.records(name)
    ranked: list[Mean] = means(records)
    if ranked:
        return ranked[0].first
    first = best(records, 1)
    return first[0] if first else None


def shares_study(search: SearchStudy, create: bool = False) -> str | None:
    """Returns the name of the study of the shares of the best formulas.

    When a search is resumed with more trials, other formulas may win; the shares of those are another study (``shares-2``, ...).

    Args:
        search: the search.
        create: whether the study is made if it does not exist.

    Returns:
        None if no input has a formula that was trained, if one formula alone has one share to choose, or if the study does not exist.
    """
    won = [record for record in (winner(search, input) for input in _in_order(search)) if record is not None]
    formulas: list[dict[str, Any]] = [_formula(record.formulas[0]) for record in won]
    space = ShareSpace(tuple(Genotype(**one) for one in map(_whole, formulas)), search.plan.shares, search.plan.share)
    if not formulas or len(space.legal) < 2:
        return None
    number = 1
    while (name := SHARES if number == 1 else f"{SHARES}-{number}") in search.studies:
        if search.study(name).user_attrs.get("formulas") == formulas:
            return name
        number += 1
    if not create:
        return None
    search.study(name, formulas=formulas)
    return name


def _in_order(search: SearchStudy) -> list[str]:
    """Returns the inputs of the plan that have trials, in the order in which a candidate lists them."""
    return [input for input in INPUTS if input in search.plan.inputs and input in search.studies]


def _formula(entry: dict[str, Any]) -> dict[str, Any]:
    positions = ("t1", "t2", "t3", "distance") if entry["input"] in FEATURES else ("t3", "distance")
    return {"input": entry["input"], **{position: entry[position] for position in positions}}


def _whole(formula: dict[str, Any]) -> dict[str, Any]:
    return asdict(Genotype(formula["input"])) | formula


@dataclass(frozen=True)
class Cost:
    """What a search has cost and will cost.

    Attributes:
        spent: CPU seconds of all trials so far.
        left: CPU seconds that the trials and repeats to come will take at the mean of those so far; None if none was trained yet.
        trials: Trials and repeats that are done.
        total: Trials and repeats of the whole search.
    """

    spent: float
    left: float | None
    trials: int
    total: int


def stages(search: SearchStudy) -> list[Stage]:
    """Returns how far each study has come that exists."""
    found = [stage(search, input, search.plan.trials) for input in search.plan.inputs if input in search.studies]
    name = shares_study(search)
    return found + ([stage(search, name, search.plan.share_trials)] if name is not None else [])


def total_cost(search: SearchStudy) -> Cost:
    """Returns what the search has cost and will cost."""
    plan = search.plan
    records = [record for name in search.studies for record in search.records(name)]
    again = plan.repeated * plan.repeats
    total = len(plan.inputs) * (plan.trials + again)
    if len(plan.shares) ** len(plan.inputs) - (0 in plan.shares) > 1:  # else there is one way to share, and no study of it
        total += plan.share_trials + again
    there = stages(search)
    done = sum(min(one.trained, one.target) + min(one.repeats, again) for one in there)
    # a study that has ended sooner than planned trains no more
    total -= sum(max(one.target - one.trained, 0) for one in there if one.ended)
    counted = [record.seconds for record in records if record.seconds > 0]
    left = None if not counted else max(total - done, 0) * sum(counted) / len(counted)
    return Cost(cost(records), left, done, total)
