"""Answers whether distillation helped: gain at equal steps and at equal compute, distance to the teacher, and one sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from workbench.analysis.detection.ap_tests import AP, Verdict, judge
from workbench.analysis.diagnosis.findings import Diagnosis
from workbench.analysis.of_run import RunAt, all_evaluations, one_evaluation
from workbench.analysis.report.sides import SideKey, baseline_run, side_of, sides
from workbench.analysis.report.summary import run_result, teacher_result
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

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain values, the ``distance`` and the ``sentence``; verdicts as of ``Verdict.to_json``, or None."""
        verdicts = {name: getattr(self, name) for name in ("equal_steps", "equal_compute")}
        plain = ("recipe", "arm", "split", "undistilled", "distilled", "teacher", "distance", "cause")
        return {
            **{name: getattr(self, name) for name in plain},
            **{name: None if verdict is None else verdict.to_json() for name, verdict in verdicts.items()},
            "sentence": self.sentence(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Answer":
        """Returns the answer that ``to_json`` made these values of."""
        steps, compute = (
            None if values[name] is None else Verdict.from_json(AP, values[name]) for name in ("equal_steps", "equal_compute")
        )
        return cls(
            values["recipe"], values["arm"], values["split"], values["undistilled"], values["distilled"], values["teacher"], steps, compute,
            values["cause"],
        )  # fmt: skip


_OPENINGS = {
    "better": "Distillation helped",
    "worse": "Distillation made the student worse",
    "not distinguishable": "Distillation made no difference that these runs can show",
}


def answer(runs: Sequence[Run], results: Results, diagnoses: Mapping[str, Diagnosis]) -> list[Answer]:
    """Answers for each distilled arm of each recipe, in the order of the runs.

    Args:
        runs: runs, of each seed of a side one; those that are not done or have no evaluation are left out.
        results: provider of results.
        diagnoses: by name of the run, diagnoses of distilled runs against their undistilled ones, as far as there are any.
    """
    ends = {run.name: _end(run) for run in runs}
    known = sides([run for run in runs if ends[run.name] is not None])
    arms = dict.fromkeys(side._replace(schedule=EQUAL_STEPS) for side in known if side.arm not in (UNDISTILLED, None))
    return [_of_arm(side, known, {name: end for name, end in ends.items() if end is not None}, results, diagnoses) for side in arms]


def first_cause(runs: Sequence[Run], results: Results) -> dict[str, Diagnosis]:
    """Returns, by its name, the diagnosis of the first distilled run at equal steps against the undistilled run of its seed.

    It is empty if the runs have several distilled arms, because then no cause stands for all of them, or no undistilled run.
    """
    taught = [run for run in runs if side_of(run).arm not in (UNDISTILLED, None)]
    at_steps = [run for run in taught if side_of(run).schedule == EQUAL_STEPS and baseline_run(run, runs) is not None]
    if len({side_of(run).arm for run in taught}) != 1 or not at_steps:
        return {}
    baseline = baseline_run(at_steps[0], runs)
    return {at_steps[0].name: results.diagnosis(all_evaluations(at_steps[0]), all_evaluations(baseline) if baseline else None)}


def headline(answers: Sequence[Answer]) -> str:
    """Returns the sentence of a lone arm; of several arms of a recipe, how many of them are better and worse, and the best."""
    recipes: dict[tuple[str, str], list[Answer]] = {}
    for one in answers:
        recipes.setdefault((one.recipe, one.split), []).append(one)
    return " ".join(own[0].sentence() if len(own) == 1 else _of_several(own) for own in recipes.values())


def _of_several(answers: Sequence[Answer]) -> str:
    judged = {one: one.equal_steps for one in answers if one.equal_steps is not None}
    if not judged:
        return answers[0].sentence()
    first = next(iter(judged))
    text = f"{first.recipe}, {len(answers)} distilled arms against the undistilled student ({100 * (first.undistilled or 0):.1f} AP "
    text += f"({first.split})): {_counts([verdict.word for verdict in judged.values()])} after the same steps"
    short = [one.equal_compute.word for one in answers if one.equal_compute is not None]
    text += f"; {_counts(short)} after the same compute. " if short else ". "
    best = max(judged, key=lambda one: judged[one].difference)
    text += f"The largest difference after the same steps is that of {best.arm} ({_difference(judged[best])}). "
    text += _about(min(judged.values(), key=lambda verdict: min(verdict.seeds)))
    return text if first.teacher is None else f"{text} The teacher has {100 * first.teacher:.1f} AP."


def _counts(words: Sequence[str]) -> str:
    counts = {word: words.count(word) for word in ("better", "worse", "not distinguishable")}
    return " and ".join(f"{count} {word}" for word, count in counts.items() if count)


class _End(NamedTuple):
    """The evaluation that represents a run, and its AP."""

    at: RunAt
    ap: float | None


def _end(run: Run) -> _End | None:
    line = run_result(run)
    if run.info().get("state") != "done" or not line:
        return None
    return _End(one_evaluation(run, line["split"], line["step"]), line["coco"]["ap"])


def _of_arm(
    side: SideKey, known: Mapping[SideKey, list[Run]], ends: Mapping[str, _End], results: Results, diagnoses: Mapping[str, Diagnosis]
) -> Answer:
    baseline, own, short = (known.get(key, []) for key in (side.baseline(), side, side._replace(schedule=EQUAL_COMPUTE)))

    def verdict(runs: list[Run]) -> Verdict | None:
        both = [*baseline, *runs]
        data = {(ends[run.name].at.split, run.info().get("dataset_hash")) for run in both}
        if not baseline or not runs or len(data) > 1:
            return None
        first, second = ({seed_of(run): results.ap_resamples(ends[run.name].at) for run in part} for part in (baseline, runs))
        return judge(AP, first, second, len(results.truth(ends[runs[0].name].at.data)["images"]))

    first = (own or short)[0]
    split = ends[first.name].at.split
    taught = teacher_result(first)
    found = next((diagnoses[run.name] for run in own if run.name in diagnoses), None)
    return Answer(
        str(side.recipe), str(side.arm), split, _mean(baseline, ends), _mean(own, ends),
        taught["coco"]["ap"] if taught.get("split") == split else None, verdict(own), verdict(short),
        found.findings[0].statement if found is not None and found.findings else "",
    )  # fmt: skip


def _mean(runs: Sequence[Run], ends: Mapping[str, _End]) -> float | None:
    values = [ap for run in runs if (ap := ends[run.name].ap) is not None]
    return sum(values) / len(values) if values else None


def _difference(verdict: Verdict) -> str:
    low, high = 100 * verdict.low, 100 * verdict.high
    return f"{100 * verdict.difference:+.1f}, {100 * verdict.level:.0f} % interval {low:+.1f} to {high:+.1f}"


def _about(verdict: Verdict) -> str:
    pairs = verdict.seeds[1]
    if verdict.about == "this method":
        return f"That holds for the method on this pair, over {pairs} pairs of seeds."
    return f"With {pairs} seed{'s' * (pairs > 1)} that is about these checkpoints, not about the method."
