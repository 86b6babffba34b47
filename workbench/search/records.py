"""Reads the trials of a search as plain records, and computes from them what a person wants to know."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from optuna.trial import FrozenTrial
from scipy import stats

State = Literal["WAITING", "RUNNING", "COMPLETE", "PRUNED", "FAIL"]
CONFIDENCE = 0.95
SURVIVORS = 0.2


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a search.

    Attributes:
        study: Input whose formulas its study searches, or ``shares``.
        number: Number in its study, or among the repeats of its study.
        state: ``COMPLETE`` was trained to its end, ``PRUNED`` was refused by a gate or ended by a rung, ``FAIL`` has no result.
        candidate: The candidate in canonical form as text, with its shares.
        canonical: The canonical form that tells candidates apart within a study.
        genes: The choices as they were proposed.
        formulas: The formulas of the candidate in canonical form, each with its share.
        seed: Seed that it was trained with.
        value: AP (0..1) on the held-out images after the last step; None if it was not trained to its end.
        rungs: AP by step.
        gate: What ended it early; None if nothing did.
        reason: Why it ended early or failed.
        seconds: CPU seconds that it took.
        worker: Machine and process that trained it.
        commit: Commit of the code that trained it.
        role: What proposed it: ``start``, ``random``, ``child``, ``newcomer``, ``tpe``.
        unpruned: Whether it was to run to its end whatever a rung said.
        repeat_of: Number of the first trial of its candidate, if it repeats it with a fresh seed.
        retry_of: Number of the trial whose worker died, if it was queued again.
        same_as: Number of the trial whose result it took over, because it trained the same.
        started, ended: Seconds since 1970; None if it has not.
    """

    study: str
    number: int
    state: State
    candidate: str
    canonical: str
    genes: dict[str, Any]
    formulas: tuple[dict[str, Any], ...]
    seed: int | None
    value: float | None
    rungs: dict[int, float]
    gate: str | None
    reason: str
    seconds: float
    worker: str
    commit: str | None
    role: str
    unpruned: bool
    repeat_of: int | None
    retry_of: int | None
    same_as: int | None
    started: float | None
    ended: float | None

    @property
    def repeat(self) -> bool:
        """True if it trains a candidate again with a fresh seed."""
        return self.repeat_of is not None

    @property
    def trained(self) -> bool:
        """True if it counts as a trial of the search: trained to its end, or until a rung ended it."""
        return not self.repeat and (self.state == "COMPLETE" or self.gate == "rung")

    @property
    def open(self) -> bool:
        """True if it is running or waits for a worker."""
        return self.state in ("RUNNING", "WAITING")


def record_of(study: str, trial: FrozenTrial) -> TrialRecord:
    """Returns the record of a trial of Optuna."""
    noted = trial.user_attrs
    state: Any = trial.state.name
    rungs = trial.intermediate_values | {int(step): ap for step, ap in noted.get("rungs", {}).items()}
    return TrialRecord(
        study=study,
        number=trial.number,
        state=state,
        candidate=noted.get("candidate", ""),
        canonical=noted.get("canonical", ""),
        genes=dict(trial.params or trial.system_attrs.get("fixed_params", {})),
        formulas=tuple(noted.get("formulas", ())),
        seed=noted.get("seed"),
        value=trial.value if state == "COMPLETE" else None,
        rungs=dict(sorted(rungs.items())),
        gate=noted.get("gate"),
        reason=noted.get("reason", ""),
        seconds=noted.get("seconds", 0.0),
        worker=noted.get("worker", ""),
        commit=noted.get("commit"),
        role=noted.get("role", ""),
        unpruned=noted.get("unpruned", False),
        repeat_of=noted.get("repeat_of"),
        retry_of=noted.get("retry_of"),
        same_as=noted.get("same_as"),
        started=trial.datetime_start.timestamp() if trial.datetime_start else None,
        ended=trial.datetime_complete.timestamp() if trial.datetime_complete else None,
    )


def best(records: Iterable[TrialRecord], count: int | None = None) -> list[TrialRecord]:
    """Returns the first trials that were trained to their end, the best first; a candidate that was proposed twice stands once."""
    ranked = sorted((r for r in records if r.value is not None and not r.repeat), key=lambda r: (-(r.value or 0), r.number))
    return list({record.canonical: record for record in reversed(ranked)}.values())[::-1][:count] if ranked else []


@dataclass(frozen=True)
class Mean:
    """What a candidate reaches, from trials with fresh seeds alone.

    The trial that made the candidate one of the best is left out: it was chosen because it was lucky, among other things.

    Attributes:
        first: The candidate's first trial.
        values: AP of each repeat.
        mean: Their mean.
        low, high: Bounds of the interval of 95 % for the mean; None if the noise is unknown yet.
    """

    first: TrialRecord
    values: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None


