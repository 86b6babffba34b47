"""Samplers propose what the space holds, no formula twice, and the same again from the same trials."""

from collections import Counter
from functools import partial
from itertools import combinations

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import TPESampler
from optuna.trial import TrialState

from tests.search.examples import opened, share_of
from workbench.methods.detkds.genotype import refusal
from workbench.search.candidate import Candidate, Outcome
from workbench.search.family import POPULATION, FamilySampler, members
from workbench.search.genes import FormulaSpace, Genes, ShareSpace, Space
from workbench.search.proposals import History
from workbench.search.recommended import REMEMBERED, remembered
from workbench.search.samplers import Sampling, _Part, simulate

GLOBAL = FormulaSpace("global", "corrected", 2, 3.0)
LOGITS = FormulaSpace("logits", "corrected", 2, 3.0)
SHARES = ShareSpace(tuple(space.genotype(space.points[0]) for space in (GLOBAL, LOGITS)), (0.0, 0.3, 1.0, 3.0), 3.0)
OWN = ("random", "recommended", "tpe")
optuna.logging.set_verbosity(optuna.logging.WARNING)


def table(candidate: Candidate) -> float:
    """A fitness to which each choice adds, so that there is something to learn."""
    genotype = candidate.shares[0][0]
    return sum(share_of(f"{position} {gene}") for position, gene in enumerate(genotype.genes))


def allowed(space: FormulaSpace, genes: Genes) -> bool:
    """True if no rule forbids a formula in a batch."""
    rows = None if space.input in ("instance", "localization") else space.images
    return refusal(space.genotype(genes), space.mode, rows) is None


def asked(name, space: Space, trials: int, seed: int = 0, refused: float = 0.0) -> optuna.Study:
    """A study of some trials, a share of which a gate refused."""
    study, sampling = optuna.create_study(direction="maximize"), Sampling(name, space, seed, seeded=False)
    for number in range(trials):
        study.sampler = sampling.of(number)
        trial = study.ask(dict(space.distributions))
        key = space.key(trial.params)
        if share_of(key) < refused:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, share_of(key + "value"))
    return study


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("space", [LOGITS, SHARES], ids=["formulas", "shares"])
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**20), refused=st.sampled_from([0.0, 0.3]))
def test_proposals_are_points_of_the_space_and_no_canonical_form_comes_twice(name, space: Space, seed: int, refused: float):
    trials = asked(name, space, 14, seed, refused).get_trials()
    assert all(trial.params[position] in choices for trial in trials for position, choices in space.choices.items())
    assert max(Counter(space.key(trial.params) for trial in trials).values()) == 1


@pytest.mark.parametrize("name", [*OWN, "family", "official"])
def test_the_same_trials_give_the_same_proposals(name):
    first, again = (asked(name, LOGITS, 20, seed=5).get_trials() for _ in range(2))
    assert [trial.params for trial in first] == [trial.params for trial in again]
    assert [trial.params for trial in first] != [trial.params for trial in asked(name, LOGITS, 20, seed=6).get_trials()]


@pytest.mark.parametrize("name", [*OWN, "family", "official"])
def test_another_worker_goes_on_as_the_first_would_have(name):
    whole = asked(name, LOGITS, 30, seed=5)
    broken = optuna.create_study(direction="maximize")
    for number in range(30):
        broken.sampler = Sampling(name, LOGITS, 5, seeded=False).of(number)  # nothing remembered but the trials
        trial = broken.ask(dict(LOGITS.distributions))
        broken.tell(trial, share_of(LOGITS.key(trial.params) + "value"))
    assert [trial.params for trial in whole.get_trials()] == [trial.params for trial in broken.get_trials()]


@pytest.mark.parametrize("name", OWN)
def test_running_trials_of_other_workers_are_not_proposed_again(name, tmp_path):
    workers = [opened(tmp_path, sampler=name, inputs=["localization"]) for _ in range(3)]
    space = workers[0].space("localization")
    running = [workers[index % 3].ask("localization") for index in range(len(space.legal))]
    assert {space.key(one.genes) for one in running} == space.legal
    assert workers[0].sampling("localization").exhausted(workers[0].study("localization"))
    workers[0].tell(running[0], Outcome(0.5))


