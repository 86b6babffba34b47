"""Finds out why distillation had no effect or did harm, from the files of a run, with evidence for each cause.

Each check looks for one cause. It reports the cause only if the whole 95 % interval of its evidence lies beyond a threshold; the module of
the check gives the reason for its threshold. If a run is too short, or does not hold what the check reads, the cause is not judged.
"""

from collections.abc import Callable

from workbench.analysis.diagnosis.absorbing_adapter import absorbing_adapter
from workbench.analysis.diagnosis.background_selection import background_selection
from workbench.analysis.diagnosis.findings import Check, Diagnosis, Finding, NotJudged, worst_first
from workbench.analysis.diagnosis.gradients import drowning_terms, opposing_terms, weak_terms
from workbench.analysis.diagnosis.material import Material
from workbench.analysis.diagnosis.teacher import teacher_worse
from workbench.analysis.diagnosis.teacher_data import box_format, class_map
from workbench.analysis.diagnosis.teacher_input import normalisation, resolution
from workbench.analysis.diagnosis.unsettled_matching import unsettled_matching
from workbench.store.run import Run

Cause = Callable[[Material, Material | None], list[Finding]]
CAUSES: dict[str, Cause] = {
    "class map": class_map,
    "box format": box_format,
    "normalisation": normalisation,
    "resolution": resolution,
    "teacher worse": teacher_worse,
    "weak term": weak_terms,
    "opposing term": opposing_terms,
    "drowning term": drowning_terms,
    "background selection": background_selection,
    "unsettled matching": unsettled_matching,
    "absorbing adapter": absorbing_adapter,
}
# one line on each cause
MEANINGS = {
    "class map": "The teacher's classes are permuted: it calls some of them by each other's names.",
    "box format": "The teacher's boxes find far more targets if their four numbers are read in another way.",
    "normalisation": "The teacher is far better if its input is normalised in another way.",
    "resolution": "The teacher is far better with images of another size.",
    "teacher worse": "The teacher has a lower AP than the student, on all targets, a class or a size.",
    "weak term": "A distillation term sends less than 1 % of the gradient into the student.",
    "opposing term": "The gradient of a distillation term points against the gradient of the detection loss.",
    "drowning term": "The distillation terms send so much gradient that the detection loss stays higher than the baseline's.",
    "background selection": "The selected teacher queries, or the selection mask, look at background.",
    "unsettled matching": "Targets keep changing their query late in training.",
    "absorbing adapter": "A feature term falls, but the student's own features come no nearer to the teacher's.",
}


def diagnose(run: Run, baseline: Run | None = None, split: str = "val") -> Diagnosis:
    """Looks for every cause in a run.

    Args:
        run: run, finished or in progress; it is read and never written to.
        baseline: run it is compared with, usually the undistilled run of the same recipe and seed.
        split: split whose queries are read, as the run calls it.
    """
    material, other = Material(run, split), None if baseline is None else Material(baseline, split)
    findings: list[Finding] = []
    checks: list[Check] = []
    for cause, check in CAUSES.items():
        material.measures.clear()
        try:
            found = check(material, other)
        except NotJudged as reason:
            checks.append(Check(cause, "not judged", str(reason), tuple(material.measures)))
        else:
            checks.append(Check(cause, "found" if found else "clear", "", tuple(material.measures)))
            findings += found
    return Diagnosis(run.name, baseline.name if baseline is not None else None, worst_first(findings), tuple(checks))
