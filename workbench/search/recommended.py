"""The sampler ``recommended``: evolution in a steady state, which changes its population with every trial.

On made-up landscapes it was the best, and on the table of fitness it and ``tpe`` are (``docs/search.md``).
"""

from typing import Any

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from workbench.search.genes import Genes
from workbench.search.proposals import Past, SpaceSampler, anywhere
from workbench.search.surrogate import expected_gain

POPULATION = 16
FIRST = 10
"""Trials that are drawn at random before anything breeds."""
CROSSOVER = 0.9
IMMIGRANTS = 0.1
CHILDREN = 32
REMEMBERED = 300
"""Trials that predictions are made from at most, because their time grows with the cube of the number."""


class RecommendedSampler(SpaceSampler):
    """Crosses and mutates the best trials so far, and proposes the most promising of several children; no formula twice.

    The population is the best 16 trials that were trained to their end (elitism). Two parents each win a tournament of two. With
    probability 0.9 each position comes from either of them, else all come from the first. Then each position is drawn anew with probability
    one over their number. Of 32 children the one is proposed that is expected to surpass the best so far by the most; trials that share
    choices with a child, and combinations of choices, tell what to expect of it. One proposal in ten is drawn at random. Trials that a gate
    refused never breed. Beyond 300 trials the best 150 and the newest 150 others are what predictions are made from.
    """

    tries = 2

    def propose(self, study: Study, trial: FrozenTrial, random: np.random.Generator) -> tuple[Genes, str]:
        population = self.history.best(POPULATION)
        if len(population) < FIRST or random.random() < IMMIGRANTS:
            return anywhere(self.space, random), "random"
        children = [self._child(population, random) for _ in range(CHILDREN)]
        new = [child for child in children if self.fresh(child)]
        if not new:
            return children[0], "child"
        known = remembered(self.history.best())
        codes, values = np.array([past.code for past in known]), np.array([past.value for past in known], float)
        gains = expected_gain(codes, values, np.array([self.space.code(self.space.settled(child)) for child in new]))
        return new[int(gains.argmax())], "child"

    def _child(self, population: list[Past], random: np.random.Generator) -> dict[str, Any]:
        first, second = (tournament(population, random) for _ in range(2))
        child = dict(first.genes)
        if random.random() < CROSSOVER:
            child |= {position: gene for position, gene in second.genes.items() if random.random() < 0.5}
        return mutated(child, self.space.choices, 1 / len(child), random)


def remembered(ranked: list[Past], most: int = REMEMBERED) -> list[Past]:
    """Returns the trials that predictions are made from: the best, and the newest of the others.

    Args:
        ranked: trials with a fitness, the best first.
        most: how many to return at most.
    """
    half = most // 2
    return ranked if len(ranked) <= most else ranked[:half] + sorted(ranked[half:], key=lambda past: past.number)[-half:]


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
