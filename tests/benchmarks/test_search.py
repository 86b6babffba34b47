"""The long search that proposals are timed in is what it says, and a sampler works in it as in any other."""

from collections import Counter
from pathlib import Path

from benchmarks.search import SHARES, long_search
from workbench.search.candidate import Outcome
from workbench.search.family import POPULATION, members
from workbench.search.proposals import History


def test_a_long_search_has_trials_that_are_all_different_and_lets_every_sampler_go_on(tmp_path: Path):
    search = long_search(tmp_path, 120)
    space, trials = search.space("shares"), search.study("shares").get_trials()
    assert len(space.points) == len(SHARES) ** 5 > 5000
    assert max(Counter(space.key(trial.params) for trial in trials).values()) == 1 and len(trials) == 120
    # the family has taken in every pair behind its first fifty
    history = History(space).update(trials)
    population = [trial.value or 0.0 for trial in trials[:POPULATION]]
    for first, second in zip(trials[POPULATION::2], trials[POPULATION + 1 :: 2], strict=True):
        population.remove(min(population))
        population.append(max(first.value or 0.0, second.value or 0.0))
    assert [past.value for past in members(list(history.trials.values()))] == sorted(population, reverse=True)
    for _ in range(2):
        search.tell(search.ask("shares"), Outcome(0.1))
    roles = [record.role for record in search.records("shares")[120:]]
    assert roles[0] == "start" and roles[1] in ("child", "random")
