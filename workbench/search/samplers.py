"""Proposes the next trial of a study: five ways behind one interface.

Nothing of a sampler lives in one process alone. What it proposes follows from the trials of the study, its seed and the number of the
trial, so that any worker can propose next, and one worker alone proposes the same every time.
"""

from collections.abc import Callable, Container, Sequence

import numpy as np
import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from workbench.search.candidate import Candidate
from workbench.search.family import FamilySampler
from workbench.search.genes import Genes, Space
from workbench.search.plan import SamplerName
from workbench.search.proposals import History, Past, SpaceSampler, anywhere
from workbench.search.recommended import REMEMBERED, RecommendedSampler

GOOD = 25
"""Trials that Optuna's estimator counts as good at most."""


class RandomSampler(SpaceSampler):
    """Draws every trial at random, no formula twice."""

    def propose(self, study: Study, trial: FrozenTrial, random: np.random.Generator) -> tuple[Genes, str]:
        return anywhere(self.space, random), "random"


class TreeSampler(SpaceSampler):
    """Optuna's tree-structured Parzen estimator, no formula twice.

    Trials that are running count as bad ones, so that workers do not all propose the same. Beyond 300 trials the estimator sees
    the newest 300 and the best 25, because its time grows with their number. More than 25 are never good ones to it, and old bad ones have
    little weight.
    """

    tries = 4
    _part: "tuple[int, _Part] | None" = None  # what the estimator sees while this trial is proposed

    def propose(self, study: Study, trial: FrozenTrial, random: np.random.Generator) -> tuple[Genes, str]:
        if self._part is None or self._part[0] != trial.number:
            self._part = trial.number, _Part(study, self.history.best(GOOD))
        sampler = TPESampler(seed=int(random.integers(2**31)), multivariate=True, constant_liar=True)
        genes = sampler.sample_relative(self._part[1], trial, dict(self.space.distributions))
        return (genes, "tpe") if genes else (anywhere(self.space, random), "random")


class _Part(Study):
    """A study that shows its newest trials and some others."""

    def __init__(self, study: Study, others: Sequence[Past]):
        super().__init__(study.study_name, study._storage)
        trials = study.get_trials(deepcopy=False)
        first = max(len(trials) - REMEMBERED, 0)
        self._shown = [trials[number] for number in sorted(past.number for past in others) if number < first] + trials[first:]

    def _get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False) -> list[FrozenTrial]:
        return [trial for trial in self._shown if states is None or trial.state in states]


class Sampling:
    """Gives the sampler of each trial of a study.

    Args:
        name: which sampler.
        space: what the study chooses from.
        seed: see ``SpaceSampler``.
        seeded: whether the study begins with known formulas; ``official`` and ``family`` never do.
    """

    def __init__(self, name: SamplerName, space: Space, seed: int, seeded: bool = True):
        self.name, self.space, self.seed = name, space, seed
        starts = space.starts(seeded)
        self.history = History(space)
        self._own: SpaceSampler | None = None
        match name:
            case "random":
                self._own = RandomSampler(space, seed, starts)
            case "tpe":
                self._own = TreeSampler(space, seed, starts)
            case "recommended":
                self._own = RecommendedSampler(space, seed, starts)
            case "family":
                self._own = FamilySampler(space, seed, repeats=True)
            case "official":
                pass

    @property
    def repeats(self) -> bool:
        """True if the sampler may propose a formula again."""
        return self._own is None or self._own.repeats

    def of(self, number: int) -> BaseSampler:
        """Returns the sampler that proposes the trial of this number."""
        if self._own is not None:
            return self._own
        # as the released code makes it; its own stream of random numbers would begin anew in each process
        return NSGAIISampler(seed=int(np.random.default_rng([self.seed, number]).integers(2**31)))

    def exhausted(self, study: Study) -> bool:
        """True if every candidate that no rule forbids has been proposed and the sampler proposes none twice."""
        return not self.repeats and self.space.legal <= self.history.update(study.get_trials(deepcopy=False)).seen.keys()


def simulate(
    name: SamplerName, space: Space, fitness: Callable[[Candidate], float | None], trials: int, seed: int, seeded: bool = False
) -> list[float]:
    """Runs a search on known fitness, without any training, through the same code as a real one.

    Args:
        name: which sampler.
        space: what to choose from.
        fitness: fitness of a candidate in canonical form; None if a gate refuses it.
        trials: trials to train; refused ones do not count.
        seed: seed of the sampler.
        seeded: whether the search begins with known formulas.

    Returns:
        Fitness of each trained trial in order; fewer if the space is used up before.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    sampling = Sampling(name, space, seed, seeded)
    values: list[float] = []
    number = 0
    while len(values) < trials and not sampling.exhausted(study):
        study.sampler = sampling.of(number)
        trial = study.ask(dict(space.distributions))
        candidate = space.candidate(trial.params)
        value = None if candidate is None else fitness(candidate)
        if value is None:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, value)
            values.append(value)
        number += 1
    return values
