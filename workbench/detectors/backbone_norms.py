"""Freezes the BatchNorm layers of a backbone, makes frozen ones trainable, and gives timm's their activations back."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

EPS = 1e-5  # of every frozen BatchNorm of transformers
_VALUES = ("weight", "bias", "running_mean", "running_var")


class FrozenNormAct(FrozenBatchNorm2d):
    """A frozen BatchNorm that applies an activation, as timm's norm layers do."""

    def __init__(self, size: int, eps: float, drop: nn.Module, act: nn.Module):
        super().__init__(size, eps=eps)
        self.drop, self.act = drop, act

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, C, H, W]`` to the same shape."""
        return self.act(self.drop(super().forward(x)))


class NormAct(nn.BatchNorm2d):
    """A BatchNorm that applies an activation, as timm's norm layers do."""

    def __init__(self, size: int, eps: float, drop: nn.Module, act: nn.Module):
        super().__init__(size, eps=eps)
        self.drop, self.act = drop, act

    def forward(self, input: Tensor) -> Tensor:
        """Maps ``[B, C, H, W]`` to the same shape."""
        return self.act(self.drop(super().forward(input)))


def freeze_norms(model: nn.Module) -> None:
    """Replaces every BatchNorm by a frozen layer with the same values, epsilon and activation."""
    for module, name, child in _children(model):
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, _frozen_norm(child, child))


def restore_norms(model: nn.Module, config: Any) -> bool:
    """Gives frozen BatchNorm layers that transformers has put into a timm backbone the epsilon and the activation of timm's own.

    In timm's EfficientNets and many other models, a norm layer also applies the activation that follows it. transformers replaces such a
    layer by a frozen BatchNorm alone, and so builds a backbone without activations.

    Args:
        model: timm's backbone inside a transformers detector, which is changed.
        config: the transformers configuration of the backbone.

    Returns:
        True if a layer was replaced, so that the model is another one than plain transformers builds.
    """
    if getattr(config, "model_type", None) != "timm_backbone":
        return False
    import timm

    # the layers of the original are only looked at; it has no values and draws none
    with torch.random.fork_rng([]), torch.device("meta"):
        original: Any = timm.create_model(
            config.backbone, features_only=True, out_indices=config.out_indices, output_stride=config.output_stride
        )
    restored = False
    for name, norm in original.named_modules():
        if not isinstance(norm, nn.BatchNorm2d) or not _differs(norm):
            continue
        replaced = model.get_submodule(name)
        if not isinstance(replaced, nn.BatchNorm2d):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, _frozen_norm(norm, replaced))
            restored = True
    return restored


def has_exact_norms(model: nn.Module) -> bool:
    """True if a frozen BatchNorm of the model applies an activation, or has another epsilon than transformers' frozen BatchNorm."""
    return any(isinstance(module, FrozenBatchNorm2d) and _differs(module) for module in model.modules())


def simplify_norms(model: nn.Module) -> None:
    """Takes activation and epsilon from frozen BatchNorm layers, as in detectors that were saved before these were kept."""
    for module, name, child in _children(model):
        if isinstance(child, FrozenBatchNorm2d) and _differs(child):
            setattr(module, name, _with_values(FrozenBatchNorm2d(len(child.state_dict()["weight"]), eps=EPS), child))


def make_trainable(backbone: nn.Module) -> None:
    """Replaces frozen BatchNorm by a trainable one with the same values, epsilon and activation, and unfreezes everything.

    The stored names stay those of the frozen layer (weight, bias, running_mean, running_var). In eval mode the saved model therefore
    equals the one with frozen layers.
    """
    for module, name, child in _children(backbone):
        if type(child).__name__.endswith("FrozenBatchNorm2d") or isinstance(child, FrozenNormAct):
            setattr(module, name, _trainable_norm(child))
    for parameter in backbone.parameters():
        parameter.requires_grad_(True)


def _children(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    return [(module, name, child) for module in list(model.modules()) for name, child in list(module.named_children())]


def _differs(norm: Any) -> bool:
    return hasattr(norm, "act") or norm.eps != EPS


def _frozen_norm(kind: Any, values: nn.Module) -> nn.Module:
    """Returns a frozen layer of the kind of one norm with the values of another."""
    if not hasattr(kind, "act"):
        return _with_values(FrozenBatchNorm2d(kind.num_features, eps=kind.eps), values)
    return _with_values(FrozenNormAct(kind.num_features, kind.eps, copy.deepcopy(kind.drop), copy.deepcopy(kind.act)), values)


def _with_values(frozen: nn.Module, values: nn.Module) -> nn.Module:
    state = values.state_dict()
    for key in _VALUES:
        setattr(frozen, key, state[key].clone())
    return frozen


def _trainable_norm(frozen: Any) -> nn.BatchNorm2d:
    values: dict[str, Tensor] = dict(frozen.named_buffers())
    size = values["weight"].numel()
    # transformers' frozen layers hold their epsilon, which is always the same, inside their forward
    eps = getattr(frozen, "eps", EPS)
    norm: Any = NormAct(size, eps, frozen.drop, frozen.act) if isinstance(frozen, FrozenNormAct) else nn.BatchNorm2d(size, eps=eps)
    # the counter is not used here, and the frozen layer has no such key
    norm.num_batches_tracked = None
    with torch.no_grad():
        norm.weight.copy_(values["weight"])
        norm.bias.copy_(values["bias"])
        norm.running_mean = values["running_mean"].clone()
        norm.running_var = values["running_var"].clone()
    return norm
