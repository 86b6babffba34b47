"""The comparison of samplers on the table of fitness is worked out from the committed trials, and the page shows it."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from benchmarks.detkds_table import POSITIONS, curves, means, trials_to_reach
from benchmarks.evidence import SEARCH_PAGE, SIMULATED, load, with_table
from benchmarks.fitness_table import distinct, read_table
from benchmarks.formula_effects import additive, additive_share, effects, interactions
from workbench.methods.detkds.canonical import canonical
from workbench.search.table import FitnessTable

HEADER, ROWS = read_table()
TABLE = means(ROWS)
KNOWN = list(TABLE.items())
SEARCHED = FitnessTable.read()


def test_the_table_holds_every_formula_with_two_seeds_and_no_trial_twice():
    trained = [(row.genotype, row.seed) for row in ROWS if row.genotype is not None]
    assert len(trained) == len(set(trained)) == 2 * len(distinct()) and len(distinct()) >= 288
    assert {genes for genes, _ in trained} == {genotype.genes for genotype in distinct()}


def test_a_cell_has_the_mean_of_the_seeds_of_its_canonical_form():
    frame = pd.DataFrame([{"genes": row.genotype, "ap": row.ap} for row in ROWS if row.genotype is not None])
    mean = frame.groupby("genes")["ap"].mean()
    assert all(TABLE[cell] == pytest.approx(mean[canonical(cell, "corrected").genes]) for cell in TABLE)


def test_the_effect_of_a_choice_is_the_mean_over_its_cells():
    frame = pd.DataFrame([{**dict(zip(POSITIONS, cell.genes, strict=True)), "ap": ap} for cell, ap in TABLE.items()])
    for row in effects(KNOWN, POSITIONS):
        cells = frame.loc[frame[row["position"]] == row["choice"], "ap"]
        assert (row["ap"], row["best"]) == (pytest.approx(cells.mean()), cells.max()) and row["low"] < row["ap"] < row["high"]
    # in a full factorial the effects of the positions are orthogonal, so that their shares of the variance add up
    between = sum(frame.groupby(place)["ap"].transform("mean").var(ddof=0) for place in POSITIONS)
    assert additive_share(KNOWN) == pytest.approx(between / frame["ap"].var(ddof=0))


def test_an_interaction_is_what_two_choices_do_beyond_the_sum_of_their_effects():
    frame = pd.DataFrame([{**dict(zip(POSITIONS, cell.genes, strict=True)), "ap": ap} for cell, ap in KNOWN])
    # in a full factorial the effect of a choice is its mean over that of all
    mean = frame["ap"].mean()
    frame["rest"] = frame["ap"] - mean - sum(frame.groupby(place)["ap"].transform("mean") - mean for place in POSITIONS)
    assert additive(KNOWN) == pytest.approx((frame["ap"] - frame["rest"]).to_numpy(), abs=1e-9)
    rows = interactions(KNOWN)
    assert rows and all(row["low"] < row["ap"] < row["high"] and row["low"] * row["high"] > 0 for row in rows)
    for row in rows:
        (first, second), (a, b) = row["positions"], row["choices"]
        group = frame.loc[(frame[first] == a) & (frame[second] == b), "rest"]
        assert row["ap"] == pytest.approx(group.mean()) and row["formulas"] == len(group)
    assert [abs(row["ap"]) for row in rows] == sorted((abs(row["ap"]) for row in rows), reverse=True)


def test_a_curve_is_the_best_so_far_of_a_search_that_proposes_nothing_twice():
    found = curves(SEARCHED, "random", seeded=False, seeds=2, trials=len(distinct()))
    assert found.shape == (2, len(distinct())) and (np.diff(found) >= 0).all()
    assert (found[:, -1] == max(TABLE.values())).all(), "after all formulas the best of them has been found"


def test_the_trial_at_which_a_value_is_reached_counts_from_one():
    assert trials_to_reach(np.array([[0.1, 0.3, 0.3], [0.1, 0.1, 0.2]]), 0.3).tolist() == [2.0, np.inf]


def test_the_page_shows_the_committed_comparison_and_its_sentences():
    committed = load(SIMULATED)
    page = SEARCH_PAGE.read_text(encoding="utf-8")
    assert f"<!-- table:{SIMULATED} -->" in page and with_table(page, SIMULATED, committed["markdown"]) == page
    assert committed["plan_hash"] == HEADER["plan_hash"] and committed["effects"] == effects(KNOWN, POSITIONS)
    one, two = ({row.genotype: row.ap for row in ROWS if row.seed == seed and row.genotype is not None} for seed in (0, 1))
    rank = spearmanr([one[genes] for genes in one], [two[genes] for genes in one]).statistic
    assert f"rank correlation between the seeds is {rank:.2f}" in " ".join(page.split())
    text = " ".join(page.split())
    assert f"{100 * committed['additive']:.0f} % of the variance" in text

    share = {(row["sampler"], row["seeded"], row["trials"]): f"{row['share']:.2f}" for row in committed["results"]}
    own, tree = (([share[name, False, count] for count in (60, 120)], share[name, True, 120]) for name in ("recommended", "tpe"))
    assert (
        f"value at 60 in {own[0][0]} of the trials and that at 120 in {own[0][1]}. `tpe` needs fewer, {tree[0][0]} and {tree[0][1]}, but"
        in text
    )
    assert f"seeded, `recommended` needs {own[1]} of 120 and `tpe` {tree[1]}." in text
    spans = [
        row["share_interval"]
        for row in committed["results"]
        if (row["seeded"], row["trials"], row["sampler"] in ("recommended", "tpe")) == (False, 60, True)
    ]
    assert max(low for low, _ in spans) < min(high for _, high in spans)


def test_the_committed_comparison_is_what_the_samplers_do():
    committed, found = load(SIMULATED), curves(SEARCHED, "recommended", seeded=False, seeds=100)
    row = next(row for row in committed["results"] if (row["sampler"], row["seeded"], row["trials"]) == ("recommended", False, 60))
    assert row["ap"] == pytest.approx(float(np.median(found[:, 59])))
    assert row["share"] == pytest.approx(float(np.median(trials_to_reach(found, row["random"]))) / 60)
