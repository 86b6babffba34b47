"""Totals over images give the numbers that the rest of the analysis shows, and verdicts are drawn from them."""

import numpy as np
import pytest

from tests.analysis.answer_examples import random_answers
from tests.analysis.coco_examples import random_coco
from tests.analysis.query_examples import random_queries
from tests.analysis.stability.test_agreement import with_group
from workbench.analysis.detection.ap import coco_ap
from workbench.analysis.detection.ap_tests import CHURN, compare_totals
from workbench.analysis.detection.bootstrap import draws, weighted_ap
from workbench.analysis.detection.calibration import calibration_error
from workbench.analysis.detection.matches import match_detections
from workbench.analysis.queries.gain import mean_gain, target_gain
from workbench.analysis.results.query_tests import (
    agreement_totals,
    churn_totals,
    compare_detections,
    compare_queries,
    group_agreement_totals,
    instability_totals,
    layer_churn_totals,
    quality_totals,
    worth_totals,
)
from workbench.analysis.stability import churn as stability
from workbench.analysis.stability.agreement import agreement_by, group_agreement

QUERIES = random_queries(3, steps=4, images=6, teacher_layers=4)


def share(totals) -> float:
    return totals["total"].sum() / totals["n"].sum()


def test_totals_divide_to_the_numbers_of_the_stability_frames():
    pooled = stability.pooled(stability.churn_over_steps(QUERIES))
    assert share(churn_totals(QUERIES)) == pytest.approx(pooled["churn"])
    assert share(instability_totals(QUERIES)) == pytest.approx(pooled["instability"])
    last = stability.agreement(QUERIES).sort_values(["step", "layer"]).iloc[-1]
    assert share(agreement_totals(QUERIES)) == pytest.approx(last["agreement"])
    assert agreement_totals(QUERIES)["n"].sum() == last["n"]
    last = stability.mean_quality(QUERIES, "student").sort_values(["step", "layer"]).iloc[-1]
    assert share(quality_totals(QUERIES)) == pytest.approx(last["quality"])
    layers = stability.churn_over_layers(QUERIES, step=40)
    assert share(layer_churn_totals(QUERIES)) == pytest.approx(stability.pooled(layers)["churn"])


def test_boxes_tell_queries_apart_where_the_side_says_so():
    rows = random_answers(5, steps=3, images=6, selected=True)
    for totals, name in ((churn_totals, "churn"), (instability_totals, "instability")):
        wanted = stability.pooled(stability.churn_over_steps(rows, identity="box"))[name]
        assert share(totals(rows, identity="box")) == pytest.approx(wanted) != share(totals(rows))


def test_agreement_with_the_teachers_group_is_of_the_last_layer_and_evaluation():
    rows = with_group(6)
    last = agreement_by(group_agreement(rows), samples=2).sort_values(["step", "layer"]).iloc[-1]
    assert share(group_agreement_totals(rows)) == pytest.approx(last["agreement"]) and last["n"] > 0
    names = [verdict.quantity.name for verdict in compare_queries({0: rows}, {0: rows}, range(100, 104), samples=5)]
    assert "agreement of the teacher's group" in names


def test_score_times_iou_differs_between_two_runs_by_the_mean_gain():
    distilled, baseline = random_answers(1, images=6), random_answers(1, images=6).assign(score=0.5)
    verdict, = (one for one in compare_queries({0: baseline}, {0: distilled}, range(100, 106), samples=20)
                if one.quantity.name == "score x IoU")  # fmt: skip
    gains = target_gain(distilled, baseline)
    assert len(gains) == worth_totals(distilled)["n"].sum()
    assert verdict.difference == pytest.approx(mean_gain(gains, samples=2)["gain"].item())


def test_queries_of_two_sides_are_compared_by_every_number_that_all_runs_have():
    other = QUERIES.assign(quality=QUERIES["quality"] + 1)
    verdicts = {verdict.quantity.name: verdict for verdict in compare_queries({0: QUERIES}, {0: other}, range(100, 106), samples=50)}
    assert list(verdicts) == ["churn", "instability", "churn between layers", "agreement", "quality"]
    assert verdicts["churn"].word == "not distinguishable" and verdicts["churn"].difference == 0
    assert verdicts["quality"].word == "better" and verdicts["quality"].difference == pytest.approx(1)
    alone = QUERIES[QUERIES["model"] == "student"].assign(mate=None)
    fewer = compare_queries({0: QUERIES}, {0: alone}, range(100, 106), samples=10)
    assert [verdict.quantity.name for verdict in fewer] == ["churn", "instability", "churn between layers", "quality"]


def test_every_coco_number_and_calibration_get_a_verdict_on_the_same_resamples():
    truth, first = random_coco(1, images=20, ties=False)
    rng = np.random.default_rng(0)
    second = first.assign(score=(first["score"] + rng.normal(0, 0.3, len(first))).clip(0, 1))
    found = {verdict.quantity.name: verdict for verdict in compare_detections(truth, {0: first}, {0: second}, samples=40, seed=3)}
    before, after = (coco_ap(truth, rows).to_json()["coco"] for rows in (first, second))
    names = {"AP": "ap", "AP50": "ap50", "AP75": "ap75", "AP of small targets": "ap_small", "AR, 1 detection an image": "ar1",
             "AR, 100 detections an image": "ar100", "AR of large targets": "ar_large"}  # fmt: skip
    assert len(found) == 13
    for name, key in names.items():
        assert (found[name].baseline, found[name].other) == pytest.approx((before[key], after[key]), abs=1e-9)
        assert found[name].difference == pytest.approx(after[key] - before[key], abs=1e-9)
    counts = draws(20, 40, 3)
    apart = weighted_ap(truth, second, counts) - weighted_ap(truth, first, counts)
    assert (found["AP"].low, found["AP"].high) == pytest.approx(tuple(np.percentile(apart, [2.5, 97.5])))
    wanted = calibration_error(match_detections(truth, second), samples=2).value
    assert found["calibration error"].other == pytest.approx(wanted) and not found["calibration error"].quantity.higher_is_better


def test_sizes_without_a_target_get_no_verdict():
    truth, rows = random_coco(2, images=20)
    truth["annotations"] = [{**a, "area": 20_000.0} for a in truth["annotations"]]
    names = [verdict.quantity.name for verdict in compare_detections(truth, {0: rows}, {0: rows}, samples=3)]
    assert "AP of large targets" in names and "AP of small targets" not in names and "AR of medium targets" not in names


def test_five_seeds_a_side_speak_of_the_method_and_fewer_of_these_checkpoints():
    sides = [{seed: random_queries(10 * side + seed, steps=3, images=6) for seed in range(5)} for side in (0, 1)]
    for verdict in compare_queries(sides[0], sides[1], range(100, 106), samples=5):
        assert verdict.about == "this method" and "5 pairs of runs" in verdict.sentence()
    four = compare_queries({seed: sides[0][seed] for seed in range(4)}, sides[1], range(100, 106), samples=5)
    assert {verdict.about for verdict in four} == {"these checkpoints"}


def test_a_verdict_on_churn_is_that_of_its_totals():
    other = random_queries(4, steps=4, images=6)
    verdict = compare_queries({0: QUERIES}, {0: other}, range(100, 106), samples=40, seed=2)[0]
    again = compare_totals(CHURN, {0: churn_totals(QUERIES)}, {0: churn_totals(other)}, range(100, 106), samples=40, seed=2)
    assert verdict == again and np.isfinite(verdict.low)
