"""Is the teacher better than the student at all, on every class and size of target?"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.stats import norm

from workbench.analysis.ap import AREAS
from workbench.analysis.bootstrap import LEVEL, draws, mean_ap, with_all
from workbench.analysis.cells import Cells
from workbench.analysis.diagnosis.findings import Evidence, Finding, NotJudged
from workbench.analysis.diagnosis.material import Material
from workbench.analysis.query_detections import query_detections

# a resample of fewer has too few values to have a spread that could be read as normal
LEAST_TARGETS = 20
# the spread of 100 resamples is known to 7 %
_SAMPLES = 100


def teacher_worse(material: Material, baseline: Material | None) -> list[Finding]:
    """Slices of the targets where the teacher has a lower AP than the student: all, each class, small, medium and large.

    The student is the baseline's where there is one, for what a run learned from its teacher cannot tell what the teacher had to give;
    else the run's own. Of every query only its best class counts, on both sides, because that is what the query table holds. The
    interval is that of the difference on resampled images, widened (Bonferroni) so that one false alarm in twenty runs is expected over
    all slices together.
    """
    student = (baseline or material).student
    truth = material.data.coco()
    rows = {"teacher": query_detections(material.teacher, material.data), "student": query_detections(student, material.data)}
    slices = [part for part in _slices(truth) if part[3] >= LEAST_TARGETS]
    if not slices:
        raise NotJudged(f"no slice of split '{material.split}' has {LEAST_TARGETS} targets")
    images = len(truth["images"])
    counts = with_all(draws(images, _SAMPLES, 0))
    reach = float(norm.ppf(1 - (1 - LEVEL) / 2 / len(slices)))
    worse = []
    for name, part, area, targets in slices:
        known = [category["id"] for category in part["categories"]]
        ap = {
            side: mean_ap(Cells(part, frame[frame["category_id"].isin(known)]).classes(area), counts) for side, frame in rows.items()
        }
        difference = ap["teacher"] - ap["student"]
        spread = reach * float(np.nanstd(difference[1:]))
        if difference[0] + spread < 0:
            worse.append((name, ap, Evidence(
                f"AP of the teacher minus the student's, {name}", float(difference[0]), targets, "targets",
                float(difference[0] - spread), float(difference[0] + spread),
            )))  # fmt: skip
    if not worse:
        return []
    everywhere = worse[0][0] == _ALL
    whose = f"the baseline {baseline.run.name}" if baseline is not None else "the student"
    listed = "; ".join(f"{name} {100 * ap['teacher'][0]:.1f} against {100 * ap['student'][0]:.1f} AP" for name, ap, _ in worse)
    return [Finding(
        "teacher worse", "error" if everywhere else "warning",
        f"The teacher is worse than {whose}: {listed}.",
        tuple(evidence for *_, evidence in worse),
        "Take a better teacher, or train this one longer; it holds the student back." if everywhere else
        "Distil fewer terms for these targets, or take a teacher that is good at them.",
    )]  # fmt: skip


_ALL = "all targets"


def _slices(truth: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str, int]]:
    """Name, ground truth, name of the size range, and number of targets of each slice."""
    counted = [annotation for annotation in truth["annotations"] if not annotation.get("iscrowd")]
    yield _ALL, truth, "all", len(counted)
    for category in truth["categories"]:
        own = [annotation for annotation in truth["annotations"] if annotation["category_id"] == category["id"]]
        part = {**truth, "annotations": own, "categories": [category]}
        yield f"class {category['name']}", part, "all", sum(annotation["category_id"] == category["id"] for annotation in counted)
    for area, (low, high) in AREAS.items():
        if area != "all":
            yield f"{area} targets", truth, area, sum(low <= annotation["area"] <= high for annotation in counted)
