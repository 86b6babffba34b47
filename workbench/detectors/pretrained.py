"""Loads ImageNet weights for a backbone.

They come from a local file in the names of transformers, timm or torchvision, from a package of the extra ``pretrained``, or from the
library's own published weights.
"""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from workbench.detectors.backbone import BackboneConfig, bare_backbone
from workbench.detectors.packaged_weights import MEAN, STD, has_package, packaged_weights
from workbench.detectors.weights import read_tensors
from workbench.errors import CheckpointError, ConfigError
from workbench.files import hash_file

_HUB = {f"resnet{depth}": f"microsoft/resnet-{depth}" for depth in (18, 34, 50, 101)}
_HEADS = ("fc.", "classifier.", "head.", "conv_head.", "bn2.")


def load_backbone_weights(backbone: nn.Module, config: BackboneConfig) -> None:
    """Loads the weights that ``config.weights`` names into a newly built backbone. None leaves the backbone as it is.

    Args:
        backbone: transformers' ``...ConvEncoder`` or our ``Backbone``, whose ``model`` holds the weights.
        config: the configuration that names the weights.

    Raises:
        ConfigError: ``imagenet`` is set, but no ImageNet weights are known for this backbone.
        MissingExtraError: the weights lie in a package that is not installed.
        CheckpointError: the weights are missing, or keys do not fit; the message names each of them.
    """
    if config.weights is None:
        return
    model = bare_backbone(backbone)
    if config.weights != "imagenet":
        state = read_tensors(Path(config.weights))
    elif has_package(config.name):
        state = read_tensors(packaged_weights(str(config.name)).path)
    else:
        state = _published(config)
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


def origin_of_weights(config: BackboneConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> list[str]:
    """Returns sentences on the weights that a backbone starts from, and on an input that they were not trained on; empty without weights.

    Args:
        config: the configuration that names the weights.
        mean: mean that is subtracted from pixels in 0..1.
        std: standard deviation that they are divided by.
    """
    if config.weights is None:
        return []
    if config.weights != "imagenet":
        return [f"backbone weights: {config.weights}, SHA-256 {hash_file(Path(config.weights))}"]
    if not has_package(config.name):
        return [f"backbone weights: ImageNet, as published for {config.name}"]
    found = packaged_weights(str(config.name))
    notes = [f"backbone weights: ImageNet, {config.name} from {found.package} {found.version}, SHA-256 {found.sha256}"]
    if (tuple(mean), tuple(std)) != (MEAN, STD):
        notes.append(
            f"these backbone weights were trained on images with mean {list(MEAN)} and standard deviation {list(STD)}, but the recipe has "
            f"{list(mean)} and {list(std)}. Set data: {{transform: {{mean: {list(MEAN)}, std: {list(STD)}}}}}"
        )
    return notes


def _published(config: BackboneConfig) -> dict[str, Tensor]:
    """Returns the state dict of the library's own ImageNet model.

    Raises:
        ConfigError: no weights are published under this name.
        CheckpointError: the weights are not in the cache and cannot be fetched.
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
            f"ImageNet weights of '{config.name}' are not in the cache and cannot be fetched ({type(error).__name__}). Set "
            "'backbone.weights: PATH' to use a safetensors file, or 'backbone.weights: null' to start from random weights."
        ) from error
    raise ConfigError(
        f"backbone '{config.name}' has no published ImageNet weights that the workbench knows. Name a safetensors file in "
        f"backbone.weights. ImageNet weights are known for {', '.join([*_HUB, 'mobilenet_v2', 'timm/<model>'])}."
    )


def _renamed(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns ``state`` in the names of the model.

    A common prefix is dropped and torchvision's ResNet names are translated. Heads, counters and stages that the model does not build are
    left out.
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
    """Translates a ResNet name of torchvision or timm to transformers': layer2.0.conv1.* becomes encoder.stages.1.layers.0.layer.0.*."""
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
