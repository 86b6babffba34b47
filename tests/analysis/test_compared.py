"""Totals over images give the numbers that the rest of the analysis shows, and verdicts are drawn from them."""

import numpy as np
import pytest

from tests.analysis.coco_examples import random_coco
from tests.analysis.query_examples import random_queries
from workbench.analysis import stability
from workbench.analysis.compared import agreement_totals, churn_totals, compare_queries, error_totals, instability_totals, quality_totals
from workbench.analysis.tide import error_counts, find_errors
from workbench.analysis.verdict import CHURN, compare_totals

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


def test_errors_are_counted_per_target_of_their_image():
    errors = find_errors(*random_coco(4))
    for error in ("missed", "duplicate", "false_positive"):
        totals = error_totals(errors, error)
        assert totals["total"].sum() == error_counts(errors)[error] and totals["n"].sum() == len(errors.targets)


def test_queries_of_two_sides_are_compared_by_every_number_that_all_runs_have():
    other = QUERIES.assign(quality=QUERIES["quality"] + 1)
    verdicts = {verdict.quantity.name: verdict for verdict in compare_queries({0: QUERIES}, {0: other}, range(100, 106), samples=50)}
    assert list(verdicts) == ["churn", "IS", "agreement", "quality"]
    assert verdicts["churn"].word == "not distinguishable" and verdicts["churn"].difference == 0
    assert verdicts["quality"].word == "better" and verdicts["quality"].difference == pytest.approx(1)
    alone = QUERIES[QUERIES["model"] == "student"].assign(mate=None)
    fewer = compare_queries({0: QUERIES}, {0: alone}, range(100, 106), samples=10)
    assert [verdict.quantity.name for verdict in fewer] == ["churn", "IS", "quality"]


def test_a_verdict_on_churn_is_that_of_its_totals():
    other = random_queries(4, steps=4, images=6)
    verdict = compare_queries({0: QUERIES}, {0: other}, range(100, 106), samples=40, seed=2)[0]
    again = compare_totals(CHURN, {0: churn_totals(QUERIES)}, {0: churn_totals(other)}, range(100, 106), samples=40, seed=2)
    assert verdict == again and np.isfinite(verdict.low)
