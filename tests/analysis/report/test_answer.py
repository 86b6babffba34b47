from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.analysis.run_examples import finished_run
from workbench.analysis.detection.ap_tests import AP, Verdict, judge
from workbench.analysis.of_run import RunAt
from workbench.analysis.report.answer import Answer, answer, headline
from workbench.analysis.report.sides import baseline_run, side_of, sides
from workbench.analysis.results.of_runs import Results
from workbench.views.answers import answers_html, answers_text, cards

HOSTILE = "<img src=x onerror=alert(1)>"
BETTER = Verdict(AP, "better", "these checkpoints", 0.4, 0.5, 0.1, 0.05, 0.15, 72, (3, 3))
WORSE = Verdict(AP, "worse", "these checkpoints", 0.4, 0.3, -0.1, -0.15, -0.05, 72, (3, 1))
ANSWER = Answer("r", "own", "test", 0.4, 0.5, 0.7, BETTER, WORSE)


class Resampled(Results):
    """Results whose resampled AP is that of each run's name, without data."""

    def __init__(self, aps: dict[str, np.ndarray]):
        super().__init__()
        self.aps = aps

    def ap_resamples(self, at: RunAt) -> np.ndarray:
        return self.aps[at.run.name]

    def truth(self, data: Any) -> dict[str, Any]:
        return {"images": [{"id": number} for number in range(7)]}


def test_the_sides_are_the_runs_of_a_recipe_arm_and_schedule_and_share_a_baseline():
    runs = [finished_run(f"{arm}-{seed}", seed, arm)[0] for arm in ("undistilled", "a") for seed in (0, 1)]
    found = sides(runs)
    assert [[run.name for run in own] for own in found.values()] == [["undistilled-0", "undistilled-1"], ["a-0", "a-1"]]
    assert side_of(runs[2]).baseline() == side_of(runs[0])
    assert (baseline_run(runs[3], runs) or runs[3]).name == "undistilled-1"
    assert baseline_run(runs[3], runs[2:]) is None


def test_each_arm_is_judged_on_the_resamples_of_all_its_seeds_and_measured_against_its_teacher():
    rng = np.random.default_rng(0)
    runs = [finished_run(f"{arm}-{seed}", seed, arm)[0] for arm in ("undistilled", "a", "b") for seed in (0, 1)]
    aps = {run.name: rng.uniform(0.2, 0.6, 301) for run in runs}
    found = answer(runs, Resampled(aps), {})
    assert [one.arm for one in found] == ["a", "b"]
    for one in found:
        sides_ = [{seed: aps[f"{arm}-{seed}"] for seed in (0, 1)} for arm in ("undistilled", one.arm)]
        assert one.equal_steps == judge(AP, *sides_, 7) and one.equal_compute is None
        assert (one.distilled, one.teacher, one.split) == (0.4, 0.6, "test")
        assert one.distance == pytest.approx(0.2)
        assert Answer.from_json(one.to_json()) == one


def test_runs_on_other_data_and_unfinished_runs_are_not_judged():
    aps = dict.fromkeys(("base", "own", "begun"), np.full(301, 0.5))
    base, own = finished_run("base", arm="undistilled", dataset_hash="cells")[0], finished_run("own", dataset_hash="steel")[0]
    begun = finished_run("begun", arm="other", dataset_hash="cells")[0]
    begun.update_info(state="running")
    (found,) = answer([base, own, begun], Resampled(aps), {})
    assert (found.arm, found.equal_steps) == ("distilled", None)


def test_one_arm_is_answered_by_its_sentence_and_several_by_how_many_are_better():
    assert headline([ANSWER]) == ANSWER.sentence()
    text = headline([ANSWER, replace(ANSWER, arm="other", equal_steps=WORSE, equal_compute=None)])
    assert "2 distilled arms against the undistilled student (40.0 AP (test))" in text
    assert "1 better and 1 worse after the same steps; 1 worse after the same compute" in text
    assert "that of own (+10.0, 95 % interval +5.0 to +15.0)" in text
    assert "With 1 seed that is about these checkpoints" in text and text.endswith("The teacher has 70.0 AP.")


def test_a_card_shows_differences_with_intervals_the_teachers_distance_and_how_many_seeds_are_missing():
    (card,) = cards([ANSWER])
    assert [(line.difference, line.interval, line.word) for line in card.lines] == [
        ("+10.0", "[+5.0, +15.0]", "better"), ("-10.0", "[-15.0, -5.0]", "worse"),
    ]  # fmt: skip
    assert card.teacher == "20.0 AP below the teacher (70.0)" and card.accuracy == "AP at equal steps: 50.0 distilled, 40.0 undistilled"
    assert card.seeds == "3 of the 5 seeds that a statement about the method needs"
    known = replace(ANSWER, equal_steps=replace(BETTER, about="this method", seeds=(5, 5)), teacher=0.45)
    assert cards([known])[0].seeds.startswith("5 pairs of seeds") and "5.0 AP above the teacher" in cards([known])[0].teacher
    assert cards([replace(ANSWER, equal_compute=None)])[0].lines[1].word == "not trained"


def test_the_text_to_copy_says_what_the_cards_say_and_names_stay_text():
    text = answers_text([replace(ANSWER, arm=HOSTILE)], ["one", "two"])
    assert text.splitlines()[0] == ANSWER.sentence() and text.endswith("Runs: one, two")
    assert f"{HOSTILE}, AP (test): equal steps +10.0 [+5.0, +15.0] better; equal compute -10.0 [-15.0, -5.0] worse." in text
    drawn = answers_html([replace(ANSWER, arm=HOSTILE)])
    assert HOSTILE not in drawn and "&lt;img src=x" in drawn and "▲" in drawn and "▼" in drawn
