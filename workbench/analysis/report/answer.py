"""Answers whether distillation helped: gain at equal steps and at equal compute, distance to the teacher, and one sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workbench.analysis.detection.ap_tests import Verdict, compare_ap
from workbench.analysis.diagnosis.findings import Diagnosis
from workbench.analysis.of_run import RunAt, one_evaluation
from workbench.analysis.report.summary import summarise, summarise_teacher
from workbench.analysis.results.detections import seed_of
from workbench.analysis.results.of_runs import Results
from workbench.store.groups import EQUAL_COMPUTE, EQUAL_STEPS, UNDISTILLED
from workbench.store.run import Run


@dataclass(frozen=True)
class Answer:
    """Says what distillation was worth to one arm of a recipe.

    Attributes:
        recipe: name of the recipe.
        arm: the distilled arm.
        split: split that the AP is of, as the run's files name it.
        undistilled: mean AP (0..1) of the undistilled runs at equal steps.
        distilled: mean AP of the distilled runs at equal steps.
        teacher: AP of the teacher; None if it is not known on that split.
        equal_steps: verdict on AP at equal steps; None if either side has no finished run.
        equal_compute: verdict on AP at the undistilled runs' compute; None likewise.
        cause: what ``diagnose`` found first in the distilled run of the lowest seed, as a sentence; "" if it found nothing.
    """

    recipe: str
    arm: str
    split: str
    undistilled: float | None
    distilled: float | None
    teacher: float | None
    equal_steps: Verdict | None
    equal_compute: Verdict | None
    cause: str = ""

    @property
    def distance(self) -> float | None:
        """Returns by how much the distilled student's mean AP (0..1) stays below the teacher's; None if one of them is not known."""
        return None if self.teacher is None or self.distilled is None else self.teacher - self.distilled

    def sentence(self) -> str:
        """Returns the answer in words, AP in percent."""
        if self.equal_steps is None or self.undistilled is None or self.distilled is None:
            return f"Whether distillation helped cannot be said yet: '{self.recipe}' has no finished distilled run with an undistilled one."
        text = f"{_OPENINGS[self.equal_steps.word]}: {100 * self.distilled:.1f} AP ({self.split}) with it and {100 * self.undistilled:.1f} "
        text += f"without after the same steps ({_difference(self.equal_steps)})"
        if self.equal_compute is not None:
            text += f", and {_difference(self.equal_compute)} after the same compute"
        text += f". {_about(self.equal_steps)}"
        if self.teacher is not None:
            text += f" The teacher has {100 * self.teacher:.1f} AP."
        if self.teacher is not None and self.teacher <= self.undistilled:
            text += " That is no more than the student has without it: train the teacher longer, or take a better one."
        elif self.cause:
            text += f" {'What held it back' if self.equal_steps.word != 'better' else 'What to look at'}: {self.cause}"
        return text


_OPENINGS = {
    "better": "Distillation helped",
    "worse": "Distillation made the student worse",
    "not distinguishable": "Distillation made no difference that these runs can show",
}


def answer(runs: Sequence[Run], results: Results, diagnoses: Mapping[str, Diagnosis]) -> list[Answer]:
    """Answers for each distilled arm of one recipe, in the order of the runs.

    Args:
        runs: runs of one recipe; those without an evaluation at their end are left out.
        results: provider of results.
        diagnoses: by name of the run, diagnoses of distilled runs against their undistilled ones, as far as there are any.
    """
    rows = {run.name: summarise(run) for run in runs}
    ends = {run.name: one_evaluation(run, row["split"], row["step"]) for run, row in zip(runs, rows.values(), strict=True)
            if row["state"] == "done" and row["step"] is not None}  # fmt: skip
    sides: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.name in ends:
            sides.setdefault((rows[run.name]["arm"], rows[run.name]["schedule"]), []).append(run)
    baseline = sides.get((UNDISTILLED, EQUAL_STEPS), [])
    arms = dict.fromkeys(arm for arm, _ in sides if arm != UNDISTILLED)
    return [_of_arm(arm, baseline, sides, rows, ends, results, diagnoses) for arm in arms]


def _of_arm(
    arm: str, baseline: list[Run], sides: Mapping[tuple[str, str], list[Run]], rows: Mapping[str, dict[str, object]],
    ends: Mapping[str, RunAt], results: Results, diagnoses: Mapping[str, Diagnosis],
) -> Answer:  # fmt: skip
    own, short = sides.get((arm, EQUAL_STEPS), []), sides.get((arm, EQUAL_COMPUTE), [])

    def verdict(side: list[Run]) -> Verdict | None:
        splits = {rows[run.name]["split"] for run in (*baseline, *side)}
        if not baseline or not side or len(splits) > 1:
            return None
        first, second = ({seed_of(run): results.detections(ends[run.name]) for run in part} for part in (baseline, side))
        return compare_ap(results.truth(ends[side[0].name].data), first, second)

    first = (own or short)[0]
    taught = summarise_teacher(first)
    same = taught is not None and taught["split"] == rows[first.name]["split"]
    found = next((diagnoses[run.name] for run in own if run.name in diagnoses), None)
    return Answer(
        str(rows[first.name]["recipe"]), arm, str(rows[first.name]["split"]), _mean(baseline, rows), _mean(own, rows),
        float(taught["ap"]) if taught is not None and same and taught["ap"] is not None else None, verdict(own), verdict(short),
        found.findings[0].statement if found is not None and found.findings else "",
    )  # fmt: skip


def _mean(runs: Sequence[Run], rows: Mapping[str, dict[str, object]]) -> float | None:
    values = [float(str(rows[run.name]["ap"])) for run in runs if rows[run.name]["ap"] is not None]
    return sum(values) / len(values) if values else None


def _difference(verdict: Verdict) -> str:
    low, high = 100 * verdict.low, 100 * verdict.high
    return f"{100 * verdict.difference:+.1f}, {100 * verdict.level:.0f} % interval {low:+.1f} to {high:+.1f}"


def _about(verdict: Verdict) -> str:
    pairs = verdict.seeds[1]
    if verdict.about == "this method":
        return f"That holds for the method on this pair, over {pairs} pairs of seeds."
    return f"With {pairs} seed{'s' * (pairs > 1)} that is about these checkpoints, not about the method."
