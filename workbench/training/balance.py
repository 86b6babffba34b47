"""What each term sends into the student: gradient norms, cosines with the detection loss, and weights set from them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from workbench.methods.method import Method
from workbench.training.step import Terms


def term_gradients(
    terms: Terms, detection_weights: Mapping[str, float], parameters: Sequence[nn.Parameter]
) -> dict[str, tuple[float, float]]:
    """Norm of each unweighted distillation term's gradient, and its cosine with the detection loss's, over the student's parameters.

    Args:
        terms: with their graphs, which are kept.
        detection_weights: of the detection terms.
        parameters: the student's; adapters do not count.

    Returns:
        (norm, cosine) by term; ``detection`` has its own norm and cosine 1.
    """
    detection = torch.stack([detection_weights[name] * value for name, value in terms.detection.items()]).sum()
    reference = _flat(detection, parameters)
    norm = float(reference.norm())
    result = {"detection": (norm, 1.0)}
    for name, value in terms.distillation.items():
        gradient = _flat(value, parameters) if value.requires_grad else torch.zeros_like(reference)
        size = float(gradient.norm())
        result[name] = (size, float(reference @ gradient) / (norm * size) if norm * size > 0 else 0.0)
    return result


def mean_norms(measured: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, float]:
    """Mean gradient norm of each term over the batches that had it; one without eligible targets says nothing of a term's size.

    Args:
        measured: what ``term_gradients`` found, batch by batch.
    """
    shares: dict[str, list[float]] = {}
    for batch in measured:
        for name, (norm, _) in batch.items():
            shares.setdefault(name, []).append(norm / len(measured))
    return {name: sum(values) * (len(measured) / len(values)) for name, values in shares.items()}


def balanced_weights(methods: Sequence[Method], norms: Mapping[str, float]) -> dict[str, float]:
    """Weight of each term: ``weight * share * |detection| / |term|`` where the method is balanced, else its published weight.

    Args:
        methods: with their configurations.
        norms: gradient norm of ``detection`` and of each term, unweighted.
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
    """Share of the detection loss's gradient norm that the term is to start with, None where weights are taken as they are."""
    balance = method.config.balance
    return balance.get(term) if isinstance(balance, dict) else balance


def is_wanted(method: Method, term: str) -> bool:
    """Whether the configuration gives the term any weight."""
    share = share_of(method, term)
    return (method.weight_of(term) if share is None else method.config.weight * share) > 0


def _flat(value: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    gradients = torch.autograd.grad(value, list(parameters), retain_graph=True, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten().float() for g, p in zip(gradients, parameters, strict=True)])