def means(records: Sequence[TrialRecord]) -> list[Mean]:
    """Returns the means of the candidates that were trained again, the best first.

    The interval is Student's t with the spread of all repeated candidates together, since two values say little about their own.

    Args:
        records: trials of one study, or of several.
    """
    firsts = {(r.study, r.number): r for r in records if not r.repeat}
    groups = _repeated(records)
    spread, freedom = _pooled(groups.values())
    found: list[Mean] = []
    for key, values in groups.items():
        half = None
        if spread is not None:
            half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * spread / math.sqrt(len(values))
        mean = float(np.mean(values))
        found.append(Mean(firsts[key], tuple(values), mean, None if half is None else mean - half, None if half is None else mean + half))
    return sorted(found, key=lambda one: (-one.mean, one.first.study, one.first.number))


def best_so_far(records: Sequence[TrialRecord]) -> list[tuple[float, Mean]]:
    """Returns when the best mean changed, as seconds since 1970 and the mean with what was known then; never a single trial."""
    steps: list[tuple[float, Mean]] = []
    ended = sorted((r for r in records if r.repeat and r.value is not None and r.ended is not None), key=lambda r: r.ended or 0)
    for index, record in enumerate(ended):
        leader = means([*(r for r in records if not r.repeat), *ended[: index + 1]])[0]
        if not steps or steps[-1][1] != leader:
            steps.append((record.ended or 0, leader))
    return steps


def noise(records: Iterable[TrialRecord]) -> float | None:
    """Returns the standard deviation of AP between seeds of one candidate, over all repeated candidates; None if it is unknown."""
    return _pooled(_repeated(records).values())[0]


def _repeated(records: Iterable[TrialRecord]) -> dict[tuple[str, int], list[float]]:
    """Returns the AP of each repeat, by study and number of the candidate's first trial."""
    groups: dict[tuple[str, int], list[float]] = {}
    for record in records:
        if record.repeat_of is not None and record.value is not None:
            groups.setdefault((record.study, record.repeat_of), []).append(record.value)
    return groups


def _pooled(groups: Iterable[Sequence[float]]) -> tuple[float | None, int]:
    """Returns the standard deviation within groups, and its degrees of freedom."""
    kept = [np.asarray(values) for values in groups if len(values) > 1]
    freedom = sum(len(values) - 1 for values in kept)
    if freedom == 0:
        return None, 0
    return math.sqrt(sum(float(((values - values.mean()) ** 2).sum()) for values in kept) / freedom), freedom


@dataclass(frozen=True)
class Survival:
    """How common a gene is among the best trials.

    Attributes:
        trials: Number of trials that had been trained by then.
        position: Position of the gene.
        gene: The gene, in canonical form.
        share: Its share among the best fifth of those trials.
        proposed: Its share among all of them.
    """

    trials: int
    position: str
    gene: Any
    share: float
    proposed: float


def survivors(records: Iterable[TrialRecord], every: int = 10) -> list[Survival]:
    """Returns which genes the best trials have as a search goes on.

    Args:
        records: trials of one study.
        every: after how many trained trials to look; the end always counts.
    """
    whole = sorted((r for r in records if r.value is not None and not r.repeat), key=lambda r: (r.ended or 0, r.number))
    rows: list[Survival] = []
    for count in sorted({*range(every, len(whole), every), len(whole)} - {0}):
        seen = whole[:count]
        top = sorted(seen, key=lambda r: (-(r.value or 0), r.number))[: math.ceil(SURVIVORS * count)]
        for position in seen[0].genes:
            all_genes, kept = ([_gene(record, position) for record in some] for some in (seen, top))
            for gene in dict.fromkeys(all_genes):
                rows.append(Survival(count, position, gene, kept.count(gene) / len(kept), all_genes.count(gene) / count))
    return rows


def _gene(record: TrialRecord, position: str) -> Any:
    """Returns a gene of the canonical form; a study of shares has an input at each position."""
    if len(record.formulas) == 1 and position in record.formulas[0]:
        return record.formulas[0][position]
    return record.genes[position]


def rejections(records: Iterable[TrialRecord]) -> dict[str, dict[str, int]]:
    """Returns how many trials each gate ended, by reason."""
    table: dict[str, dict[str, int]] = {}
    for record in records:
        if record.gate is not None and not record.repeat:
            reasons = table.setdefault(record.gate, {})
            reasons[record.reason] = reasons.get(record.reason, 0) + 1
    return table


def cost(records: Iterable[TrialRecord]) -> float:
    """Returns the CPU seconds that trials took."""
    return sum(record.seconds for record in records)
