"""Removes from a formula what changes nothing, so that a search evaluates no formula twice under two names.

Two formulas count as the same if their losses differ by a constant factor and a constant summand at most, because ``balance`` takes the
factor out and the summand has no gradient. Every rule below is an identity of the operations, up to the small numbers that keep them from
dividing by zero; tests compare the gradients of both forms.
"""

from collections.abc import Callable
from dataclasses import replace

from workbench.methods.detkds.genotype import LOCAL, Genotype, Mode

_BY_ENTRY = frozenset({"l1", "l2", "smooth_l1"})
_OVER_ROWS = frozenset({"no", "norm_N", "softmax_N", "logsoftmax_N", "min_max_normalize", "pow2"})
_SHARES = frozenset({"softmax_N", "softmax_C", "softmax_HW", "min_max_normalize"})
_NORMS = frozenset({"norm_N", "norm_C", "norm_HW"})
_Rule = Callable[[Genotype, Mode], Genotype | None]


def canonical(genotype: Genotype, mode: Mode) -> Genotype:
    """Returns the simplest formula that teaches the same as ``genotype``."""
    for rule in _rules(genotype, mode):
        simpler = rule(genotype, mode)
        if simpler is not None and simpler != genotype:
            return canonical(simpler, mode)
    return genotype


def _rules(genotype: Genotype, mode: Mode) -> tuple[_Rule, ...]:
    if genotype.input == "localization":
        return (_boxes,)
    if genotype.input == "instance" and mode == "official":
        return (_chains,)  # the boxes are pooled between the chain and the distance
    return (_released_foreground, _chains, _shapes, _scales, _cosines, _pearsons, _batch_correlations, _bounded, _patches, _divergences)


def _boxes(genotype: Genotype, mode: Mode) -> Genotype | None:
    """The rows of boxes have no cells."""
    return replace(genotype, t3="no") if genotype.t3 == "norm_HW" else None


def _released_foreground(genotype: Genotype, mode: Mode) -> Genotype | None:
    """The released code ignores the distance that is configured for foreground and background."""
    return replace(genotype, distance="l1") if (genotype.input, mode) == ("foreground", "official") else None


def _chains(genotype: Genotype, mode: Mode) -> Genotype | None:
    """Chains that give the same values, whatever the distance."""
    if genotype.t2 == "scale_r1":
        return replace(genotype, t2="no")
    # both undo a factor and a summand; the variance of maps weighted by 1 over an area is not large beside a batch norm's constant
    undone = ("min_max_normalize",) if genotype.input == "foreground" else ("min_max_normalize", "batchnorm")
    if genotype.t2 == "scale" and genotype.t3 in undone:
        return replace(genotype, t2="no")
    if (genotype.t1, genotype.t2, genotype.t3) == ("satt", "no", "norm_C"):
        return replace(genotype, t1="no")  # a factor for each cell
    if genotype.t1 == "catt" and genotype.t2 != "scale" and genotype.t3 == "norm_HW":
        return replace(genotype, t1="no")  # a factor for each channel, which a maximum passes on
    return None


def _shapes(genotype: Genotype, mode: Mode) -> Genotype | None:
    """Another shape of the same entries, for distances that do not see it."""
    divergence = (genotype.distance, mode) == ("kl", "corrected")
    if genotype.t3 == "channel" and not divergence:
        return replace(genotype, t3="no")
    if genotype.t3 == "batch" and not divergence and genotype.distance in _BY_ENTRY | {"kl", "cor"}:
        return replace(genotype, t3="no")
    return None


def _scales(genotype: Genotype, mode: Mode) -> Genotype | None:
    """(x + 1) / 2 halves a difference."""
    return replace(genotype, t2="no") if (genotype.t2, genotype.t3) == ("scale", "no") and genotype.distance in ("l1", "l2") else None