@pytest.mark.parametrize("trials", [20, 30])
def test_the_official_sampler_never_evolves_in_as_many_trials_as_the_released_scripts_run(trials: int):
    study = asked("official", GLOBAL, trials)
    kept = [value for trial in study.get_trials() for key, value in trial.system_attrs.items() if key.endswith("generation")]
    assert kept == [0] * trials
    longer = asked("official", GLOBAL, 60)
    kept = Counter(value for trial in longer.get_trials() for key, value in trial.system_attrs.items() if key.endswith("generation"))
    assert kept == {0: 50, 1: 10}


@pytest.mark.parametrize("name", OWN)
def test_a_formula_that_a_rule_forbids_is_never_proposed(name):
    one = FormulaSpace("logits", "corrected", 1)  # one image has no norm over images
    trials = asked(name, one, len(one.legal)).get_trials()
    assert all(allowed(one, trial.params) for trial in trials)
    assert {one.key(trial.params) for trial in trials} == {one.key(genes) for genes in one.points if allowed(one, genes)}
    assert len(one.legal) < one.size


def test_the_estimator_of_few_trials_is_that_of_optuna():
    study, whole = asked("tpe", LOGITS, 20), TPESampler(seed=3, multivariate=True, constant_liar=True)
    study.ask()
    trial, sampler = study.get_trials(deepcopy=False)[-1], TPESampler(seed=3, multivariate=True, constant_liar=True)
    expected = whole.sample_relative(study, trial, dict(LOGITS.distributions))
    assert sampler.sample_relative(_Part(study, []), trial, dict(LOGITS.distributions)) == expected


