"""What a diagnosis says: findings with their evidence, and for every cause whether it could be judged."""

import dataclasses
import math
from typing import Any, Literal

Severity = Literal["error", "warning"]
Outcome = Literal["found", "clear", "not judged"]
_ORDER: tuple[Severity, ...] = ("error", "warning")


@dataclasses.dataclass(frozen=True)
class Evidence:
    """One number behind a finding.

    Attributes:
        what: the number in words.
        value: itself.
        n: how many were looked at.
        of: what was counted, in the plural: images, targets, measurements.
        low: lower end of its 95 % interval; None where the number is no estimate.
        high: upper end.
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
        cause: its name, of ``CAUSES``.
        severity: error: distillation cannot work like this; warning: it loses something by it.
        statement: one sentence.
        evidence: the numbers.
        advice: what to do.
    """

    cause: str
    severity: Severity
    statement: str
    evidence: tuple[Evidence, ...]
    advice: str


@dataclasses.dataclass(frozen=True)
class Check:
    """What came of looking for one cause.

    Attributes:
        cause: of ``CAUSES``.
        outcome: found, clear (looked for and not there), or not judged.
        why: why it could not be judged, else "".
    """

    cause: str
    outcome: Outcome
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Causes found in a run.

    Attributes:
        run: its name.
        baseline: name of the run it was compared with, or None.
        findings: errors first.
        checks: one per cause.
    """

    run: str
    baseline: str | None
    findings: tuple[Finding, ...]
    checks: tuple[Check, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; None for what is not a number."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Diagnosis":
        """What ``to_json`` gave."""
        findings = []
        for finding in value["findings"]:
            evidence = [Evidence(**{**one, "value": math.nan if one["value"] is None else one["value"]}) for one in finding["evidence"]]
            findings.append(Finding(**{**finding, "evidence": tuple(evidence)}))
        return cls(value["run"], value["baseline"], tuple(findings), tuple(Check(**check) for check in value["checks"]))


class NotJudged(Exception):
    """Raised by a check that lacks the evidence to say anything; the message says what is missing."""


def worst_first(findings: list[Finding]) -> tuple[Finding, ...]:
    """Errors before warnings, else as found."""
    return tuple(sorted(findings, key=lambda finding: _ORDER.index(finding.severity)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
