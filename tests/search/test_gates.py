"""Gates of a trial: no gradient on the first batch (R1), collapse during training (R2)."""

import json
import math
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.search.trainers import FITNET, alone, small_plan
from workbench.methods.detkds.genotype import Genotype
from workbench.search.gates import COLLAPSE_AT, FEW, SOME, collapse_steps, collapsed, detects_too_little, without_gradient
from workbench.search.plan import SearchPlan
from workbench.search.trainer import TrialTrainer

TABLE = ROOT / "benchmarks" / "results" / "fitness_table.jsonl"
# momentum without Adam's scaling: what a term does to the gradient's length reaches the weights
PLAIN = {"optimizer": "sgd", "learning_rate": 0.1}


def open_trainer(plan: SearchPlan, folder: Path, monkeypatch: pytest.MonkeyPatch) -> TrialTrainer:
    monkeypatch.setenv("WORKBENCH_RUNS", str(folder / "runs"))
    return TrialTrainer(plan, "cpu", folder / "small")


def test_a_share_beside_which_detection_learns_nothing_is_a_collapse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = open_trainer(small_plan(tmp_path, recipe={"train": PLAIN}, steps=60, rungs=()), tmp_path, monkeypatch)
    assert trainer.train(alone(FITNET, 0.3), 0).gate is None
    outcome = trainer.train(alone(FITNET, 1e6), 0)
    assert (outcome.gate, outcome.ap, outcome.rungs) == ("R2", None, {})
    assert "times that of the undistilled student" in outcome.reason


def test_a_student_that_detects_nothing_collapses_at_a_rung_though_its_loss_falls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = open_trainer(small_plan(tmp_path, steps=120, rungs=(0.5,)), tmp_path, monkeypatch)
    assert trainer.recipe.train.optimizer == "adamw" and trainer.reference.rungs[60] > SOME
    assert trainer.train(alone(FITNET, 0.3), 0).gate is None
    # other cells are compared at every step, so that this loss never lets go of the features
    outcome, losses = trainer._train(alone(Genotype("global", "mask", distance="l2"), 1e6), 0, lambda step, ap: False, trainer.reference)
    assert (outcome.gate, outcome.ap, list(outcome.rungs)) == ("R2", None, [60]) and "its AP at step 60" in outcome.reason
    assert outcome.rungs[60] < FEW * trainer.reference.rungs[60]
    assert collapsed(losses, trainer.reference.losses, 120) is None and losses[-1] < 0.7 * losses[0]


def test_no_trial_of_the_table_that_would_have_collapsed_recovered():
    rows = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()[1:]]
    references = {row["seed"]: row["rungs"] for row in rows if row["genotype"] is None}
    shares = [[row["rungs"][step] / references[row["seed"]][step] for step in ("75", "150")] for row in rows if row["genotype"]]
    low = [end for rung, end in shares if rung < FEW]
    assert len(low) == 2 and max(low) < 0.3


@pytest.mark.parametrize(("ap", "reference", "fires"), [(0.0, 0.009, False), (0.009, 0.04, True), (0.01, 0.04, False), (0.0, 0.0, False)])
def test_a_quarter_of_the_undistilled_ap_is_enough_and_below_one_point_nothing_is_said(ap: float, reference: float, fires: bool):
    reason = detects_too_little(ap, reference, 75)
    assert reason == ("its AP at step 75 is 0.90, and the undistilled student has 4.00 there" if fires else None)


def test_a_loss_that_becomes_infinite_is_a_collapse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = open_trainer(small_plan(tmp_path, recipe={"train": {**PLAIN, "clip_norm": 0.0}}, rungs=()), tmp_path, monkeypatch)
    outcome = trainer.train(alone(FITNET, 1e30), 0)
    assert outcome.gate == "R2" and outcome.reason.startswith("step 1: found NaN or infinity in gradients of images")
    assert "checkpoint" not in outcome.reason  # a trial has none


def test_a_formula_without_a_gradient_is_refused_on_the_first_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = open_trainer(small_plan(tmp_path, rungs=()), tmp_path, monkeypatch)
    # a single cell has nothing to normalise over, so the formula is 1 whatever the student does
    outcome = trainer.train(alone(Genotype("global", t2="local_s1", t3="softmax_HW")), 0)
    assert (outcome.gate, outcome.ap) == ("R1", None)
    assert "detkds.global has no gradient" in outcome.reason


def test_a_formula_that_cannot_work_is_an_outcome_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = open_trainer(small_plan(tmp_path, rungs=()), tmp_path, monkeypatch)
    outcome = trainer.train(alone(Genotype("global", t3="batch", distance="ssim")), 0)
    assert outcome.gate == "R0" and "ssim compares maps" in outcome.reason


@pytest.mark.parametrize(("ratios", "reason"), [
    ({"a": 1.5e-10, "b": 360.0}, None),
    ({"a": 0.0, "b": 1.0}, "a has no gradient"),
    ({"a": 1.0, "b": math.nan}, "b is not finite"),
    ({"a": 1.0}, "b found nothing"),
])  # fmt: skip
def test_only_terms_without_a_finite_gradient_are_refused(ratios: dict[str, float], reason: str | None):
    found = without_gradient(ratios, ["a", "b"])
    assert found is None if reason is None else reason in str(found)


def test_collapse_is_looked_for_twice_in_any_trial():
    assert collapse_steps(150) == (30, 75) and COLLAPSE_AT == (0.2, 0.5)
    assert collapse_steps(2) == (1,)


def test_the_mean_of_the_last_tenth_is_compared_with_the_same_steps_of_the_reference():
    reference = [4.0] * 10 + [1.0] * 90
    assert collapsed([4.0] * 10 + [1.5] * 10, reference, 100) is None
    # one wild batch is no collapse, ten are
    assert collapsed([4.0] * 10 + [1.0] * 9 + [5.9], reference, 100) is None
    assert "1.6 times" in str(collapsed([4.0] * 10 + [1.6] * 10, reference, 100))
