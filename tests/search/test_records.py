"""Records of a search: every number that a person sees, against another way to compute it."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.search.examples import TableTrainer, opened
from workbench.search.records import (
    TrialRecord,
    best,
    best_so_far,
    cost,
    means,
    noise,
    rejections,
    survivors,
)
from workbench.search.rungs import calibration, may_prune, should_end
from workbench.search.stages import stages, total_cost
from workbench.search.study import SearchStudy
from workbench.search.workers import work

EMPTY = TrialRecord(
    study="logits", number=0, state="COMPLETE", candidate="", canonical="", genes={}, formulas=(), seed=0, value=None, rungs={}, gate=None,
    reason="", seconds=1.0, worker="", commit=None, role="", unpruned=False, repeat_of=None, retry_of=None, same_as=None,
    started=0.0, ended=0.0,
)  # fmt: skip


def trial(number: int, value: float, rung: float | None = None, **changes) -> TrialRecord:
    rungs = {} if rung is None else {50: rung, 100: value}
    changed = {"canonical": str(number), "value": value, "rungs": rungs, "ended": float(number), **changes}
    return replace(EMPTY, number=number, **changed)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> SearchStudy:
    """A search of two inputs that is done."""
    search = opened(
        tmp_path_factory.mktemp("tried"), inputs=["logits", "localization"], trials=12, repeated=3, unpruned=12, sampler="recommended"
    )
    assert work(search, TableTrainer(noise=0.1))
    return search


def frame(search: SearchStudy) -> pd.DataFrame:
    return pd.DataFrame([vars(record) for name in search.studies for record in search.records(name)])


def test_the_best_is_a_mean_over_fresh_seeds_without_the_trial_that_was_picked(search: SearchStudy):
    table = frame(search)
    repeats = table[table.repeat_of.notna()]
    assert (repeats.seed != search.plan.seed).all()
    expected = repeats.groupby(["study", "repeat_of"]).value.agg(["mean", "count"])
    found = means([record for name in search.studies for record in search.records(name)])
    assert {(one.first.study, one.first.number): one.mean for one in found} == pytest.approx(expected["mean"].to_dict())
    assert (expected["count"] == 2).all() and len(found) == 9
    assert [one.mean for one in found] == sorted((one.mean for one in found), reverse=True)
    # against a trainer's own values
    trainer, leader = TableTrainer(noise=0.1), found[0]
    values = [0.5 * _share(leader.first.candidate) + 0.1 * _share(f"{leader.first.candidate} {seed}") for seed in (1, 2)]
    assert sorted(leader.values) == pytest.approx(sorted(values)) and trainer.trained == []


def _share(text: str) -> float:
    from tests.search.examples import share_of

    return share_of(text)


def test_the_interval_is_students_with_the_spread_of_all_repeated_candidates(search: SearchStudy):
    records = search.records("logits")
    groups = pd.DataFrame([vars(r) for r in records if r.repeat]).groupby("repeat_of").value
    variance = groups.var(ddof=1).mean()  # groups of equal size
    assert noise(records) == pytest.approx(math.sqrt(variance))
    freedom = len(groups)
    for one in means(records):
        low, high = stats.t.interval(0.95, freedom, loc=one.mean, scale=math.sqrt(variance / 2))
        assert (one.low, one.high) == pytest.approx((low, high))


def test_best_so_far_never_shows_a_single_lucky_trial():
    lucky = [trial(0, 0.9), trial(1, 0.5), trial(2, 0.4)]
    assert best_so_far(lucky) == [] and best(lucky, 1)[0].number == 0
    again = [
        trial(0, 0.3, repeat_of=0, seed=1, ended=10.0), trial(1, 0.5, repeat_of=1, seed=1, ended=11.0),
        trial(2, 0.32, repeat_of=0, seed=2, ended=12.0),
    ]  # fmt: skip
    history = best_so_far([*lucky, *again])
    assert [(when, step.first.number, step.mean) for when, step in history] == [(10.0, 0, 0.3), (11.0, 1, 0.5), (12.0, 1, 0.5)]
    assert history[1][1].low is None and history[2][1].low is not None, "no interval before one candidate has two values"


def test_the_rank_correlation_of_a_rung_is_spearmans_over_the_first_trials():
    random = np.random.default_rng(0)
    ends = random.random(20).round(1)  # with ties
    rungs = (ends + random.normal(size=20) * 0.2).round(1)
    records = [trial(index, end, rung, unpruned=index < 12) for index, (end, rung) in enumerate(zip(ends, rungs, strict=True))]
    (rung,) = calibration(records)
    assert (rung.step, rung.trials) == (50, 12)
    assert rung.correlation == pytest.approx(stats.spearmanr(rungs[:12], ends[:12])[0])
    copies = [replace(records[0], number=30, unpruned=True, same_as=0), trial(31, 0.9, 0.0, unpruned=True, repeat_of=1)]
    assert calibration([*records, *copies]) == [rung]


def test_a_rung_ends_trials_only_where_it_tells_the_end():
    telling = [trial(index, index / 10, index / 20, unpruned=True) for index in range(8)]
    misleading = [trial(index, index / 10, -index / 20, unpruned=True) for index in range(8)]
    alike = [trial(index, index / 10, 0.1, unpruned=True) for index in range(8)]
    assert may_prune(telling, 50, 8, 0.6) and not may_prune(telling, 50, 9, 0.6) and not may_prune(telling, 25, 8, 0.6)
    assert not may_prune(misleading, 50, 8, 0.6) and not may_prune(alike, 50, 8, 0.6)
    median = np.median([index / 20 for index in range(8)])
    assert should_end(telling, 50, median - 0.001, 8, 0.6) and not should_end(telling, 50, median, 8, 0.6)
    assert not should_end(misleading, 50, -1.0, 8, 0.6)


def test_rungs_end_trials_of_a_search_but_not_the_first_ones_or_repeats(tmp_path: Path):
    search, trainer = opened(tmp_path, trials=20, unpruned=6, repeated=2), TableTrainer(noise=0.0)
    assert work(search, trainer)
    records = search.records("logits")
    ended = [record for record in records if record.gate == "rung"]
    assert ended and all(not record.unpruned and record.value is None and not record.repeat for record in ended)
    assert sum(record.unpruned for record in records if not record.repeat) == 6
    assert all(record.state == "COMPLETE" for record in records if record.unpruned)
    assert not {record.number for record in ended} & {record.number for record in best(records)}


def test_survivors_are_shares_among_the_best_fifth(search: SearchStudy):
    records = [record for record in search.records("logits") if not record.repeat]
    rows = pd.DataFrame([vars(row) for row in survivors(records, every=5)])
    assert sorted(set(rows.trials)) == [5, 10, 12]
    for count, position in ((5, "t3"), (12, "distance")):
        first = sorted(records, key=lambda record: record.ended or 0)[:count]
        table = pd.DataFrame({"gene": [r.formulas[0][position] for r in first], "value": [r.value for r in first]})
        top = table.nlargest(math.ceil(count / 5), "value").gene.value_counts(normalize=True)
        found = rows[(rows.trials == count) & (rows.position == position)].set_index("gene")
        assert found.share[found.share > 0].to_dict() == pytest.approx(top.to_dict())
        assert found.proposed.to_dict() == pytest.approx(table.gene.value_counts(normalize=True).to_dict())


def test_rejections_are_counted_by_gate_and_reason():
    refused = [("R0", "no gradient"), ("R0", "no gradient"), ("R2", "collapsed")]
    records = [replace(trial(n, 0.0), value=None, state="PRUNED", gate=gate, reason=reason) for n, (gate, reason) in enumerate(refused)]
    assert rejections([trial(9, 0.1), *records]) == {"R0": {"no gradient": 2}, "R2": {"collapsed": 1}}


def test_cost_adds_up_and_reaches_the_whole(search: SearchStudy):
    table, spent = frame(search), total_cost(search)
    assert spent.spent == pytest.approx(table.seconds.sum()) == pytest.approx(cost(TrialRecord(**row) for row in table.to_dict("records")))
    assert spent.trials == spent.total == 2 * (12 + 6) + 3 + 6 and spent.left == 0
    assert all(one.done for one in stages(search))


def test_cost_to_come_is_the_mean_so_far_times_what_is_missing(tmp_path: Path):
    search = opened(tmp_path, trials=6)
    for _ in range(2):
        search.tell(asked := search.ask("logits"), TableTrainer().train(asked.candidate, 0, lambda step, ap: False))
    spent = total_cost(search)
    assert (spent.spent, spent.trials, spent.total) == (4.0, 2, 6 + 4 + 3 + 4)
    assert spent.left == pytest.approx(15 * 2.0)


def test_shares_cost_nothing_where_one_formula_has_one_share_to_choose(tmp_path: Path):
    search = opened(tmp_path, trials=6, shares=[0, 3])
    assert work(search, TableTrainer())
    spent = total_cost(search)
    assert all(one.done for one in stages(search)) and spent.trials == spent.total == 6 + 4 and spent.left == 0
