"""Checks whether the adapter learns what the student should learn.

A feature term compares the teacher's features with the student's features after an adapter. AdamW gives every parameter steps of the same
size, so an adapter learns at full speed however small the term's weight is. In the student, the detection loss outweighs a small gradient.
The term then falls because the adapter maps the student's features to the teacher's, although these features come no nearer to them. This
shows in a measure without the adapter: linear CKA of the student's own features with the teacher's (``analysis.alignment``), taken before
the first step and at every evaluation.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.analysis.alignment import jackknife_reach
from workbench.analysis.diagnosis.findings import Evidence, Finding, NotJudged
from workbench.analysis.diagnosis.material import Material
from workbench.analysis.diagnosis.statistics import Estimate, exact

# a term that lost less than half of its value has not been absorbed
LEAST_FALL = 0.5
# in docs/results.md distilled students end 0.28 to 0.40 above undistilled ones in CKA, and undistilled ones of two seeds differ by 0.02
LEAST_RISE = 0.05
# lines of metrics.jsonl at the start and at the end from which a term's fall is measured; one line is one batch
_LINES = 3


def absorbing_adapter(material: Material, baseline: Material | None) -> list[Finding]:
    """Finds feature terms that fell by half or more while the student's own features came no nearer to the teacher's.

    Features came no nearer if the upper end of the interval of their rise in alignment is below 0.05. The rise is taken over the
    alignment before the first step, or over the baseline's at the end, whose student never saw the teacher's features.
    """
    terms = _features_terms(material)
    if material.info.get("state") != "done":
        raise NotJudged("the run is not finished, so its features may still come nearer to the teacher's")
    fallen = {}
    for name, values in material.measured("raw").items():
        if name in terms and len(values) > 2 * _LINES:
            first, last = sum(values[:_LINES]) / _LINES, sum(values[-_LINES:]) / _LINES
            if first > 0:
                material.compare(f"fall of {name} since the first steps", exact(1 - last / first, len(values)), LEAST_FALL, "above")
            if first > 0 and last < (1 - LEAST_FALL) * first:
                fallen[name] = (1 - last / first, len(values))
    findings = []
    for name, (fall, n) in fallen.items():
        start, end = _alignment(material, terms[name], "start"), _alignment(material, terms[name], "end")
        reference, whose = start, "before the first step"
        if baseline is not None and _has_alignment(baseline):
            reference, whose = _alignment(baseline, terms[name], "end"), f"of the baseline {baseline.run.name}"
        rises = [_rise(start, end), _rise(reference, end)]
        if rises[0].high < LEAST_RISE:
            reference, whose = start, "before the first step"
        least = rises[0] if reference is start else rises[1]
        material.compare(f"rise in alignment over that {whose}, for {name}", least, LEAST_RISE, "below")
        if least.high >= LEAST_RISE:
            continue
        now, then = end.estimate, reference.estimate
        findings.append(Finding(
            "absorbing adapter", "warning",
            f"The adapter of {name} absorbs its signal: the term fell by {100 * fall:.0f} %, but the student's own features are no nearer "
            f"to the teacher's (alignment {now.value:.2f}) than those {whose} ({then.value:.2f}).",
            (
                Evidence(f"fall of {name} since the first steps", fall, n, "logged steps"),
                Evidence("alignment (linear CKA) of the features of student and teacher", now.value, now.n, "images", now.low, now.high),
                Evidence(f"alignment {whose}", then.value, then.n, "images", then.low, then.high),
            ),
            f"Give {name} more weight (balance), or use a simpler adapter: a 1x1 convolution, or no adapter if the widths are equal.",
        ))  # fmt: skip
    return findings


def _features_terms(material: Material) -> dict[str, str]:
    """Returns, by name, the kind of level that each feature term compares."""
    found: dict[str, str] = {}
    for method in material.methods:
        terms = [name for name in material.measured("raw") if name.startswith(f"{method.get('method')}.")]
        own = method.get("features") or method.get("memory")
        if isinstance(own, dict):
            found |= {name: own.get("feature", "auto") for name in terms if name.partition(".")[2].startswith(("features", "memory"))}
        elif "feature" in method:
            found |= dict.fromkeys(terms, str(method["feature"]))
    if not found:
        raise NotJudged("the run has no feature term")
    return found


def _has_alignment(material: Material) -> bool:
    return any(line.get("alignment") for line in material.run.evaluations())


@dataclass(frozen=True)
class _Aligned:
    """Mean alignment over the strides of a kind of level, with the values when one image is left out."""

    estimate: Estimate
    without: np.ndarray


def _alignment(material: Material, feature: str, when: str) -> _Aligned:
    """Returns the alignment before the first step or at the last evaluation."""
    lines: list[Any] = [line["alignment"] for line in material.run.evaluations() if line.get("alignment")]
    found = material.info.get("alignment_start") if when == "start" else (lines[-1] if lines else None)
    if not found:
        raise NotJudged("the run was made by an older version, which did not measure the alignment of features")
    # what ``auto`` compares, and what the head reads in two detectors of one kind, which is measured under its own name
    shared = next(kind for kind in ("memory", "head", "neck") if kind in found or kind == "neck")
    kind = shared if feature == "auto" or (feature == "head" and "head" not in found) else feature
    if kind not in found:
        raise NotJudged(f"teacher and student have no {kind} levels with the same stride")
    strides = list(found[kind].values())
    if any(value["low"] is None for value in strides):
        raise NotJudged("the alignment of features was measured on one image, which is too few for an interval")
    value = sum(stride["value"] for stride in strides) / len(strides)
    without = np.mean([stride["without"] for stride in strides], axis=0)
    reach = jackknife_reach(without)
    return _Aligned(Estimate(value, value - reach, value + reach, len(without)), without)


def _rise(before: _Aligned, after: _Aligned) -> Estimate:
    """Returns the rise in alignment with its interval; both alignments are of the same images."""
    if len(before.without) != len(after.without):
        raise NotJudged("the alignment of run and baseline was measured on different images")
    rise, reach = after.estimate.value - before.estimate.value, jackknife_reach(after.without - before.without)
    return Estimate(rise, rise - reach, rise + reach, len(after.without))
