"""Checks whether the teacher is better than the student at all, on every class and size of target."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm

from workbench.analysis.detection.ap import AREAS
from workbench.analysis.detection.bootstrap import LEVEL, draws, mean_ap, with_all
from workbench.analysis.detection.cells import Cells
from workbench.analysis.diagnosis.findings import Evidence, Finding, NotJudged
from workbench.analysis.diagnosis.material import Material
from workbench.analysis.diagnosis.statistics import Estimate

# AP of fewer targets takes too few values for its spread over resamples to be treated as normal
LEAST_TARGETS = 20
# the standard deviation of 100 resamples is known to 7 %
_SAMPLES = 100


def teacher_worse(material: Material, baseline: Material | None) -> list[Finding]:
    """Finds slices of the targets where the teacher has a lower AP than the student: all, each class, small, medium and large.

    The student is the baseline's if there is a baseline, because a student that learned from the teacher cannot tell what the teacher had
    to offer; otherwise it is the run's own. On both sides only the best class of each query counts, because the query table holds no more.
    The interval is that of the difference on resampled images. It is widened (Bonferroni) so that over all slices together one false alarm
    is expected in twenty runs.
    """
    truth = material.data.coco()
    slices = [part for part in _slices(truth) if part.targets >= LEAST_TARGETS]
    if not slices:
        raise NotJudged(f"no slice of split '{material.split}' has {LEAST_TARGETS} targets")
    teacher = _aps(truth, material.teacher_detections, slices)
    student = _aps(truth, (baseline or material).student_detections, slices)
    reach = float(norm.ppf(1 - (1 - LEVEL) / 2 / len(slices)))
    worse, found = [], list[tuple[str, Estimate]]()
    for part, first, second in zip(slices, teacher, student, strict=True):
        difference = first - second
        spread = reach * float(np.nanstd(difference[1:]))
        found.append(
            (part.name, Estimate(float(difference[0]), float(difference[0] - spread), float(difference[0] + spread), part.targets))
        )
        if difference[0] + spread < 0:
            worse.append((part.name, {"teacher": first, "student": second}, Evidence(
                f"AP of the teacher minus the student's, {part.name}", 100 * float(difference[0]), part.targets, "targets",
                100 * float(difference[0] - spread), 100 * float(difference[0] + spread),
            )))  # fmt: skip
    # all targets, and the slice whose interval reaches least far
    for name, difference in dict([found[0], min(found, key=lambda one: one[1].high)]).items():
        material.compare_ap(f"AP of the teacher minus the student's, {name}", difference, 0.0, "below")
    if not worse:
        return []
    everywhere = worse[0][0] == _ALL
    whose = f"the baseline {baseline.run.name}" if baseline is not None else "the student"
    listed = "; ".join(f"{name} {100 * ap['teacher'][0]:.1f} against {100 * ap['student'][0]:.1f} AP" for name, ap, _ in worse)
    return [Finding(
        "teacher worse", "error" if everywhere else "warning",
        f"The teacher is worse than {whose}: {listed}.",
        tuple(evidence for *_, evidence in worse),
        "Use a better teacher, or train this one longer: it holds the student back." if everywhere else
        "Distil fewer terms for these targets, or use a teacher that is good at them.",
    )]  # fmt: skip


_ALL = "all targets"


class _Slice(NamedTuple):
    """Part of the targets: a class if there is a category, otherwise a range of sizes."""

    name: str
    category: int | None
    area: str
    targets: int


def _slices(truth: dict[str, Any]) -> Iterator[_Slice]:
    counted = [annotation for annotation in truth["annotations"] if not annotation.get("iscrowd")]
    yield _Slice(_ALL, None, "all", len(counted))
    own = Counter(annotation["category_id"] for annotation in counted)
    for category in truth["categories"]:
        yield _Slice(f"class {category['name']}", category["id"], "all", own[category["id"]])
    for area, (low, high) in AREAS.items():
        if area != "all":
            yield _Slice(f"{area} targets", None, area, sum(low <= annotation["area"] <= high for annotation in counted))


def _aps(truth: dict[str, Any], detections: pd.DataFrame, slices: list[_Slice]) -> list[np.ndarray]:
    """Returns the AP of each slice, ``[1 + samples]``: on all images, then on every resample; NaN if no target is left."""
    counts = with_all(draws(len(truth["images"]), _SAMPLES, 0))
    cells = Cells(truth, detections)
    own = {category: mean_ap([matches], counts) for category, matches in cells.by_category() if matches.targets.any()}
    by_class = np.array(list(own.values()))
    defined = np.isfinite(by_class).sum(axis=0)
    everything = np.divide(np.nansum(by_class, axis=0), defined, out=np.full(len(counts), np.nan), where=defined > 0)

    def ap(part: _Slice) -> np.ndarray:
        if part.category is not None:
            return own[part.category]
        return everything if part.area == "all" else mean_ap(cells.classes(part.area), counts)

    return [ap(part) for part in slices]
