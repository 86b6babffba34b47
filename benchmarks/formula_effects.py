"""Says what each choice of a formula is worth, by itself and together with another choice, from formulas whose AP is known."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from workbench.methods.detkds.genotype import Genotype

RESAMPLES = 2000
LEAST_FORMULAS = 5
"""A choice or a pair of choices with fewer formulas is left out, because its interval would say nothing."""
POSITIONS = ("t1", "t2", "t3", "distance")
Known = Sequence[tuple[Genotype, float]]


def interval(values: np.ndarray, of: Any = np.median) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of a statistic over sampler seeds or formulas."""
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile([of(values[draw]) for draw in draws], [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)


def effects(known: Known, choices: Mapping[str, Sequence[str]] | None = None, least: int = 1) -> list[dict[str, Any]]:
    """Returns the mean AP (0..1) of the formulas with each choice, with its interval over these formulas.

    Args:
        known: formulas and their AP; a formula may stand more than once.
        choices: the choices of each position in the order to be shown; by default those that occur, sorted.
        least: least number of formulas of a choice.
    """
    rows: list[dict[str, Any]] = []
    for position in POSITIONS:
        for choice in (choices or {}).get(position) or sorted({getattr(one, position) for one, _ in known}):
            values = np.array([ap for one, ap in known if getattr(one, position) == choice])
            if len(values) < least:
                continue
            low, high = interval(values, np.mean)
            rows.append(
                {"position": position, "choice": choice, "ap": float(values.mean()), "low": low, "high": high, "best": float(values.max()),
                 "formulas": len(values)}
            )  # fmt: skip
    return rows


def additive(known: Known) -> np.ndarray:
    """Returns the AP (0..1) of each formula as the best sum of an effect for each of its choices, ``[formulas]``."""
    columns = [
        [getattr(one, position) == choice for one, _ in known]
        for position in POSITIONS
        for choice in sorted({getattr(one, position) for one, _ in known})
    ]
    design, values = np.array([*columns, [True] * len(known)], float).T, np.array([ap for _, ap in known])
    return design @ np.linalg.lstsq(design, values, rcond=None)[0]


def additive_share(known: Known) -> float:
    """Returns the share of the variance between formulas that choices explain one by one, without interactions."""
    values = np.array([ap for _, ap in known])
    return float(1 - (values - additive(known)).var() / values.var())


def interactions(known: Known) -> list[dict[str, Any]]:
    """Returns the pairs of choices whose formulas are better or worse than the two effects add up to, the strongest first.

    ``ap`` is the mean of what is left of a formula's AP (0..1) after the effects of its choices, over the formulas with both; pairs whose
    95 % interval over these formulas holds 0 are left out. Of many pairs one in twenty would stand here by chance.
    """
    rest = np.array([ap for _, ap in known]) - additive(known)
    rows: list[dict[str, Any]] = []
    for first, second in combinations(POSITIONS, 2):
        groups: dict[tuple[str, str], list[float]] = {}
        for (one, _), left in zip(known, rest, strict=True):
            groups.setdefault((getattr(one, first), getattr(one, second)), []).append(float(left))
        for (a, b), values in groups.items():
            if len(values) < LEAST_FORMULAS:
                continue
            low, high = interval(np.array(values), np.mean)
            if low > 0 or high < 0:
                rows.append({"choices": [a, b], "positions": [first, second], "ap": float(np.mean(values)), "low": low, "high": high,
                             "formulas": len(values)})  # fmt: skip
    return sorted(rows, key=lambda row: -abs(row["ap"]))
