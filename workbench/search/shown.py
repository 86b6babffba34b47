"""Turns the trials of a search into tables, as figures and pages show them. AP is in points (0..100) here."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from workbench.errors import WorkbenchError
from workbench.files import read_json
from workbench.search.equation import MEANINGS, equation
from workbench.search.found import candidate_of
from workbench.search.operation_code import Place, code_of
from workbench.search.plan import SearchPlan
from workbench.search.records import TrialRecord, best_so_far, means, noise, rejections, survivors
from workbench.search.rungs import calibration
from workbench.store.searches import changed

OUTCOMES = ("trained", "rung", "refused", "failed")
_MOMENTS = 40  # at which survivors are counted


def outcome(record: TrialRecord) -> str:
    """Returns what became of a trial: ``trained`` to its end, ended by a ``rung``, ``refused`` by a gate, ``failed``, or ``open``."""
    if record.open:
        return "open"
    if record.state == "COMPLETE":
        return "trained"
    return "failed" if record.state == "FAIL" else "rung" if record.gate == "rung" else "refused"


def trial_table(records: Iterable[TrialRecord]) -> pd.DataFrame:
    """Returns one row for each trial that has ended, repeats included, in the order in which they ended.

    Returns:
        ``place`` (from 1), ``number``, ``repeat`` (bool), ``repeat_of``, ``outcome``, ``ap`` (at the end, or where a rung ended the trial;
        NaN if it was not measured), ``candidate``, ``gate``, ``reason``, ``seed``, ``role``, ``seconds``, ``ended``.
    """
    rows = [
        {
            "number": r.number, "repeat": r.repeat, "repeat_of": r.repeat_of, "outcome": outcome(r), "ap": _last_ap(r),
            "candidate": r.candidate, "gate": r.gate, "reason": r.reason, "seed": r.seed, "role": r.role, "seconds": r.seconds,
            "ended": r.ended,
        }
        for r in _in_order(records)
    ]  # fmt: skip
    columns = ["number", "repeat", "repeat_of", "outcome", "ap", "candidate", "gate", "reason", "seed", "role", "seconds", "ended"]
    table = pd.DataFrame(rows, columns=columns).astype({"ap": float})
    table.insert(0, "place", range(1, len(table) + 1))
    return table


def rung_table(records: Iterable[TrialRecord]) -> pd.DataFrame:
    """Returns the AP of each trial at each rung before its last: ``place`` as in ``trial_table``, ``number``, ``step``, ``ap``."""
    rows: list[tuple[int, int, int, float]] = []
    for place, record in enumerate(_in_order(records), 1):
        steps = list(record.rungs)
        last = steps[-1:] if record.value is not None or record.gate == "rung" else []
        rows += [(place, record.number, step, 100 * record.rungs[step]) for step in steps if step not in last]
    return pd.DataFrame(rows, columns=["place", "number", "step", "ap"])


def leader_table(records: Sequence[TrialRecord]) -> pd.DataFrame:
    """Returns the best mean over fresh seeds whenever it changed.

    Returns:
        ``place``, ``mean``, ``low``, ``high``, ``n``, ``number``, ``candidate``.
    """
    ended = [record.ended or 0.0 for record in _in_order(records)]
    rows = [
        (sum(one <= when for one in ended), 100 * mean.mean, _points(mean.low), _points(mean.high), len(mean.values), mean.first.number,
         mean.first.candidate)
        for when, mean in best_so_far(records)
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["place", "mean", "low", "high", "n", "number", "candidate"])
    return table.astype({"low": float, "high": float})


def mean_table(records: Sequence[TrialRecord]) -> pd.DataFrame:
    """Returns the candidates that were trained again with fresh seeds, the best mean first.

    Returns:
        ``number`` and ``first`` (AP) of the trial that made it one of the best, which does not count, ``mean``, ``low``, ``high``, ``n``,
        ``values`` (a list) and ``candidate``.
    """
    rows = [
        {
            "number": one.first.number, "mean": 100 * one.mean, "low": _points(one.low), "high": _points(one.high), "n": len(one.values),
            "first": _points(one.first.value), "values": [100 * value for value in one.values], "candidate": one.first.candidate,
        }
        for one in means(records)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["number", "mean", "low", "high", "n", "first", "values", "candidate"])


def survivor_table(records: Sequence[TrialRecord]) -> pd.DataFrame:
    """Returns how common each choice is among the best fifth as a search goes on: ``trials``, ``position``, ``choice``, ``share``,
    ``proposed`` (its share among all trained trials). The end is the last of at most 40 moments, which are 5 trials or more apart.
    """
    trained = sum(record.value is not None and not record.repeat for record in records)
    rows = survivors(records, max(5, -(-trained // _MOMENTS)))
    order = {position: place for place, position in enumerate(dict.fromkeys(row.position for row in rows))}
    rows.sort(key=lambda row: (row.trials, order[row.position], -row.share, -row.proposed))
    return pd.DataFrame(
        [(row.trials, row.position, row.gene, row.share, row.proposed) for row in rows],
        columns=["trials", "position", "choice", "share", "proposed"],
    )


def space_table(records: Iterable[TrialRecord]) -> tuple[pd.DataFrame, list[str]]:
    """Returns the choices of each trial that was trained to its end, in canonical form, with its AP; and the names of the positions.

    Returns:
        ``number``, ``ap`` and one column for each position.
    """
    kept = [record for record in records if record.value is not None and not record.repeat]
    names = list(kept[0].genes) if kept else []
    single = bool(kept) and len(kept[0].formulas) == 1 and all(name in kept[0].formulas[0] for name in names)
    rows = [{"number": r.number, "ap": _points(r.value), **{n: (r.formulas[0] if single else r.genes)[n] for n in names}} for r in kept]
    return pd.DataFrame(rows, columns=["number", "ap", *names]), names


def calibration_table(records: Sequence[TrialRecord]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns what rungs tell about the end.

    Returns:
        The first trials, which run to their end whatever a rung says: ``number``, ``step``, ``rung`` (AP there), ``end`` (AP). And one row
        for each rung: ``step``, ``correlation`` (Spearman's; NaN if it is not defined), ``n``.
    """
    rungs = calibration(records)
    whole = [r for r in records if r.unpruned and not r.repeat and r.value is not None and r.same_as is None]
    points = [(r.number, rung.step, 100 * r.rungs[rung.step], _points(r.value)) for rung in rungs for r in whole if rung.step in r.rungs]
    table = pd.DataFrame([(rung.step, rung.correlation, rung.trials) for rung in rungs], columns=["step", "correlation", "n"])
    return pd.DataFrame(points, columns=["number", "step", "rung", "end"]), table.astype({"correlation": float})