def _cosines(genotype: Genotype, mode: Mode) -> Genotype | None:
    """A cosine over the channels sees no factor of a cell; the squared difference of unit vectors is twice what the cosine lacks of 1."""
    if genotype.distance == "l2" and genotype.t3 == "norm_C" and mode == "corrected":
        return replace(genotype, t3="no", distance="cos")
    if genotype.distance not in ("cos", "pear"):
        return None
    if genotype.t3 == "norm_C":
        return replace(genotype, t3="no")
    if genotype.t1 == "satt" and genotype.t2 == "no" and genotype.t3 in ("no", "pow2"):
        return replace(genotype, t1="no")
    return None


def _pearsons(genotype: Genotype, mode: Mode) -> Genotype | None:
    """A correlation over the channels sees no factor and no summand of a cell."""
    if genotype.distance != "pear":
        return None
    if genotype.t3 in ("min_max_normalize", "logsoftmax_C"):
        return replace(genotype, t3="no")
    return replace(genotype, t2="no") if genotype.t2 == "scale" and genotype.t3 in ("no", "batch") else None


def _batch_correlations(genotype: Genotype, mode: Mode) -> Genotype | None:
    """A correlation over the batch sees no factor and no summand that all images share."""
    if genotype.distance != "cor":
        return None
    if genotype.t3 in ("norm_N", "logsoftmax_N", "min_max_normalize", "batchnorm"):
        return replace(genotype, t3="no")
    return replace(genotype, t2="no") if (genotype.t2, genotype.t3) == ("scale", "no") else None


def _bounded(genotype: Genotype, mode: Mode) -> Genotype | None:
    """Differences of at most 1 are on the square part of smooth L1. The released ``kl`` of vectors of length 1 is minus their product."""
    positive = genotype.t1 == "natt" or genotype.input == "logits"
    if genotype.distance == "smooth_l1":
        bounded = genotype.t3 in _SHARES or (positive and genotype.t3 in _NORMS)
        bounded |= genotype.input == "logits" and genotype.t3 in ("no", "pow2")
        return replace(genotype, distance="l2") if bounded else None
    if (genotype.distance, mode) == ("kl", "official") and positive and genotype.t3 in _NORMS:
        return replace(genotype, distance="l2")
    return None


def _patches(genotype: Genotype, mode: Mode) -> Genotype | None:
    """Cutting a map into patches only moves its entries; as released, the zeros that fill up the last patches count as well."""
    cut = LOCAL if mode == "corrected" else frozenset({"local_s1"})
    by_entry = _BY_ENTRY if mode == "corrected" else _BY_ENTRY | {"kl"}
    if genotype.t2 in cut and genotype.t3 in _OVER_ROWS and genotype.distance in by_entry | {"cor"}:
        return replace(genotype, t2="no")
    if genotype.distance == "kl" and genotype.t3 in ("softmax_N", "norm_N") and genotype.t2 in cut and mode == "corrected":
        return replace(genotype, t2="no")
    if genotype.distance in ("cos", "pear"):
        if genotype.t2 == "local_s1" and genotype.t3 == "no":
            return replace(genotype, t2="no", t3="batch")
        # zeros change a mean and so a correlation, but no cosine
        if genotype.t3 == "batch" and genotype.t2 in (LOCAL if genotype.distance == "cos" else cut):
            return replace(genotype, t2="no")
    return None


def _divergences(genotype: Genotype, mode: Mode) -> Genotype | None:
    """A divergence is one between softmaxes, whether the chain ends in them, in their logarithm or in the axis alone."""
    if (genotype.distance, mode) != ("kl", "corrected"):
        return None
    if genotype.t3 in ("no", "logsoftmax_C"):
        return replace(genotype, t3="softmax_C")
    if genotype.t3 in ("channel", "logsoftmax_HW"):
        return replace(genotype, t3="softmax_HW")
    if genotype.t3 == "logsoftmax_N":
        return replace(genotype, t3="softmax_N")
    if genotype.t2 in LOCAL and (genotype.t3 == "batch" or (genotype.t2, genotype.t3) == ("local_s1", "softmax_C")):
        return replace(genotype, t2="no", t3="batch")
    return None
