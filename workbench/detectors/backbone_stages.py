"""Cuts a backbone after the last level that is used, and fixes the weights of its first stages."""

from typing import Any

from torch import nn

from workbench.errors import ConfigError


def cut_unused_stages(model: Any) -> tuple[str, ...]:
    """Removes the stages behind the last level that goes on to the neck, and returns the names of their tensors.

    timm's EfficientNets and MobileNets build and compute all stages whatever levels are asked for; its other backbones leave the unused
    ones out themselves.

    Args:
        model: the bare backbone. Call this once it has its random weights, so that those of the used stages do not depend on the cut.
    """
    used, blocks = getattr(model, "_stage_out_idx", None), getattr(model, "blocks", None)
    if used is None or not isinstance(blocks, nn.Sequential) or model.feature_hooks is not None:
        return ()
    last = max(used)
    model.blocks = blocks[:last].train(blocks.training)
    return tuple(f"blocks.{name}" for name in blocks.state_dict() if int(name.partition(".")[0]) >= last)


def freeze_early_stages(model: nn.Module) -> None:
    """Switches gradients off in a ResNet's stem and first stage and on in all others, as in DETR's published recipe.

    transformers intends the same, but in 5.x it freezes every stage of its own ResNet: it looks for ``stage.1`` in names that read
    ``stages.1``. Backbones of other kinds are left unchanged.
    """
    names = [name for name, _ in model.named_parameters()]
    if not any(name.startswith(("encoder.stages.", "layer1.")) for name in names):
        return
    later = ("encoder.stages.1.", "encoder.stages.2.", "encoder.stages.3.", "layer2.", "layer3.", "layer4.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(later))


def freeze_stages(model: nn.Module, count: int) -> None:
    """Switches gradients off in the first stages and on in all others, except for BatchNorm layers, which are left as they are.

    Args:
        model: the bare backbone.
        count: number of stages, of which the stem is the first; 0 freezes none.

    Raises:
        ConfigError: the stages of this backbone are not known.
    """
    modules = [name for name, _ in model.named_modules()]
    end = _end_of(model, modules, count - 1) if count else 0
    for index, (_, module) in enumerate(model.named_modules()):
        if not isinstance(module, nn.BatchNorm2d):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(index >= end)


def _end_of(model: Any, modules: list[str], stage: int) -> int:
    """Returns how many modules, in the order in which they are registered, lie before the end of a stage; stage 0 is the stem."""
    if hasattr(getattr(model, "encoder", None), "stages"):
        return _begin(modules, "encoder.") if stage == 0 else _after(modules, f"encoder.stages.{stage - 1}")
    info = getattr(model, "feature_info", None)
    # the deepest module of each stride, because some models have several
    at = {entry["reduction"]: _registered(entry["module"], modules) for entry in info.info} if info is not None else {}
    if stage == 0 and 2 not in at and (first := at.get(4)):
        return _begin(modules, first)
    name = at.get(2 ** (stage + 1))
    if name is None:
        raise ConfigError(
            f"backbone.freeze {stage + 1}: the stages of this backbone ({type(model).__name__}) are not known. Leave 'freeze' out, or "
            "choose a ResNet, a timm model with maps of strides 4 to 32, or a transformers backbone with encoder.stages."
        )
    return _after(modules, name)


def _registered(module: str, modules: list[str]) -> str | None:
    """Returns the name that timm's feature extractors have given a module of the original model."""
    names = (module, module.replace(".", "_"), f"model.{module}", f"body.{module}")
    return next((name for name in names if name in modules), None)


def _begin(modules: list[str], name: str) -> int:
    return next(index for index, other in enumerate(modules) if other.startswith(name))


def _after(modules: list[str], name: str) -> int:
    return max(index for index, other in enumerate(modules) if other == name or other.startswith(f"{name}.")) + 1