def test_the_estimator_of_many_trials_sees_the_newest_and_the_best():
    study, history, random = optuna.create_study(direction="maximize"), History(GLOBAL), np.random.default_rng(0)
    picks = random.choice(len(GLOBAL.points), REMEMBERED + 100, replace=False)
    study.add_trials([
        optuna.trial.create_trial(params=GLOBAL.points[pick], distributions=dict(GLOBAL.distributions), value=random.random())
        for pick in picks
    ])  # fmt: skip
    values = [trial.value or 0.0 for trial in study.get_trials()]
    best = np.argsort(values)[::-1][:25]
    history.update(study.get_trials())
    shown = [trial.number for trial in _Part(study, history.best(25)).get_trials(deepcopy=False)]
    assert shown == sorted({*range(100, REMEMBERED + 100), *best.tolist()})
    kept = [past.number for past in remembered(history.best())]
    ranked = np.argsort(values)[::-1]
    assert sorted(kept) == sorted([*ranked[: REMEMBERED // 2], *sorted(ranked[REMEMBERED // 2 :])[-REMEMBERED // 2 :]])
    assert [past.number for past in remembered(history.best()[:REMEMBERED])] == ranked[:REMEMBERED].tolist()


def test_a_seeded_search_begins_with_the_legal_known_formulas():
    study, sampling = optuna.create_study(direction="maximize"), Sampling("recommended", GLOBAL, 0)
    starts = GLOBAL.starts(seeded=True)
    for number in range(len(starts)):
        study.sampler = sampling.of(number)
        study.tell(study.ask(dict(GLOBAL.distributions)), 0.1 * number)
    assert [trial.params for trial in study.get_trials()] == starts and len(starts) == 5
    alone = FormulaSpace("global", "corrected", 1)
    assert len(alone.starts(seeded=True)) < 5, "one image has no norm over images"
    assert Sampling("family", GLOBAL, 0).space.starts(False) == []


def test_the_shares_begin_at_the_balanced_point():
    assert SHARES.starts(seeded=False) == [{"global": 1.0, "logits": 1.0}]  # 3 in two parts, the nearest choice
    assert SHARES.size == 16 and len(SHARES.legal) == 15
    assert SHARES.refusal({"global": 0.0, "logits": 0.0}) is not None
    assert SHARES.candidate({"global": 0.0, "logits": 3.0}) == Candidate(((SHARES.formulas[1], 3.0),))


def test_refused_trials_never_breed():
    study, history = asked("recommended", LOGITS, 40, refused=0.5), History(LOGITS)
    history.update(study.get_trials())
    refused = {trial.number for trial in study.get_trials() if trial.state == TrialState.PRUNED}
    assert refused and not refused & {past.number for past in history.best()}
    values = [trial.value for trial in study.get_trials() if trial.state == TrialState.COMPLETE]
    assert [past.value for past in history.best()] == sorted(values, reverse=True)


def test_the_family_replaces_its_worst_member_by_the_better_of_child_and_newcomer():
    trials = 70
    study, history = asked("family", GLOBAL, trials), History(GLOBAL)
    history.update(study.get_trials())
    roles = [trial.user_attrs["role"] for trial in study.get_trials()]
    assert roles == ["random"] * POPULATION + ["child", "newcomer"] * ((trials - POPULATION) // 2)
    values = [trial.value or 0.0 for trial in study.get_trials()]
    population = values[:POPULATION]
    for child, newcomer in zip(values[POPULATION::2], values[POPULATION + 1 :: 2], strict=True):
        population.remove(min(population))
        population.append(max(child, newcomer))
    assert sorted(past.value or 0.0 for past in members(list(history.trials.values()))) == sorted(population)


def test_a_child_of_the_family_swaps_one_transformation_at_most():
    sampler = FamilySampler(GLOBAL, 0, repeats=True)
    first = {"t1": "no", "t2": "no", "t3": "no", "distance": "l1"}
    second = {"t1": "satt", "t2": "scale_r2", "t3": "norm_C", "distance": "l2"}
    random, crossed = np.random.default_rng(0), Counter()
    for _ in range(2000):
        child = sampler._child(first, second, random)
        if all(child[position] in (first[position], second[position]) for position in child):
            crossed[sum(child[position] == second[position] for position in ("t1", "t2", "t3"))] += 1
    assert crossed[1] > 800 and crossed[0] > 800 and crossed[2] + crossed[3] < 20  # more only where it mutates too


def test_a_simulated_search_learns_where_random_does_not():
    found = {name: np.mean([max(simulate(name, GLOBAL, table, 40, seed)) for seed in range(6)]) for name in ("random", "recommended")}
    assert found["recommended"] > found["random"]


def test_where_pairs_of_choices_count_recommended_finds_better_formulas_than_the_tree_estimator():
    def landscape(number: int, candidate: Candidate) -> float:
        genes = list(enumerate(candidate.shares[0][0].genes))
        alone = sum(share_of(f"{number} {gene}") for gene in genes)
        pairs = sum(share_of(f"{number} {one} {other}") for one, other in combinations(genes, 2))
        return alone + pairs + share_of(f"{number} {candidate}")

    found = {
        name: [max(simulate(name, GLOBAL, partial(landscape, number), 60, number)) for number in range(16)]
        for name in ("random", "tpe", "recommended")
    }
    assert np.mean(found["recommended"]) > np.mean(found["tpe"]) > np.mean(found["random"])


def test_a_simulated_search_counts_trained_trials_alone_and_ends_with_the_space():
    refused = {str(LOGITS.candidate(genes)) for genes in LOGITS.points if share_of(LOGITS.key(genes)) < 0.4}
    values = simulate("random", LOGITS, lambda candidate: None if str(candidate) in refused else table(candidate), 10**6, seed=1)
    left = {str(LOGITS.candidate(genes)): LOGITS.candidate(genes) for genes in LOGITS.points if allowed(LOGITS, genes)}
    left = {name: candidate for name, candidate in left.items() if name not in refused}
    assert refused and sorted(values) == sorted(map(table, left.values()))
