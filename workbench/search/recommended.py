"""The sampler ``recommended``: evolution in a steady state, which changes its population with every trial."""

from typing import Any

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from workbench.search.genes import Genes
from workbench.search.proposals import Past, SpaceSampler, anywhere

POPULATION = 16
CROSSOVER = 0.9
IMMIGRANTS = 0.1


class RecommendedSampler(SpaceSampler):
    """Crosses and mutates the best trials so far, no formula twice.

    The population is the best 16 trials that were trained to their end (elitism). Two parents each win a tournament of two. With
    probability 0.9 each position comes from either of them, else all come from the first. Then each position is drawn anew with probability
    one over their number. One proposal in ten is drawn at random. Trials that a gate refused never breed.
    """

    def propose(self, study: Study, trial: FrozenTrial, random: np.random.Generator) -> tuple[Genes, str]:
        population = self.history.best(POPULATION)
        if len(population) < POPULATION or random.random() < IMMIGRANTS:
            return anywhere(self.space, random), "random"
        first, second = (tournament(population, random) for _ in range(2))
        child = dict(first.genes)
        if random.random() < CROSSOVER:
            child |= {position: gene for position, gene in second.genes.items() if random.random() < 0.5}
        return mutated(child, self.space.choices, 1 / len(child), random), "child"


def tournament(population: list[Past], random: np.random.Generator) -> Past:
    """Returns the better of two members drawn at random.

    Args:
        population: members, the best first.
        random: draws them.
    """
    return population[int(random.integers(len(population), size=2).min())]


def mutated(genes: Genes, choices: dict[str, tuple[Any, ...]], chance: float, random: np.random.Generator) -> dict[str, Any]:
    """Returns genes of which each was replaced by another choice with probability ``chance``."""
    changed = dict(genes)
    for position, gene in genes.items():
        others = [choice for choice in choices[position] if choice != gene]
        if others and random.random() < chance:
            changed[position] = others[random.integers(len(others))]
    return changed
