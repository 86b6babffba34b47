"""Builds backbones by name, as the libraries know them or as a small ResNet."""

import difflib
import functools
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_FOR_BACKBONE_MAPPING, AutoBackbone, ResNetConfig, TimmBackboneConfig

from workbench.detectors.backbone_norms import freeze_norms
from workbench.detectors.backbone_stages import cut_unused_stages, freeze_early_stages, freeze_stages
from workbench.errors import ConfigError

Norm = Literal["batch", "frozen"]

_PRESETS: dict[str, dict[str, object]] = {
    "resnet18": {"widths": (64, 128, 256, 512), "depths": (2, 2, 2, 2), "block": "basic"},
    "resnet34": {"widths": (64, 128, 256, 512), "depths": (3, 4, 6, 3), "block": "basic"},
    "resnet50": {"widths": (256, 512, 1024, 2048), "depths": (3, 4, 6, 3), "block": "bottleneck"},
    "resnet101": {"widths": (256, 512, 1024, 2048), "depths": (3, 4, 23, 3), "block": "bottleneck"},
}


_TIMM_NAMES = {"mobilenet_v2": "mobilenetv2_100"}


class BackboneConfig(BaseModel):
    """Describes a backbone by its name, or a small ResNet by its widths and depths."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str | None = None
    """resnet18, resnet34, resnet50, resnet101, mobilenet_v2, ``timm/<model>``, or ``transformers/<model type>`` for any other backbone of
    these libraries. Null builds the ResNet that ``stem``, ``widths``, ``depths`` and ``block`` describe.
    """
    stem: int = Field(64, gt=0)
    """Channels after the stem of a described ResNet, at stride 4."""
    widths: tuple[int, ...] = ()
    """Channels of each stage of a described ResNet, at strides 4, 8, 16 and 32."""
    depths: tuple[int, ...] = ()
    """Number of blocks in each stage of a described ResNet."""
    block: Literal["basic", "bottleneck"] = "basic"
    """Kind of residual block of a described ResNet. ``basic`` has two convolutions, ``bottleneck`` has three."""
    options: dict[str, Any] = {}
    """Fields of the transformers configuration; only ``transformers/<model type>`` takes them."""
    levels: tuple[int, ...] = (2, 3, 4)
    """Stages whose features go on to the neck, counted from 1 and ascending. Stage k has stride 2^(k+1)."""
    norm: Norm = "batch"
    """How BatchNorm is treated in every stage. ``batch`` trains it, as training from scratch needs; ``frozen`` fixes it, as the published
    recipes do.
    """
    freeze: int | None = Field(None, ge=0)
    """Number of stages whose weights are fixed, except BatchNorm, which ``norm`` decides. The stem is the first stage, so 2 fixes the stem
    and the stage of stride 4. Null fixes the stem and the first stage of a ResNet with ``norm: frozen``, and nothing of other backbones.
    """
    weights: str | None = None
    """Pretrained ImageNet weights. ``imagenet`` takes those of ``timm/tf_efficientnet_lite0``, ``lite1`` and ``lite2`` from packages of the
    extra ``pretrained``, and fetches the library's own of all others over the network or from its cache. Anything else is the path of a
    safetensors file. Null starts from random weights.
    """

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(values.get("name"), str) and values["name"] in _PRESETS:
            preset: dict[str, object] = {"stem": 64, **_PRESETS[values["name"]]}
            given = {key: tuple(v) if isinstance(v := values[key], list) else v for key in preset if key in values}
            if changed := [key for key, value in given.items() if value != preset[key]]:
                raise ValueError(f"backbone '{values['name']}' fixes {', '.join(changed)}: leave them out")
            return {**preset, **values}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> "BackboneConfig":
        if self.library is None:
            if self.name is not None and self.name not in _PRESETS:
                raise ValueError(
                    f"unknown backbone '{self.name}': {', '.join([*_PRESETS, *_TIMM_NAMES])}, timm/<model> or transformers/<model type>"
                )
            if not self.widths or len(self.widths) != len(self.depths):
                raise ValueError("backbone needs a name, or widths and depths of the same length")
            if empty := [stage for stage, parts in enumerate(zip(self.widths, self.depths, strict=True), 1) if min(parts) < 1]:
                raise ValueError(f"backbone stage {', '.join(map(str, empty))} has no channels or no blocks: widths and depths start at 1")
        elif self.widths or self.depths:
            raise ValueError(f"backbone '{self.name}' fixes widths and depths: leave them out")
        if self.options and self.library != "transformers":
            raise ValueError("options go with transformers/<model type> only")
        most = len(self.widths) or 4
        ascending = bool(self.levels) and list(self.levels) == sorted(set(self.levels))
        if not ascending or not 1 <= self.levels[0] <= self.levels[-1] <= most:
            raise ValueError(f"backbone levels {list(self.levels)} must be ascending stages between 1 and {most}")
        if self.freeze is not None and self.freeze > self.levels[-1] + 1:
            raise ValueError(
                f"backbone freeze {self.freeze} is more than the {self.levels[-1] + 1} stages up to the last level, stem included"
            )
        return self

    @property
    def library(self) -> Literal["timm", "transformers"] | None:
        """Returns the library that provides the backbone; None for a ResNet described by this configuration."""
        if self.name in _TIMM_NAMES or (self.name or "").startswith("timm/"):
            return "timm"
        return "transformers" if (self.name or "").startswith("transformers/") else None

    @property
    def strides(self) -> tuple[int, ...]:
        """Returns the stride of each level: input pixels per cell."""
        return tuple(2 ** (level + 1) for level in self.levels)

    def transformers_config(self) -> Any:
        """Returns the transformers configuration of this backbone. It omits the stages after the last level of a ResNet.

        Raises:
            ConfigError: the library has no such backbone, or the backbone has no level of a wanted stride.
        """
        short = (self.name or "").partition("/")[2]
        if self.library == "timm":
            model = _TIMM_NAMES.get(self.name or "", short)
            return TimmBackboneConfig(backbone=model, out_indices=_timm_indices(model, self.strides))  # pyright: ignore[reportCallIssue]
        if self.library == "transformers":
            return _by_model_type(short, self.options, self.levels)
        last = self.levels[-1]
        config = ResNetConfig(
            embedding_size=self.stem, hidden_sizes=list(self.widths[:last]), depths=list(self.depths[:last]), layer_type=self.block
        )
        config.out_features = [f"stage{level}" for level in self.levels]
        return config


@functools.cache
def _timm_indices(model: str, strides: tuple[int, ...]) -> list[int]:
    import timm

    try:
        with torch.device("meta"):
            found = list(timm.create_model(model, features_only=True, pretrained=False).feature_info.reduction())  # pyright: ignore
    except (RuntimeError, AttributeError, TypeError) as error:
        near = ", ".join(difflib.get_close_matches(model, timm.list_models(), n=5))
        raise ConfigError(f"timm has no backbone '{model}' with feature maps ({error}). Similar names: {near or 'none'}.") from error
    if missing := [stride for stride in strides if stride not in found]:
        raise ConfigError(f"timm's '{model}' has feature maps of strides {found}, but not {missing}. Choose other levels.")
    # the deepest map of each stride, because some models have several
    return [len(found) - 1 - found[::-1].index(stride) for stride in strides]


def _by_model_type(model_type: str, options: dict[str, Any], levels: tuple[int, ...]) -> Any:
    known = sorted(kind.model_type for kind in MODEL_FOR_BACKBONE_MAPPING if kind.model_type != "timm_backbone")
    if model_type not in known:
        raise ConfigError(f"transformers has no backbone '{model_type}'. It has {', '.join(known)}.")
    try:
        config = CONFIG_MAPPING[model_type](**options)
        # some models of transformers add lists to these values and fail on the tuples of their own defaults
        for key, value in list(vars(config).items()):
            if isinstance(value, tuple):
                setattr(config, key, list(value))
        config.out_features = [f"stage{level}" for level in levels]
    except Exception as error:  # transformers' validation may raise anything, and the user can only fix the recipe
        raise ConfigError(f"backbone 'transformers/{model_type}': {' '.join(str(error).split())[:300]}") from error
    return config


class Backbone(nn.Module):
    """Any backbone as a list of feature maps, for the families that transformers has no model for.

    Attributes:
        channels: Number of channels of each level.
        strides: Stride of each level.
        cut: Names of the tensors of stages that the library built, but no level needs.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        model: Any = AutoBackbone.from_config(config.transformers_config())
        self.channels: tuple[int, ...] = tuple(model.channels)
        self.strides = config.strides
        # named as in transformers' own detectors, so that weights carry the library's names
        self.model = getattr(model, "_backbone", model)
        self.cut = cut_unused_stages(self.model)
        if config.norm == "frozen":
            freeze_norms(self.model)
            freeze_early_stages(self.model)
        if config.freeze is not None:
            freeze_stages(self.model, config.freeze)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps ``[B, 3, H, W]`` to one ``[B, C, h, w]`` per level."""
        maps = self.model(images)
        return list(maps) if isinstance(maps, list) else list(maps.feature_maps)


def bare_backbone(conv_encoder: Any) -> nn.Module:
    """Returns the backbone inside a conv encoder, without the wrapper that some families put around timm's backbones."""
    model = getattr(conv_encoder, "model", conv_encoder)
    return getattr(model, "_backbone", model)
