"""The sampler ``recommended``: evolution in a steady state, which changes its population with every trial."""

from typing import Any

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from workbench.search.genes import Genes, Space
from workbench.search.proposals import Past, SpaceSampler, anywhere

POPULATION = 16
FIRST = 10
"""Trials that are drawn at random before anything breeds."""
CROSSOVER = 0.9
IMMIGRANTS = 0.1
CHILDREN = 32
EFFECT, REST = 0.25, 0.5
"""Prior variance of a choice's effect, and the variance that the sum of effects leaves, where the fitness of all trials has variance 1."""


class RecommendedSampler(SpaceSampler):
    """Crosses and mutates the best trials so far, and proposes the most promising of several children; no formula twice.

    The population is the best 16 trials that were trained to their end (elitism). Two parents each win a tournament of two. With
    probability 0.9 each position comes from either of them, else all come from the first. Then each position is drawn anew with probability
    one over their number. Of 32 children that were never tried, the one is proposed whose effects add up to the most; the effects are drawn
    from what the trials so far say about each choice by itself (Thompson sampling of a linear model), so that choices that are little known
    are tried too. One proposal in ten is drawn at random. Trials that a gate refused never breed.
    """

    tries = 2

    def propose(self, study: Study, trial: FrozenTrial, random: np.random.Generator) -> tuple[Genes, str]:
        population = self.history.best(POPULATION)
        if len(population) < FIRST or random.random() < IMMIGRANTS:
            return anywhere(self.space, random), "random"
        children = [self._child(population, random) for _ in range(CHILDREN)]
        new = [child for child in children if self.space.key(child) not in self.history.seen]
        if not new:
            return children[0], "child"
        effects = drawn_effects(self.space, self.history.best(), random)
        codes = np.array([self.space.code(self.space.settled(child)) for child in new])
        return new[int(_sums(effects, codes).argmax())], "child"

    def _child(self, population: list[Past], random: np.random.Generator) -> dict[str, Any]:
        first, second = (tournament(population, random) for _ in range(2))
        child = dict(first.genes)
        if random.random() < CROSSOVER:
            child |= {position: gene for position, gene in second.genes.items() if random.random() < 0.5}
        return mutated(child, self.space.choices, 1 / len(child), random)


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


def drawn_effects(space: Space, trained: list[Past], random: np.random.Generator) -> list[np.ndarray]:
    """Returns the effect of each choice on the fitness, drawn from what trials say about it.

    The fitness, scaled to mean 0 and variance 1, is taken for a sum of one effect for each choice and normal noise.

    Args:
        space: what the study chooses from.
        trained: trials with a fitness.
        random: draws the effects.

    Returns:
        For each position the effects of its choices.
    """
    sizes = [len(choices) for choices in space.choices.values()]
    starts = np.cumsum([0, *sizes[:-1]])
    columns = np.array([past.code for past in trained]) + starts
    rows = np.zeros((len(trained), sum(sizes)))
    np.put_along_axis(rows, columns, 1.0, axis=1)
    values = np.array([past.value for past in trained], float)
    values = (values - values.mean()) / (values.std() or 1.0)
    precision = rows.T @ rows / REST + np.eye(rows.shape[1]) / EFFECT
    factor = np.linalg.cholesky(precision)
    mean = np.linalg.solve(precision, rows.T @ values / REST)
    drawn = mean + np.linalg.solve(factor.T, random.standard_normal(len(mean)))
    return np.split(drawn, starts[1:])


def _sums(effects: list[np.ndarray], codes: np.ndarray) -> np.ndarray:
    """Returns the sum of the effects of each row of codes."""
    return np.sum([effect[column] for effect, column in zip(effects, codes.T, strict=True)], axis=0)
