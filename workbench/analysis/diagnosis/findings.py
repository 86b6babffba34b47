"""Defines what a diagnosis reports: findings with their evidence, and for every cause whether it could be judged."""

import dataclasses
import math
from typing import Any, Literal

Severity = Literal["error", "warning"]
Outcome = Literal["found", "clear", "not judged"]
Beyond = Literal["above", "below"]
_ORDER: tuple[Severity, ...] = ("error", "warning")


@dataclasses.dataclass(frozen=True)
class Evidence:
    """One number behind a finding.

    Attributes:
        what: description of the number.
        value: the number.
        n: number of items that it is computed from.
        of: kind of these items, in the plural: images, targets, measurements.
        low: lower end of its 95 % interval; None if the number is not an estimate.
        high: upper end of the interval.
    """

    what: str
    value: float
    n: int
    of: str
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" [{self.low:.3g}, {self.high:.3g}]"
        return f"{self.what}: {self.value:.3g}{interval}, n = {self.n} {self.of}"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One cause that was found.

    Attributes:
        cause: name of the cause, a key of ``CAUSES``.
        severity: error if distillation cannot work like this, warning if it works less well.
        statement: one sentence.
        evidence: numbers behind it.
        advice: advice on what to do.
    """

    cause: str
    severity: Severity
    statement: str
    evidence: tuple[Evidence, ...]
    advice: str


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One number that a check compared with a threshold, whatever the outcome.

    Attributes:
        what: description of the number.
        value: the number.
        low: lower end of its 95 % interval; None if it has none, because it is no estimate.
        high: upper end of the interval.
        threshold: the cause is reported only if the whole interval lies beyond it.
        beyond: the side of the threshold on which the cause lies.
        points: True if the numbers are AP, from 0 to 100, which is shown with one decimal everywhere.
    """

    what: str
    value: float
    low: float | None
    high: float | None
    threshold: float
    beyond: Beyond
    points: bool = False

    @property
    def is_beyond(self) -> bool:
        """Returns True if the number and its whole interval lie on the side of the cause."""
        ends = (self.value, self.low, self.high)
        near = (min if self.beyond == "above" else max)(self.value if end is None else end for end in ends)
        return near > self.threshold if self.beyond == "above" else near < self.threshold


@dataclasses.dataclass(frozen=True)
class Check:
    """The outcome of looking for one cause.

    Attributes:
        cause: name of the cause, a key of ``CAUSES``.
        outcome: found, clear (looked for and not there), or not judged.
        why: reason why it was not judged, otherwise "".
        measures: what was compared with thresholds. A cause that needs several of them is found only if all lie beyond theirs.
    """

    cause: str
    outcome: Outcome
    why: str = ""
    measures: tuple[Measurement, ...] = ()


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Causes found in a run.

    Attributes:
        run: name of the run.
        baseline: name of the run it was compared with, or None.
        findings: findings, errors first.
        checks: one check per cause.
    """

    run: str
    baseline: str | None
    findings: tuple[Finding, ...]
    checks: tuple[Check, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns plain values; numbers that are not finite become None."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Diagnosis":
        """Makes a diagnosis from what ``to_json`` returned."""
        findings = []
        for finding in value["findings"]:
            evidence = [Evidence(**{**one, "value": math.nan if one["value"] is None else one["value"]}) for one in finding["evidence"]]
            findings.append(Finding(**{**finding, "evidence": tuple(evidence)}))
        return cls(value["run"], value["baseline"], tuple(findings), tuple(map(_check, value["checks"])))


def _check(value: dict[str, Any]) -> Check:
    measures = (Measurement(**{**one, "value": math.nan if one["value"] is None else one["value"]}) for one in value.get("measures", ()))
    return Check(**{**value, "measures": tuple(measures)})


class NotJudged(Exception):
    """Raised by a check that lacks the evidence to say anything; the message says what is missing."""


def worst_first(findings: list[Finding]) -> tuple[Finding, ...]:
    """Returns errors before warnings, otherwise in the given order."""
    return tuple(sorted(findings, key=lambda finding: _ORDER.index(finding.severity)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
