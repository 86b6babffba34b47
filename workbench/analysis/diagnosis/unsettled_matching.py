"""Checks whether the matching settles."""

import numpy as np

from workbench.analysis.diagnosis.findings import Evidence, Finding, NotJudged
from workbench.analysis.diagnosis.material import Material
from workbench.analysis.diagnosis.statistics import Estimate, ratio_difference
from workbench.analysis.stability.change_causes import CAUSES, Cause

# the last third of the changes is compared with the first third; each third has one change if there are four evaluations
LEAST_MOMENTS = 4
# churn of a tenth of the targets or less counts as settled
SETTLED = 0.1
# least share of the early churn that must be gone at the end; the runs of docs/results.md lose seven tenths and more
LEAST_FALL = 0.2
_ADVICE = "Lower the learning rate or let it fall to 0 at the end, train longer, and look at the pages on match stability."
_ADVICES: dict[Cause, str] = {
    "uncovered": "These targets are missed, so the matching has nothing to settle on: train longer, or use more queries. The page Match "
    "stability lists them.",
    "swapped": "Neighbours exchange their queries: look at crowded images on the page Match stability, and let the learning rate "
    "fall to 0.",
    "undecided": "The class is not learned yet: train longer, and look at the confusion of these classes on the page Errors.",
    "competing": "Several queries are equally good: let the learning rate fall to 0 at the end. These changes hardly cost AP.",
}
# two seeds of one recipe differ by less than this share of the targets in their final churn
MORE_THAN_BASELINE = 0.1


def unsettled_matching(material: Material, baseline: Material | None) -> list[Finding]:
    """Finds churn that does not fall while training goes on, or that ends far above the baseline's.

    Churn is the share of targets whose query changed from one evaluation to the next in the last layer. Early and late are the first and
    the last third of these pairs of evaluations. A run in progress is not judged, because its learning rate has not fallen yet. Nor is a
    detector whose assignment is many-to-one, which has no such churn. The finding names the cause of most of the late changes
    (``stability.causes``), and what to do about it.
    """
    material.require("churn")
    if material.info.get("state") != "done":
        raise NotJudged("the run is not finished, so its matching may still settle")
    early, late = _early_and_late(material)
    start, end = ratio_difference(early), ratio_difference(late)
    material.compare("churn late in training", end, SETTLED, "above")
    # late churn minus the share of the early churn that may be left
    left = ratio_difference(late, (early[0] * (1 - LEAST_FALL), early[1]))
    material.compare(f"late churn minus {100 * (1 - LEAST_FALL):.0f} % of the early churn", left, 0.0, "above")
    if end.low <= SETTLED:
        return []
    moving = [_evidence("late in training", end), _evidence("early in training", start)]
    why, advice, told = _dominant(material)
    moving += told
    if left.low > 0:
        statement = (f"The matching does not settle: {100 * end.value:.0f} % of the targets change their query between evaluations late in "
                     f"training, and {100 * start.value:.0f} % did early in training.")  # fmt: skip
        return [Finding("unsettled matching", "warning", statement + why, tuple(moving), advice)]
    if baseline is None:
        return []
    try:
        baseline.require("churn")
        other = _early_and_late(baseline)[1]
    except NotJudged:
        return []
    if len(other[0]) != len(late[0]):
        return []
    if (
        material.compare("late churn minus the baseline's", ratio_difference(late, other), MORE_THAN_BASELINE, "above").low
        <= MORE_THAN_BASELINE
    ):
        return []
    reference = ratio_difference(other)
    statement = (f"The matching settles less than the baseline's: {100 * end.value:.0f} % of the targets change their query between "
                 f"evaluations late in training, and {100 * reference.value:.0f} % do in {baseline.run.name}.")  # fmt: skip
    return [Finding("unsettled matching", "warning", statement + why, (*moving, _evidence("late in the baseline", reference)), advice)]


def _early_and_late(material: Material) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Returns, for the first and the last third, the targets per image whose query changed and those matched at both evaluations."""
    if len(material.steps) < LEAST_MOMENTS:
        raise NotJudged(
            f"the run has {len(material.steps)} of the {LEAST_MOMENTS} evaluations that comparing early with late matching needs"
        )
    changes = material.changes
    moments = np.sort(changes["step"].unique())
    third = max(1, len(moments) // 3)
    images = np.sort(changes["image_id"].unique())

    def totals(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = changes[changes["step"].isin(chosen)].groupby("image_id")["changed"].agg(["sum", "size"]).reindex(images, fill_value=0)
        return rows["sum"].to_numpy(np.float64), rows["size"].to_numpy(np.float64)

    return totals(moments[:third]), totals(moments[-third:])


def _dominant(material: Material) -> tuple[str, str, list[Evidence]]:
    """Returns a sentence on the cause of most of the late changes, advice for it, and the share of every cause; of as many the first.

    Without the data or the rows of all queries the causes cannot be told, and nothing is said of them.
    """
    try:
        changes = material.explained
    except NotJudged:
        return "", _ADVICE, []
    moments = np.sort(changes["step"].unique())
    late = changes[changes["step"].isin(moments[-max(1, len(moments) // 3) :]) & changes["changed"].astype(bool)]
    counts: dict[Cause, int] = {cause: int((late["cause"] == cause).sum()) for cause in CAUSES}
    if not len(late):
        return "", _ADVICE, []
    cause = max(CAUSES, key=counts.__getitem__)
    shares = [Evidence(f"share of the late changes: {CAUSES[own]}", n / len(late), len(late), "changes") for own, n in counts.items()]
    return f" The cause of most late changes: {CAUSES[cause]} ({100 * counts[cause] / len(late):.0f} %).", _ADVICES[cause], shares


def _evidence(when: str, churn: Estimate) -> Evidence:
    return Evidence(f"churn between evaluations {when}", churn.value, churn.n, "images", churn.low, churn.high)
