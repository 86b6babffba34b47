"""The sampler ``family``: the loop in which the authors' earlier searches (lliai/Auto-DAS) evolve their formulas."""

from bisect import insort
from typing import Any

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from workbench.search.genes import Genes
from workbench.search.proposals import Past, SpaceSampler, anywhere

POPULATION, PARENTS = 50, 0.2
CROSSOVER, MUTATION, SLOT = 0.5, 0.1, 0.5


class FamilySampler(SpaceSampler):
    """Evolves as ``exps/search_proxy/s0/evo_search_interaction.py`` of lliai/Auto-DAS does.

    Fifty random trials are the first population. Then trials come in pairs: a child of two of the best fifth (crossed with probability 0.5,
    mutated with 0.1, and each position then changes with 0.5), and a newcomer drawn at random. When both are done, the worst member leaves
    and the better of the two enters. Formulas may repeat. A trial that a gate refused does not enter; the authors give it the worst score.
    """

    def propose(self, study: Study, trial: FrozenTrial, random: np.random.Generator) -> tuple[Genes, str]:
        trials = list(self.history.trials.values())
        population = members(trials)
        if len(population) < POPULATION:
            return anywhere(self.space, random), "random"
        children = sum(past.role == "child" for past in trials)
        if children > sum(past.role == "newcomer" for past in trials):
            return anywhere(self.space, random), "newcomer"
        best = population[: max(int(PARENTS * POPULATION), 2)]
        first, second = (best[index] for index in random.choice(len(best), 2, replace=False))
        return self._child(first.genes, second.genes, random), "child"

    def _child(self, first: Genes, second: Genes, random: np.random.Generator) -> dict[str, Any]:
        child = dict(first)
        if random.random() < CROSSOVER:
            transforms = [position for position in child if position != "distance"]
            swapped = transforms[random.integers(len(transforms))]
            for position, gene in second.items():
                if position == swapped or (position == "distance" and random.random() < 0.5):
                    child[position] = gene
        if random.random() < MUTATION:
            fresh = anywhere(self.space, random)
            child |= {position: gene for position, gene in fresh.items() if random.random() < SLOT}
        return child


def members(trials: list[Past]) -> list[Past]:
    """Returns the population after some trials, the best first; it is what the loop holds when the pairs that are finished have entered.

    Args:
        trials: all trials in order.
    """
    begun = [past for past in trials if past.role == "random" and past.value is not None][:POPULATION]
    population = sorted(begun, key=_rank)
    if len(population) < POPULATION:
        return population
    pairs = zip(*([past for past in trials if past.role == role] for role in ("child", "newcomer")), strict=False)
    for pair in pairs:
        if not all(past.state.is_finished() for past in pair):
            continue
        trained = [past for past in pair if past.value is not None]
        if trained:
            population.pop()
            insort(population, min(trained, key=_rank), key=_rank)
    return population


def _rank(past: Past) -> tuple[float, int]:
    return -(past.value or 0), past.number