def rejection_table(records: Iterable[TrialRecord]) -> pd.DataFrame:
    """Returns how many trials each gate ended, by reason, the most common first: ``gate``, ``trials``, ``reason``."""
    rows = [(gate, count, reason) for gate, reasons in rejections(records).items() for reason, count in reasons.items()]
    return pd.DataFrame(sorted(rows, key=lambda row: (row[0], -row[1], row[2])), columns=["gate", "trials", "reason"])


def cost_table(records: Iterable[TrialRecord]) -> pd.DataFrame:
    """Returns what each kind of trial has cost: ``what``, ``trials``, ``seconds`` (CPU, all), ``each`` (mean)."""
    kinds: dict[str, list[float]] = {}
    for record in records:
        if not record.open:
            kinds.setdefault("repeat" if record.repeat else outcome(record), []).append(record.seconds)
    rows = [(what, len(took), sum(took), sum(took) / len(took)) for what in (*OUTCOMES, "repeat") if (took := kinds.get(what))]
    return pd.DataFrame(rows, columns=["what", "trials", "seconds", "each"])


TABLES: Mapping[str, Callable[[list[TrialRecord]], Any]] = {
    "trials": trial_table, "rungs": rung_table, "leaders": leader_table, "means": mean_table, "survivors": survivor_table,
    "space": space_table, "calibration": calibration_table, "rejections": rejection_table, "cost": cost_table, "noise": noise,
}  # fmt: skip
"""What a page asks of the trials of a study, by name."""


@dataclass(frozen=True)
class Details:
    """What a trial trained; without equations if its choices leave nothing to train.

    Attributes:
        candidate: The candidate as text.
        ended: What ended the trial early and why; empty if nothing did.
        equations: For each formula: its input, its share, its equation as LaTeX, and what the equation's letters mean.
        operations: Where each operation is computed.
        entry: The entry of a recipe that trains with it, as YAML.
    """

    candidate: str
    ended: str
    equations: tuple[tuple[str, float, str, str], ...]
    operations: tuple[Place, ...]
    entry: str


def details(plan: SearchPlan, record: TrialRecord) -> Details:
    """Returns what a trial trained.

    Raises:
        RunError: this version lacks one of its operations.
    """
    ended = f"{record.gate or record.state}: {record.reason}" if record.reason else ""
    if not record.formulas:
        return Details(record.candidate, ended, (), (), "")
    candidate = candidate_of(record)
    equations = tuple((one.input, share, equation(one, plan.mode), MEANINGS[one.input]) for one, share in candidate.shares)
    places = tuple(place for one, _ in candidate.shares for place in code_of(one, plan.mode))
    method = candidate.method(plan.mode, **plan.settings)
    entry = yaml.safe_dump({"methods": [{"method": method.pop("method"), **method}]}, sort_keys=False)
    return Details(record.candidate, ended, equations, places, entry)


def listed(folder: Path) -> dict[str, Any]:
    """Returns what a search is, read from its plan alone; ``problem`` says why the plan cannot be read."""
    row: dict[str, Any] = {"search": folder.name, "changed": pd.Timestamp(changed(folder), unit="s").strftime("%Y-%m-%d %H:%M")}
    try:
        plan = SearchPlan.model_validate(read_json(folder / "study.json")["plan"])
    except (WorkbenchError, OSError, ValueError, KeyError, TypeError) as error:
        return row | {"problem": f"study.json cannot be read: {str(error).splitlines()[0]}"}
    kept = plan.model_dump()
    names = ("recipe", "arm", "sampler", "mode", "steps", "trials", "share_trials", "repeated", "repeats", "seed")
    return row | {"inputs": ", ".join(plan.inputs)} | {name: kept[name] for name in names} | {"problem": ""}


def _in_order(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    return sorted((r for r in records if not r.open), key=lambda r: (r.ended or 0, r.repeat, r.number))


def _last_ap(record: TrialRecord) -> float | None:
    if record.value is not None:
        return 100 * record.value
    return 100 * list(record.rungs.values())[-1] if record.gate == "rung" and record.rungs else None


def _points(value: float | None) -> float | None:
    return None if value is None else 100 * value
