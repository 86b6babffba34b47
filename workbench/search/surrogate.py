"""Predicts what formulas are worth from those that were trained: the more choices two of them share, the more alike they are."""

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from scipy.stats import norm

ALIKE = 0.5
"""Factor by which the correlation of two formulas falls with each position at which they differ."""
OWN = 0.2
"""Share of the variance that no other formula tells about: luck, and what only this combination of choices has."""


def covariance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns how the fitness of different formulas varies together, where the fitness of each has variance 1.

    Args:
        first: ``[F, D]`` the index of each choice.
        second: ``[S, D]`` the same of other formulas.

    Returns:
        ``[F, S]``, ``(1 - OWN) * ALIKE**d`` for formulas that differ at ``d`` positions. It is the sum over all sets of positions of a
        random effect for each combination of choices there, so that choices count by themselves and in combination.
    """
    differing = (first[:, None] != second[None]).sum(-1)
    return (1 - OWN) * ALIKE**differing


def expected_gain(codes: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Returns by how much each formula is expected to surpass the best so far (expected improvement of a Gaussian process).

    Args:
        codes: ``[T, D]`` the index of each choice of the trained formulas.
        values: ``[T]`` their fitness.
        asked: ``[A, D]`` the same index for formulas that were not trained.

    Returns:
        ``[A]`` in standard deviations of ``values``; a formula that falls short of the best counts as 0.
    """
    scaled = (values - values.mean()) / (values.std() or 1.0)
    lower = cholesky(covariance(codes, codes) + OWN * np.eye(len(codes)), lower=True)
    across = solve_triangular(lower, covariance(codes, asked), lower=True)
    mean = across.T @ solve_triangular(lower, scaled, lower=True)
    spread = np.sqrt(1 - (across**2).sum(0))
    ahead = (mean - scaled.max()) / spread
    return spread * (ahead * norm.cdf(ahead) + norm.pdf(ahead))
