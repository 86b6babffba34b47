"""Does the adapter learn what the student should?

A features term compares the teacher's features with the student's after an adapter. AdamW gives every parameter steps of one size, so
an adapter learns at full speed however small the term's weight, while in the student the detection loss outweighs a small gradient. The
term then falls because the adapter explains the teacher from features that are no nearer to it. That is seen without the adapter: linear
CKA of the student's own features with the teacher's (``analysis.alignment``), measured before the first step and at every evaluation.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.analysis.alignment import jackknife_reach
from workbench.analysis.diagnosis.findings import Evidence, Finding, NotJudged
from workbench.analysis.diagnosis.material import Material
from workbench.analysis.diagnosis.statistics import Estimate

# a term that has lost less than half has not been absorbed by anything
LEAST_FALL = 0.5
# distilled students of docs/results.md end 0.28 to 0.40 above the undistilled ones in CKA, undistilled ones of two seeds 0.02 apart
LEAST_RISE = 0.05
# lines of metrics.jsonl at either end that a term's fall is measured on: one line is one batch
_LINES = 3


def absorbing_adapter(material: Material, baseline: Material | None) -> list[Finding]:
    """A features term that fell by half or more while the student's own features came no nearer to the teacher's.

    No nearer: their alignment rose by less than 0.05, at the upper end of the interval, over what it was before the first step, or ended
    less than 0.05 above the baseline's, whose student never saw the teacher's features.
    """
    terms = _features_terms(material)
    if material.info.get("state") != "done":
        raise NotJudged("the run is not finished: its features may come nearer yet")
    fallen = {}
    for name, values in material.measured("raw").items():
        if name in terms and len(values) > 2 * _LINES:
            first, last = sum(values[:_LINES]) / _LINES, sum(values[-_LINES:]) / _LINES
            if first > 0 and last < (1 - LEAST_FALL) * first:
                fallen[name] = (1 - last / first, len(values))
    findings = []
    for name, (fall, n) in fallen.items():
        start, end = _alignment(material, terms[name], "start"), _alignment(material, terms[name], "end")
        reference, whose = start, "before the first step"
        if baseline is not None and _has_alignment(baseline):
            reference, whose = _alignment(baseline, terms[name], "end"), f"of the baseline {baseline.run.name}"
        if _rise(start, end) >= LEAST_RISE and _rise(reference, end) >= LEAST_RISE:
            continue
        if _rise(start, end) < LEAST_RISE:
            reference, whose = start, "before the first step"
        now, then = end.estimate, reference.estimate
        findings.append(Finding(
            "absorbing adapter", "warning",
            f"The adapter of {name} absorbs its signal: the term fell by {100 * fall:.0f} %, but the student's own features are no nearer "
            f"to the teacher's (alignment {now.value:.2f}) than those {whose} ({then.value:.2f}).",
            (
                Evidence(f"fall of {name} since the first steps", fall, n, "logged steps"),
                Evidence("alignment of the features of student and teacher, linear CKA", now.value, now.n, "images", now.low, now.high),
                Evidence(f"alignment {whose}", then.value, then.n, "images", then.low, then.high),
            ),
            f"Give {name} more weight (balance), or a simpler adapter: a 1x1 convolution, or none where widths are equal.",
        ))  # fmt: skip
    return findings


def _features_terms(material: Material) -> dict[str, str]:
    """Kind of level that each term on features compares, by name."""
    found: dict[str, str] = {}
    for method in material.methods:
        terms = [name for name in material.measured("raw") if name.startswith(f"{method.get('method')}.")]
        own = method.get("features") or method.get("memory")
        if isinstance(own, dict):
            found |= {name: own.get("feature", "auto") for name in terms if name.partition(".")[2].startswith(("features", "memory"))}
        elif "feature" in method:
            found |= dict.fromkeys(terms, str(method["feature"]))
    if not found:
        raise NotJudged("the run has no term on features")
    return found


def _has_alignment(material: Material) -> bool:
    return any(line.get("alignment") for line in material.run.evaluations())


@dataclass(frozen=True)
class _Aligned:
    """Mean alignment over the strides of a kind of level: the estimate, and its values with one image left out."""

    estimate: Estimate
    without: np.ndarray


def _alignment(material: Material, feature: str, when: str) -> _Aligned:
    """Alignment before the first step or at the last evaluation."""
    lines: list[Any] = [line["alignment"] for line in material.run.evaluations() if line.get("alignment")]
    found = material.info.get("alignment_start") if when == "start" else (lines[-1] if lines else None)
    if not found:
        raise NotJudged("the run does not say how near its features are to the teacher's: it was made by an older version")
    kind = feature if feature != "auto" else "memory" if "memory" in found else "neck"
    if kind not in found:
        raise NotJudged(f"teacher and student share no {kind} levels of one stride")
    strides = list(found[kind].values())
    if any(value["low"] is None for value in strides):
        raise NotJudged("one image is too few to bound the alignment of features")
    value = sum(stride["value"] for stride in strides) / len(strides)
    without = np.mean([stride["without"] for stride in strides], axis=0)
    reach = jackknife_reach(without)
    return _Aligned(Estimate(value, value - reach, value + reach, len(without)), without)


def _rise(before: _Aligned, after: _Aligned) -> float:
    """Upper end of the interval of how far the alignment rose; both are of the same images."""
    if len(before.without) != len(after.without):
        raise NotJudged("run and baseline were aligned on different images")
    return after.estimate.value - before.estimate.value + jackknife_reach(after.without - before.without)
