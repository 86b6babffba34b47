"""ImageNet weights for a backbone: a local file in transformers', timm's or torchvision's names, or the library's own from the hub."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from workbench.detectors.backbone import BackboneConfig, bare_backbone
from workbench.detectors.weights import read_tensors
from workbench.errors import CheckpointError, ConfigError

_HUB = {f"resnet{depth}": f"microsoft/resnet-{depth}" for depth in (18, 34, 50, 101)}
_HEADS = ("fc.", "classifier.", "head.", "conv_head.", "bn2.")


def load_backbone_weights(backbone: nn.Module, config: BackboneConfig) -> None:
    """Loads what ``config.weights`` names into a backbone that was just built; None leaves it as it is.

    Args:
        backbone: transformers' ``...ConvEncoder`` or our ``Backbone``: its ``model`` holds the weights.
        config: names the weights.

    Raises:
        ConfigError: ``imagenet`` for a backbone that has none under a known name.
        CheckpointError: missing, or keys that do not fit, each named.
    """
    if config.weights is None:
        return
    model = bare_backbone(backbone)
    state = _published(config) if config.weights == "imagenet" else read_tensors(Path(config.weights))
    own = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    given = _renamed(state, own)
    problems = [f"missing: {name}" for name in own if name not in given]
    problems += [f"unexpected: {name}" for name in given if name not in own]
    problems += [f"shape: {name} is {list(given[name].shape)} in the weights, {list(value.shape)} in the model"
                 for name, value in own.items() if name in given and given[name].shape != value.shape]  # fmt: skip
    if problems:
        raise CheckpointError(f"backbone weights '{config.weights}' do not fit; nothing was loaded:\n  " + "\n  ".join(problems[:40]))
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(given[name])


def _published(config: BackboneConfig) -> dict[str, Tensor]:
    """State of the library's own ImageNet model.

    Raises:
        ConfigError: nothing is published under this name.
        CheckpointError: not in the cache, and no network.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from transformers import AutoBackbone

    try:
        if config.library == "timm":
            import timm

            built = config.transformers_config()
            return timm.create_model(built.backbone, pretrained=True, features_only=True, out_indices=built.out_indices).state_dict()
        if config.name in _HUB:
            features = [f"stage{level}" for level in config.levels]
            return AutoBackbone.from_pretrained(_HUB[config.name], out_features=features).state_dict()
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"ImageNet weights of '{config.name}' are not in the cache and cannot be fetched ({type(error).__name__}). Give a safetensors "
            "file: backbone.weights: PATH, or train from random weights: backbone.weights: null."
        ) from error
    raise ConfigError(
        f"backbone '{config.name}' has no published ImageNet weights that are known here; give a safetensors file as "
        f"backbone.weights. Known: {', '.join([*_HUB, 'mobilenet_v2', 'timm/<model>'])}."
    )


def _renamed(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` in the names of the model: a common prefix dropped, torchvision's ResNet names translated, heads and counters left out.

    Stages that the model does not build are left out too.
    """
    kept = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    for prefix in ("backbone.", "resnet.", "model.", "_backbone."):
        if kept and all(name.startswith(prefix) or name.startswith(_HEADS) for name in kept):
            kept = {name.removeprefix(prefix): value for name, value in kept.items()}
    if any(name.startswith("embedder.") for name in own) and "conv1.weight" in kept:
        kept = {resnet_name(name): value for name, value in kept.items()}
    stages = {match[1] for name in own if (match := re.match(r"(encoder\.stages\.\d+|layer\d+|blocks\.\d+)\.", name))}
    return {
        name: value
        for name, value in kept.items()
        if name in own
        or not (name.startswith(_HEADS) or ((m := re.match(r"(encoder\.stages\.\d+|layer\d+|blocks\.\d+)\.", name)) and m[1] not in stages))
    }


def resnet_name(name: str) -> str:
    """A ResNet name of torchvision and timm in transformers' words: layer2.0.conv1.* becomes encoder.stages.1.layers.0.layer.0.*."""
    if name.startswith("conv1."):
        return name.replace("conv1.", "embedder.embedder.convolution.")
    if name.startswith("bn1."):
        return name.replace("bn1.", "embedder.embedder.normalization.")
    found = re.match(r"layer(\d)\.(\d+)\.(conv(\d)|bn(\d)|downsample\.(\d))\.(.*)", name)
    if found is None:
        return name
    block = f"encoder.stages.{int(found[1]) - 1}.layers.{found[2]}"
    if found[6] is not None:
        return f"{block}.shortcut.{'convolution' if found[6] == '0' else 'normalization'}.{found[7]}"
    part = "convolution" if found[4] else "normalization"
    return f"{block}.layer.{int(found[4] or found[5]) - 1}.{part}.{found[7]}"
