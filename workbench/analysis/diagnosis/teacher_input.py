"""Checks whether the teacher gets images with another normalisation or size than it was trained on.

Nothing that a run stores tells this apart from a bad teacher. The teacher itself must be tried again with images normalised or sized in
another way. ``training.sanity`` does so before training if the teacher is doubtful, and ``workbench diagnose`` does so for an existing run.
The outcome is kept in the run's ``derived/``.
"""

from pathlib import Path
from typing import Any

from workbench.analysis.diagnosis.findings import Evidence, Finding, NotJudged
from workbench.analysis.diagnosis.material import Material
from workbench.analysis.diagnosis.statistics import exact
from workbench.files import hash_json, read_json
from workbench.store.run import Run

LEAST_AP = 0.01  # a teacher below it teaches nothing
# A teacher below it is tried with its inputs and outputs read in other ways. Two swapped classes still leave half of the AP.
DOUBTFUL_AP = 0.4


def normalisation(material: Material, baseline: Material | None) -> list[Finding]:
    """Reports a teacher that is far better with images normalised in another way than its workbench.json says."""
    return _finding(material, "normalisation")


def resolution(material: Material, baseline: Material | None) -> list[Finding]:
    """Reports a teacher that is far better with images of another size than the recipe gives it."""
    return _finding(material, "resolution")


def mends(ap: float, other: float) -> bool:
    """Returns True if another reading of the teacher is the right one, because it is better by half and by 10 AP."""
    return other >= mending(ap)


def mending(ap: float) -> float:
    """Returns the AP that another reading of the teacher must reach to be the right one."""
    return 5 * LEAST_AP if ap < LEAST_AP else max(ap + 0.1, 1.5 * ap)


def readings_path(run: Run) -> Path:
    """Returns the path of the file with the tried readings of a run's teacher."""
    info = run.info()
    return run.derived_path("teacher-readings", hash_json([info.get("teacher_hash"), info.get("recipe", {}).get("data")])[:16], "json")


def doubtful(run: Run) -> bool:
    """Returns True if the run's teacher is not known to fit this dataset and has not been tried in other ways yet."""
    info = run.info()
    ap = info.get("teacher_ap")
    return bool(info.get("teacher")) and (ap is None or ap < DOUBTFUL_AP) and not readings_path(run).is_file()


def _finding(material: Material, cause: str) -> list[Finding]:
    if not material.info.get("teacher"):
        raise NotJudged("the run has no teacher")
    path = readings_path(material.run)
    if not path.is_file():
        if (known := material.info.get("teacher_ap") or 0.0) >= DOUBTFUL_AP:
            material.compare_ap(
                "AP of the teacher, which is tried in other ways only if it is doubtful", exact(known, 0), DOUBTFUL_AP, "below"
            )
            return []
        raise NotJudged("the teacher was not tried with its input read in other ways; 'workbench diagnose' tries it")
    tried: dict[str, Any] = read_json(path)
    own = max((reading["ap"] for reading in tried["readings"] if reading["cause"] == cause), default=None)
    if own is not None:
        material.compare_ap(f"best AP of the teacher with another {cause}", exact(own, tried["images"]), mending(tried["ap"]), "above")
    best = max(tried["readings"], key=lambda reading: reading["ap"], default=None)
    if best is None or best["cause"] != cause or not mends(tried["ap"], best["ap"]):
        return []
    return [Finding(
        cause, "error",
        f"The teacher gets images with another {cause} than it was trained on and reaches {100 * tried['ap']:.1f} AP. {best['how']} it "
        f"reaches {100 * best['ap']:.1f}.",
        (
            Evidence("AP of the teacher as the run used it", 100 * tried["ap"], tried["images"], "images"),
            Evidence(f"AP of the teacher, {best['how'][0].lower()}{best['how'][1:]}", 100 * best["ap"], tried["images"], "images"),
        ),
        f"{best['advice'][0].upper()}{best['advice'][1:]}.",
    )]  # fmt: skip
