"""The gradient each term sends into the student: norms, cosines with the detection loss, and weights set from them."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from workbench.detectors.whole_batch import over_processes
from workbench.methods.method import Method
from workbench.training.processes import gathered
from workbench.training.step import Terms


def term_gradients(
    terms: Terms, detection_weights: Mapping[str, float], parameters: Sequence[nn.Parameter], known: float | None = None
) -> dict[str, tuple[float, float]]:
    """Returns each unweighted distillation term's gradient norm and its cosine with the gradient of the detection loss.

    The gradients are those of the whole batch of all processes, which must call this together.

    Args:
        terms: terms with their graphs, which are kept.
        detection_weights: weights of the detection terms.
        parameters: parameters of the student; those of adapters are left out.
        known: norm of the gradient of the detection loss if it was measured before; that gradient is then not computed.

    Returns:
        (norm, cosine) by term; ``detection`` has its own norm and cosine 1. Cosines are NaN if ``known`` is given.
    """
    reference = None
    if known is None:
        reference = _flat(torch.stack([detection_weights[name] * value for name, value in terms.detection.items()]).sum(), parameters)
    norm = float(reference.norm()) if reference is not None else known
    assert norm is not None
    result = {"detection": (norm, 1.0)}
    # a process leaves out a term for which its images have no target
    for name in dict.fromkeys(name for names in gathered([list(terms.distillation)]) for name in names):
        gradient = _flat(terms.distillation.get(name), parameters)
        size = float(gradient.norm())
        if reference is None:
            result[name] = (size, math.nan)
        else:
            result[name] = (size, float(reference @ gradient) / (norm * size) if norm * size > 0 else 0.0)
    return result


def mean_norms(measured: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, float]:
    """Returns each term's mean gradient norm over the batches that had it; a batch without eligible targets does not lower the mean.

    Args:
        measured: results of ``term_gradients``, one per batch.
    """
    shares: dict[str, list[float]] = {}
    for batch in measured:
        for name, (norm, _) in batch.items():
            shares.setdefault(name, []).append(norm / len(measured))
    return {name: sum(values) * (len(measured) / len(values)) for name, values in shares.items()}


def balanced_weights(methods: Sequence[Method], norms: Mapping[str, float]) -> dict[str, float]:
    """Returns the weight of each term: ``weight * share * |detection| / |term|`` if the method is balanced, else its published weight.

    Args:
        methods: the methods with their configurations.
        norms: gradient norm of ``detection`` and of each unweighted term.
    """
    weights: dict[str, float] = {}
    for method in methods:
        for term in method.term_names:
            name = f"{method.name}.{term}"
            share = share_of(method, term)
            if share is None:
                weights[name] = method.weight_of(term)
            else:
                norm = norms.get(name, 0.0)
                weights[name] = method.config.weight * share * norms["detection"] / norm if norm > 0 else 0.0
    return weights


def share_of(method: Method, term: str) -> float | None:
    """Returns the term's initial share of the detection loss's gradient norm; None if the method's weights are used unscaled."""
    balance = method.config.balance
    return balance.get(term) if isinstance(balance, dict) else balance


def is_wanted(method: Method, term: str) -> bool:
    """True if the configuration gives the term a weight above zero."""
    share = share_of(method, term)
    return (method.weight_of(term) if share is None else method.config.weight * share) > 0


def _flat(value: Tensor | None, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Returns the gradient of a term in all processes; that of a process that has no such term is 0."""
    gradients: Sequence[Tensor | None] = [None] * len(parameters)
    if value is not None and value.requires_grad:
        gradients = torch.autograd.grad(value, list(parameters), retain_graph=True, allow_unused=True)
    own = torch.cat([(torch.zeros_like(p) if g is None else g).flatten().float() for g, p in zip(gradients, parameters, strict=True)])
    return over_processes(own)
