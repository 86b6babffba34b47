"""Defines what a search tries and what became of it: a distiller of one or more formulas, and the record of its training."""

from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.methods.detkds.canonical import canonical
from workbench.methods.detkds.config import DetKDSConfig
from workbench.methods.detkds.genotype import INPUTS, Genotype, Mode

Gate = Literal["R0", "R1", "R2", "rung"]
"""What ended a trial before its last step: a formula that cannot work (R0), its gradient on a batch (R1), collapse during training (R2), or
a rung of the schedule at which others were better."""


@dataclass(frozen=True)
class Candidate:
    """A distiller that the search tries: at most one formula for each input, each with its share of the detection gradient.

    Attributes:
        shares: Formulas with their shares, in the order of the inputs. A share is the norm of the term's gradient at the start, relative
            to the detection loss's (``balance``), so that formulas are compared at equal strength.
    """

    shares: tuple[tuple[Genotype, float], ...]

    def __post_init__(self) -> None:
        order = [INPUTS.index(genotype.input) for genotype, _ in self.shares]
        if not order or order != sorted(set(order)):
            raise ValueError("a candidate has one formula for each of its inputs, in the order of the inputs, and at least one formula")

    def __str__(self) -> str:
        return "; ".join(f"{genotype} at {share:g}" for genotype, share in self.shares)

    def canonical(self, mode: Mode) -> "Candidate":
        """Returns the candidate with the canonical form of each formula: candidates that teach the same are equal."""
        return Candidate(tuple((canonical(genotype, mode), share) for genotype, share in self.shares))

    def method(self, mode: Mode, **settings: Any) -> dict[str, Any]:
        """Returns the entry of a recipe's ``methods:`` that trains with this candidate.

        Args:
            mode: how formulas are computed.
            settings: other settings of ``detkds``, such as ``feature``.
        """
        formulas = DetKDSConfig.of({genotype: 1.0 for genotype, _ in self.shares}, mode=mode, **settings)
        balance: dict[str, float] = {}
        for genotype, share in self.shares:
            balance[genotype.input] = share
            if genotype.input == "foreground":
                balance["background"] = share / 2  # as the released weights
        return formulas.model_dump(mode="json", exclude_unset=True) | {"method": "detkds", "mode": mode, "balance": balance}


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate's training with one seed.

    Attributes:
        ap: AP (0..1) on the fitness split after the last step; None if a gate ended the trial before.
        rungs: AP by step, at every rung that was reached, the last step included. Before it every second image of the split is measured.
        gate: What ended the trial early; None if it was trained to its end.
        reason: Why, as a sentence; empty if it was trained to its end.
        seconds: CPU seconds of the trial's process, evaluation included.
        ratios: Gradient norm of each term at weight 1 over that of the detection loss, on the first batch; ``balance`` makes shares of it.
    """

    ap: float | None
    rungs: dict[int, float] = field(default_factory=dict[int, float])
    gate: Gate | None = None
    reason: str = ""
    seconds: float = 0.0
    ratios: dict[str, float] = field(default_factory=dict[str, float])
