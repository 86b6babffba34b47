"""Defines what a study chooses from: the formulas of one input, or the shares of several formulas together."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

from optuna.distributions import CategoricalDistribution

from workbench.methods.detkds.canonical import canonical
from workbench.methods.detkds.genotype import NAMED, Genotype, Input, Mode, refusal
from workbench.search.candidate import Candidate
from workbench.search.space import gate, positions

Genes = Mapping[str, Any]
"""The choice at each position of a candidate."""


class Space(ABC):
    """What a study chooses from: some choices at each position.

    Attributes:
        choices: The choices at each position, in order.
    """

    choices: dict[str, tuple[Any, ...]]

    @abstractmethod
    def candidate(self, genes: Genes) -> Candidate | None:
        """Returns the candidate of some genes in its canonical form; None if nothing is left of it."""

    @abstractmethod
    def genes(self, candidate: Candidate) -> dict[str, Any]:
        """Returns the genes of a candidate, the inverse of ``candidate`` for canonical forms."""

    @abstractmethod
    def starts(self, seeded: bool) -> list[dict[str, Any]]:
        """Returns the genes that a search begins with.

        Args:
            seeded: whether it begins with known formulas.
        """

    @abstractmethod
    def refusal(self, genes: Genes) -> str | None:
        """Returns why a candidate need not be trained, as the end of a sentence; None if it may (gate R0)."""

    @cached_property
    def distributions(self) -> dict[str, CategoricalDistribution]:
        """Returns the choices as Optuna's distributions."""
        return {position: CategoricalDistribution(choices) for position, choices in self.choices.items()}

    @cached_property
    def points(self) -> tuple[dict[str, Any], ...]:
        """Returns every point."""
        return tuple(dict(zip(self.choices, values, strict=True)) for values in product(*self.choices.values()))

    def settled(self, genes: Genes) -> dict[str, Any]:
        """Returns the genes of the canonical form; the genes themselves if that form is written with choices the space lacks."""
        candidate = self.candidate(genes)
        kept = dict(genes) if candidate is None else self.genes(candidate)
        return kept if all(gene in self._places[position] for position, gene in kept.items()) else dict(genes)

    @cached_property
    def _places(self) -> dict[str, dict[Any, int]]:
        return {position: {choice: index for index, choice in enumerate(choices)} for position, choices in self.choices.items()}

    def code(self, genes: Genes) -> tuple[int, ...]:
        """Returns the index of each choice at its position."""
        return tuple(places[genes[position]] for position, places in self._places.items())

    @cached_property
    def _keys(self) -> dict[tuple[Any, ...], str]:
        return {}

    def key(self, genes: Genes) -> str:
        """Returns the canonical form as text, which is equal for candidates that teach the same."""
        values = tuple(genes.values()) if list(genes) == list(self.choices) else tuple(genes[position] for position in self.choices)
        if values not in self._keys:
            self._keys[values] = str(self.candidate(dict(zip(self.choices, values, strict=True))) or "nothing")
        return self._keys[values]

    @cached_property
    def size(self) -> int:
        """Returns the number of different candidates, those included that gate R0 refuses."""
        return len({self.key(genes) for genes in self.points})

    @cached_property
    def legal(self) -> frozenset[str]:
        """Returns the canonical forms that no rule forbids; what gate R0 computes may still refuse some."""
        return frozenset(self.key(genes) for genes in self.points if self._lawful(genes))

    @abstractmethod
    def _lawful(self, genes: Genes) -> bool:
        """True if no rule forbids a point."""


@dataclass(frozen=True, eq=False)
class FormulaSpace(Space):
    """The formulas of one input, all with one share of the detection gradient.

    Attributes:
        input: What is compared.
        mode: How formulas are computed.
        images: Images in a batch of one process.
        share: Share of every formula.
        extra: Entries that the released tables lack.
    """

    input: Input
    mode: Mode
    images: int
    share: float = 1.0
    extra: tuple[str, ...] = ()

    @cached_property
    def choices(self) -> dict[str, tuple[Any, ...]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return dict(positions(self.input, self.extra))

    def genotype(self, genes: Genes) -> Genotype:
        """Returns the formula of some genes, in its canonical form."""
        return canonical(Genotype(self.input, **genes), self.mode)

    def candidate(self, genes: Genes) -> Candidate:
        return Candidate(((self.genotype(genes), self.share),))

    def genes(self, candidate: Candidate) -> dict[str, Any]:
        return {position: getattr(candidate.shares[0][0], position) for position in self.choices}

    def starts(self, seeded: bool) -> list[dict[str, Any]]:
        named = [genotype for genotype in NAMED.values() if genotype.input == self.input] if seeded else []
        genes = ({position: getattr(genotype, position) for position in self.choices} for genotype in named)
        return [one for one in genes if self._lawful(one)]

    def refusal(self, genes: Genes) -> str | None:
        return _examined(self.genotype(genes), self.mode, self.images)

    def _lawful(self, genes: Genes) -> bool:
        rows = None if self.input in ("instance", "localization") else self.images
        return refusal(self.genotype(genes), self.mode, rows) is None


@lru_cache(maxsize=8192)
def _examined(genotype: Genotype, mode: Mode, images: int) -> str | None:
    return gate(genotype, mode, images)


@dataclass(frozen=True, eq=False)
class ShareSpace(Space):
    """The shares of some formulas together; a share of 0 drops a formula.

    Attributes:
        formulas: One formula for each input, in the order of the inputs.
        shares: Shares that each of them may have.
        balanced: Share that the formulas have together at the point the search begins with.
    """

    formulas: tuple[Genotype, ...]
    shares: tuple[float, ...]
    balanced: float

    @cached_property
    def choices(self) -> dict[str, tuple[Any, ...]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {formula.input: self.shares for formula in self.formulas}

    def candidate(self, genes: Genes) -> Candidate | None:
        kept = tuple((formula, genes[formula.input]) for formula in self.formulas if genes[formula.input] > 0)
        return Candidate(kept) if kept else None

    def genes(self, candidate: Candidate) -> dict[str, Any]:
        return dict.fromkeys(self.choices, 0.0) | {genotype.input: share for genotype, share in candidate.shares}

    def starts(self, seeded: bool) -> list[dict[str, Any]]:
        aim = self.balanced / len(self.formulas)
        nearest = min((share for share in self.shares if share > 0), key=lambda share: max(share / aim, aim / share))
        return [dict.fromkeys(self.choices, nearest)]

    def refusal(self, genes: Genes) -> str | None:
        return None if self._lawful(genes) else "every share is 0, which trains without a teacher"

    def _lawful(self, genes: Genes) -> bool:
        return any(share > 0 for share in genes.values())
