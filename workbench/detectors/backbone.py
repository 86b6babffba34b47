"""Backbones for detectors trained from scratch, and the normalisation that lets them be saved as plain transformers folders."""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from transformers import ResNetConfig

Norm = Literal["batch", "frozen"]

_PRESETS: dict[str, dict[str, object]] = {
    "resnet18": {"widths": (64, 128, 256, 512), "depths": (2, 2, 2, 2), "block": "basic"},
    "resnet34": {"widths": (64, 128, 256, 512), "depths": (3, 4, 6, 3), "block": "basic"},
    "resnet50": {"widths": (256, 512, 1024, 2048), "depths": (3, 4, 6, 3), "block": "bottleneck"},
    "resnet101": {"widths": (256, 512, 1024, 2048), "depths": (3, 4, 23, 3), "block": "bottleneck"},
}


class BackboneConfig(BaseModel):
    """A ResNet. ``name`` fills the other fields with a published one; without it they describe a small one.

    Attributes:
        name: resnet18, resnet34, resnet50 or resnet101.
        stem: channels after the stem (stride 4).
        widths: channels of each stage (strides 4, 8, 16, 32).
        depths: blocks of each stage.
        block: basic or bottleneck.
        levels: 1-based stages whose features go on to the neck, ascending.
        norm: batch: trainable BatchNorm, everything unfrozen (training from scratch); frozen: as in the published recipes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101"] | None = None
    stem: int = Field(64, gt=0)
    widths: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    block: Literal["basic", "bottleneck"] = "basic"
    levels: tuple[int, ...] = (2, 3, 4)
    norm: Norm = "batch"

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("name") in _PRESETS:
            preset: dict[str, object] = {"stem": 64, **_PRESETS[values["name"]]}
            given = {key: tuple(v) if isinstance(v := values[key], list) else v for key in preset if key in values}
            if changed := [key for key, value in given.items() if value != preset[key]]:
                raise ValueError(f"backbone '{values['name']}' fixes {', '.join(changed)}: leave them out")
            return {**preset, **values}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> "BackboneConfig":
        if not self.widths or len(self.widths) != len(self.depths):
            raise ValueError("backbone needs a name, or widths and depths of the same length")
        ascending = bool(self.levels) and list(self.levels) == sorted(set(self.levels))
        if not ascending or not 1 <= self.levels[0] <= self.levels[-1] <= len(self.widths):
            raise ValueError(f"backbone levels {list(self.levels)} must be ascending stages between 1 and {len(self.widths)}")
        return self

    @property
    def strides(self) -> tuple[int, ...]:
        """Input pixels per cell of each level."""
        return tuple(2 ** (level + 1) for level in self.levels)

    def transformers_config(self) -> ResNetConfig:
        """The same backbone in transformers' words; stages behind the last level are not built."""
        last = self.levels[-1]
        config = ResNetConfig(
            embedding_size=self.stem, hidden_sizes=list(self.widths[:last]), depths=list(self.depths[:last]), layer_type=self.block
        )
        config.out_features = [f"stage{level}" for level in self.levels]
        return config


def make_trainable(backbone: nn.Module) -> None:
    """Replaces transformers' frozen BatchNorm by ``nn.BatchNorm2d`` with the same values and unfreezes everything.

    The stored names stay those of the frozen layer (weight, bias, running_mean, running_var, epsilon 1e-5), so in eval mode the
    saved model equals the one that plain transformers builds with frozen layers.
    """
    for module in list(backbone.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("FrozenBatchNorm2d"):
                setattr(module, name, _trainable_norm(child))
    for parameter in backbone.parameters():
        parameter.requires_grad_(True)


def _trainable_norm(frozen: nn.Module) -> nn.BatchNorm2d:
    values: dict[str, Tensor] = dict(frozen.named_buffers())
    norm = nn.BatchNorm2d(values["weight"].numel(), eps=1e-5)
    with torch.no_grad():
        norm.weight.copy_(values["weight"])
        norm.bias.copy_(values["bias"])
        norm.running_mean = values["running_mean"].clone()
        norm.running_var = values["running_var"].clone()
    return norm
