"""Defines what a sampler of this room is: it reads the trials of a study and proposes a point whose canonical form is new."""

from abc import abstractmethod
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from workbench.search.genes import Genes, Space


@dataclass
class Past:
    """One trial as samplers see it.

    Attributes:
        number: Number in the study.
        genes: Its choices, in canonical form where the space has it.
        code: The index of each of these choices.
        key: Its canonical form as text.
        state: Its state in the study.
        value: Its AP if it was trained to its end.
        role: What a sampler noted about it.
    """

    number: int
    genes: dict[str, Any]
    code: tuple[int, ...]
    key: str
    state: TrialState
    value: float | None
    role: str


@dataclass
class History:
    """The trials of a study, read once each when they are finished.

    Attributes:
        space: What the study chooses from.
        trials: All trials that have genes, by number.
        seen: Canonical forms of all of them: trained, refused, running or waiting.
    """

    space: Space
    trials: dict[int, Past] = field(default_factory=dict[int, Past])
    seen: dict[str, int] = field(default_factory=dict[str, int])
    _read: int = 0
    _open: set[int] = field(default_factory=set[int])
    _ranked: list[Past] = field(default_factory=list[Past])

    def update(self, trials: Sequence[FrozenTrial], but: int | None = None) -> "History":
        """Reads the trials that are new or were not finished.

        Args:
            trials: all trials of the study, in order.
            but: number of the trial that is being proposed.
        """
        for number in [*sorted(self._open), *range(self._read, len(trials))]:
            trial = trials[number]
            self._open.discard(number)
            if not trial.state.is_finished():
                self._open.add(number)
            genes = trial.params or trial.system_attrs.get("fixed_params")
            if number == but or not genes:
                continue
            if len(genes) < len(self.space.choices):
                continue  # its worker was killed while it proposed
            key = self.space.key(genes)
            kept = self.space.settled(genes)
            value = trial.value if trial.state == TrialState.COMPLETE else None
            past = Past(number, kept, self.space.code(kept), key, trial.state, value, trial.user_attrs.get("role", ""))
            self.trials[number] = past
            self.seen.setdefault(key, number)
            if value is not None:
                insort(self._ranked, past, key=lambda past: (-(past.value or 0), past.number))
        self._read = len(trials)
        return self

    def best(self, count: int | None = None) -> list[Past]:
        """Returns the trials that were trained to their end, the best first."""
        return self._ranked[:count]


class SpaceSampler(BaseSampler):
    """Base of the samplers that propose whole points of a space.

    Args:
        space: what to choose from.
        seed: proposals follow from it, the trials and the number of the trial.
        starts: points to propose first.
        repeats: whether a canonical form may be proposed again, and one that a rule forbids.

    Attributes:
        tries: Proposals that are drawn before a point is taken at random among those that were never tried.
    """

    tries = 24

    def __init__(self, space: Space, seed: int, starts: Sequence[Genes] = (), repeats: bool = False):
        self.space, self.seed, self.starts, self.repeats = space, seed, list(starts), repeats
        self.history = History(space)

    @abstractmethod
    def propose(self, study: Study, trial: FrozenTrial, random: np.random.Generator) -> tuple[Genes, str]:
        """Returns a point, and a word about where it comes from."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self.space.distributions)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        if "fixed_params" in trial.system_attrs:
            return {}
        self.history.update(study.get_trials(deepcopy=False), trial.number)
        genes, role = self._new(study, trial, np.random.default_rng([self.seed, trial.number]))
        study._storage.set_trial_user_attr(trial._trial_id, "role", role)
        return {position: genes[position] for position in self.space.choices}

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        raise RuntimeError(f"a study of this space has no position {param_name}")

    def _new(self, study: Study, trial: FrozenTrial, random: np.random.Generator) -> tuple[Genes, str]:
        for start in self.starts:
            if self.fresh(start):
                return start, "start"
        for _ in range(1 if self.repeats else self.tries):
            genes, role = self.propose(study, trial, random)
            if self.repeats or self.fresh(genes):
                return genes, role
        return self._unseen(random), "random"

    def fresh(self, genes: Genes) -> bool:
        """True if no rule forbids a point and its canonical form was never proposed, also not to another worker."""
        key = self.space.key(genes)
        return key in self.space.legal and key not in self.history.seen

    def _unseen(self, random: np.random.Generator) -> dict[str, Any]:
        """Returns a point drawn at random among the fresh ones; any point if there is none."""
        points = self.space.points
        return next((points[index] for index in random.permutation(len(points)) if self.fresh(points[index])), points[0])


def anywhere(space: Space, random: np.random.Generator) -> dict[str, Any]:
    """Returns a point drawn at random."""
    return {position: choices[random.integers(len(choices))] for position, choices in space.choices.items()}
