"""Tables of a search for figures and pages, each number against another way to compute it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from tests.search.examples import TableTrainer, opened, share_of
from tests.search.test_records import trial
from workbench.recipe.loading import load_recipe, recipe_path
from workbench.search import shown
from workbench.search.candidate import Candidate, Outcome
from workbench.search.reader import SearchReader
from workbench.search.records import TrialRecord
from workbench.search.study import SearchStudy
from workbench.search.workers import work


class Refusing(TableTrainer):
    """Refuses a fifth of the candidates by their gradient."""

    def train(self, candidate: Candidate, seed: int, rung: Callable[[int, float], bool]) -> Outcome:
        if share_of(f"refused {candidate}") < 0.2:
            return Outcome(None, {}, "R1", "its gradient is too small", seconds=0.5)
        return super().train(candidate, seed, rung)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> SearchStudy:
    """A search of two inputs that is done, some of whose trials a rung ended."""
    folder = tmp_path_factory.mktemp("shown") / "tried"
    search = opened(folder, inputs=["logits", "localization"], trials=14, repeated=3, unpruned=5, seeded=True)
    assert work(search, Refusing(noise=0.1))
    return search


def optuna_trials(search: SearchStudy, study: str) -> list:
    """What Optuna itself has, read anew."""
    fresh = SearchStudy.read(search.folder)
    return [one for name in (study, f"{study}-repeats") for one in fresh.study(name).get_trials()]


def test_trials_stand_in_the_order_in_which_they_ended(search: SearchStudy):
    table = shown.trial_table(search.records("logits"))
    trials = sorted(optuna_trials(search, "logits"), key=lambda one: one.datetime_complete)
    assert table["place"].tolist() == list(range(1, len(trials) + 1))
    assert table["number"].tolist() == [one.number for one in trials]
    assert table["repeat"].tolist() == ["repeat_of" in one.user_attrs for one in trials]
    names = {"R0": "refused", "R1": "refused", "R2": "refused", "rung": "rung", None: "trained"}
    assert table["outcome"].tolist() == [names[one.user_attrs.get("gate")] for one in trials]
    assert {"trained", "rung", "refused"} <= set(table["outcome"])
    for row, one in zip(table.itertuples(), trials, strict=True):
        measured = one.value if one.state.name == "COMPLETE" else one.user_attrs["rungs"].get("50")
        assert (np.isnan(row.ap) and measured is None) or row.ap == pytest.approx(100 * measured)


def test_a_rung_that_ended_a_trial_is_its_ap_and_no_rung_before_it(search: SearchStudy):
    records = search.records("logits")
    trials, rungs = shown.trial_table(records), shown.rung_table(records)
    joined = rungs.merge(trials, on="place", suffixes=("", "_trial"))
    assert (joined["number"] == joined["number_trial"]).all()
    assert set(joined["outcome"]) == {"trained"}
    assert (joined["ap"] * 2).tolist() == pytest.approx(joined["ap_trial"].tolist())  # as the trainer makes them


def test_a_trial_that_runs_has_no_row():
    records = [trial(0, 0.2, rung=0.1), trial(1, 0.3, state="RUNNING", ended=None)]
    assert shown.trial_table(records)["number"].tolist() == [0]


def test_the_leader_changes_where_the_best_mean_of_fresh_seeds_changes(search: SearchStudy):
    records = search.records("logits")
    table, leaders = shown.trial_table(records), shown.leader_table(records)
    assert len(leaders)
    for leader in leaders.itertuples():
        until = table[(table["place"] <= leader.place) & table["repeat"]]
        means = until.groupby("repeat_of")["ap"].agg(["mean", "count"])
        assert leader.mean == pytest.approx(means["mean"].max())
        assert leader.number == means["mean"].idxmax()
        assert leader.n == means["count"][leader.number]
        inner = until["ap"] - until.groupby("repeat_of")["ap"].transform("mean")
        free = len(until) - len(means)
        if free:
            half = stats.t.ppf(0.975, free) * np.sqrt((inner**2).sum() / free) / np.sqrt(leader.n)
            assert (leader.low, leader.high) == (pytest.approx(leader.mean - half), pytest.approx(leader.mean + half))
        else:
            assert np.isnan(leader.low)


def test_means_are_of_fresh_seeds_and_name_the_trial_that_was_picked(search: SearchStudy):
    records, trials = search.records("logits"), optuna_trials(search, "logits")
    for row in shown.mean_table(records).itertuples():
        fresh = [one.value for one in trials if one.user_attrs.get("repeat_of") == row.number]
        assert sorted(row.values) == pytest.approx(sorted(100 * value for value in fresh))
        assert row.mean == pytest.approx(100 * sum(fresh) / len(fresh))
        assert row.first == pytest.approx(100 * trials[row.number].value)


def test_survivors_are_shares_of_the_best_fifth(search: SearchStudy):
    table = shown.survivor_table(search.records("logits"))
    trials = [one for one in optuna_trials(search, "logits") if one.state.name == "COMPLETE" and "repeat_of" not in one.user_attrs]
    last = table[table["trials"] == len(trials)]
    top = sorted(trials, key=lambda one: -one.value)[: -(-len(trials) // 5)]
    for row in last.itertuples():
        genes, kept = ([one.user_attrs["formulas"][0][row.position] for one in some] for some in (trials, top))
        assert row.share == pytest.approx(kept.count(row.choice) / len(kept))
        assert row.proposed == pytest.approx(genes.count(row.choice) / len(genes))
    assert last.groupby("position")["share"].sum().tolist() == pytest.approx([1.0, 1.0])
    assert table["trials"].min() >= min(5, len(trials))  # a fifth of fewer trials is none


def test_survivors_are_counted_at_40_moments_at_most():
    records = [trial(number, number / 1000, genes={"t3": "no"}, formulas=({"t3": "no"},)) for number in range(403)]
    moments = shown.survivor_table(records)["trials"].unique()
    assert len(moments) <= 41 and moments[-1] == 403


def test_the_space_holds_every_trained_trial_in_canonical_form(search: SearchStudy):
    table, positions = shown.space_table(search.records("logits"))
    trials = [one for one in optuna_trials(search, "logits") if one.state.name == "COMPLETE" and "repeat_of" not in one.user_attrs]
    assert positions == ["t3", "distance"]
    assert table["ap"].tolist() == pytest.approx([100 * one.value for one in trials])
    assert table[positions].to_dict("records") == [{p: one.user_attrs["formulas"][0][p] for p in positions} for one in trials]


def test_the_space_of_shares_has_an_axis_for_each_input(search: SearchStudy):
    table, positions = shown.space_table(search.records("shares"))
    assert positions == ["logits", "localization"]
    assert set(table["logits"]) <= set(search.plan.shares)


def test_the_correlation_of_a_rung_is_spearmans(search: SearchStudy):
    points, rungs = shown.calibration_table(search.records("logits"))
    first = [one for one in optuna_trials(search, "logits") if one.user_attrs.get("unpruned") and one.state.name == "COMPLETE"]
    first = [one for one in first if "repeat_of" not in one.user_attrs]
    assert points["number"].tolist() == [one.number for one in first]
    assert rungs["n"].tolist() == [len(first)]
    assert rungs["correlation"].tolist() == pytest.approx([stats.spearmanr(points["rung"], points["end"]).statistic])


def test_rejections_and_costs_count_every_trial(search: SearchStudy):
    records, trials = search.records("logits"), optuna_trials(search, "logits")
    told = shown.rejection_table(records)
    own = [one.user_attrs for one in trials if one.user_attrs.get("gate")]
    assert {(row.gate, row.reason): row.trials for row in told.itertuples()} == {
        (one["gate"], one["reason"]): sum((a["gate"], a["reason"]) == (one["gate"], one["reason"]) for a in own) for one in own
    }
    costs = shown.cost_table(records).set_index("what")
    assert costs["trials"].sum() == len(trials)
    assert costs["seconds"].sum() == pytest.approx(sum(one.user_attrs.get("seconds", 0.0) for one in trials))
    assert costs.loc["rung", "each"] == 1.0 and costs.loc["repeat", "each"] == 2.0  # as the trainer makes them


def test_the_entry_of_a_trial_is_a_method_that_a_recipe_accepts(search: SearchStudy, tmp_path: Path):
    record = next(one for one in search.records("shares") if len(one.formulas) == 2 and not one.repeat)
    found = shown.details(search.plan, record)
    recipe = yaml.safe_load(recipe_path("shapes").read_text())
    recipe.pop("arms", None)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe | yaml.safe_load(found.entry)))
    method = load_recipe(tmp_path / "own.yaml").methods[0]
    assert method.balance == {one["input"]: one["share"] for one in record.formulas}
    for one in record.formulas:
        part = getattr(method, one["input"])
        assert (part.t3, part.distance) == (one["t3"], one["distance"])
    assert [(name, share) for name, share, *_ in found.equations] == [(one["input"], one["share"]) for one in record.formulas]
    assert [place.position for place in found.operations] == ["t3", "distance"] * 2


def test_choices_that_leave_nothing_have_no_details(search: SearchStudy):
    found = shown.details(search.plan, trial(0, 0.1, candidate="nothing", gate="R0", reason="every share is 0"))
    assert (found.candidate, found.ended, found.equations, found.entry) == ("nothing", "R0: every share is 0", (), "")


@pytest.mark.parametrize("table", [
    shown.trial_table, shown.rung_table, shown.leader_table, shown.mean_table, shown.survivor_table, shown.rejection_table,
    shown.cost_table,
])  # fmt: skip
def test_a_study_without_trials_gives_an_empty_table_with_all_columns(table):
    whole = [trial(0, 0.2, rung=0.1), trial(1, 0.3, repeat_of=0)]
    assert isinstance(table([]), pd.DataFrame) and table([]).empty
    assert list(table([]).columns) == list(table(whole).columns)


def test_a_plan_that_cannot_be_read_is_named(search: SearchStudy, tmp_path: Path):
    assert shown.listed(search.folder)["inputs"] == "logits, localization"
    (tmp_path / "study.json").write_text("{")
    assert "not valid JSON" in shown.listed(tmp_path)["problem"]


def test_what_became_of_a_trial():
    kinds: dict[str, TrialRecord] = {
        "trained": trial(0, 0.1), "rung": trial(1, 0.1, state="PRUNED", gate="rung"), "refused": trial(2, 0.1, state="PRUNED", gate="R1"),
        "failed": trial(3, 0.1, state="FAIL"), "open": trial(4, 0.1, state="WAITING"),
    }  # fmt: skip
    assert {name: shown.outcome(record) for name, record in kinds.items()} == {name: name for name in kinds}


def test_a_reader_sees_what_was_written_since(tmp_path: Path):
    writer = opened(tmp_path / "tried")
    reader = SearchReader(tmp_path / "tried")
    assert reader.read().records == {}
    asked = writer.ask("logits")
    assert [one.open for one in reader.read().records["logits"]] == [True]
    writer.tell(asked, Outcome(0.3, {50: 0.2, 100: 0.3}, seconds=2.0))
    found = reader.read()
    assert [one.value for one in found.records["logits"]] == [0.3]
    assert found.stages["logits"].trained == 1 and found.cost.spent == 2.0 and found.plan == writer.plan
