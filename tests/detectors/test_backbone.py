"""Backbones by name: levels, norms and ImageNet weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from tests.examples import SMALL, SPEC
from workbench.detectors.backbone import Backbone, BackboneConfig
from workbench.detectors.backbone_norms import make_trainable
from workbench.detectors.deformable_detr import DeformableDetr, DeformableDetrModelConfig
from workbench.detectors.pretrained import load_backbone_weights
from workbench.errors import CheckpointError, ConfigError

SIZE = 64


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", (128, 256, 512)),
        ("resnet50", (512, 1024, 2048)),
        ("mobilenet_v2", (32, 96, 320)),
        ("timm/resnet18", (128, 256, 512)),
        ("timm/convnext_atto", (80, 160, 320)),
        ("transformers/convnext", (192, 384, 768)),
    ],
)
def test_a_backbone_by_name_gives_a_map_of_each_stride(name: str, channels: tuple[int, ...]):
    backbone = Backbone(BackboneConfig(name=name)).eval()
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, SIZE, SIZE))
    assert backbone.channels == channels and backbone.strides == (8, 16, 32)
    assert [tuple(m.shape[1:]) for m in maps] == [(c, SIZE // s, SIZE // s) for c, s in zip(channels, backbone.strides, strict=True)]


def test_options_make_a_small_backbone_of_another_library():
    config = BackboneConfig.model_validate(
        {"name": "transformers/convnext", "options": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}, "levels": [1, 4]}
    )
    backbone = Backbone(config)
    assert backbone.channels == (8, 32)
    assert [tuple(m.shape[-2:]) for m in backbone(torch.zeros(1, 3, SIZE, SIZE))] == [(16, 16), (2, 2)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "resnet19"}, "unknown backbone 'resnet19'"),
        ({"name": "resnet18", "widths": [1, 2, 3, 4]}, "fixes widths"),
        ({"name": "timm/resnet18", "widths": [8], "depths": [1]}, "fixes widths and depths"),
        ({"name": "resnet18", "options": {"a": 1}}, "options go with"),
        ({"name": "resnet18", "levels": [3, 2]}, "ascending"),
        ({}, "needs a name, or widths and depths"),
        ({"widths": [8, 0, 16], "depths": [1, 1, 1], "levels": [3]}, "stage 2 has no channels or no blocks"),
        ({"widths": [8, -4], "depths": [0, 1], "levels": [2]}, "stage 1, 2 has no channels or no blocks"),
    ],
)
def test_a_backbone_that_makes_no_sense_is_refused(values: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        BackboneConfig.model_validate(values)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet19", "timm has no backbone 'resnet19'.*resnet18"),
        ("timm/vit_tiny_patch16_224", "strides"),
        ("transformers/resmet", r"no backbone 'resmet'\. It has .*resnet"),
    ],
)
def test_a_backbone_that_a_library_lacks_is_refused_by_name(name: str, message: str):
    with pytest.raises(ConfigError, match=message):
        BackboneConfig(name=name).transformers_config()


def test_an_option_that_the_library_refuses_is_one_message():
    with pytest.raises(ConfigError, match="transformers/convnext"):
        BackboneConfig.model_validate({"name": "transformers/convnext", "options": {"depths": "many"}}).transformers_config()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_detector_with_a_named_backbone_trains_all_of_it_and_none_of_its_frozen_stem(name: str):
    def build(norm: str) -> DeformableDetr:
        values = SMALL | {"backbone": {"name": name, "levels": [3], "norm": norm}}
        return DeformableDetr.build(DeformableDetrModelConfig.model_validate(values), SPEC)

    trained, frozen = build("batch"), build("frozen")
    assert all(p.requires_grad for p in trained.model.model.backbone.parameters())
    assert any(isinstance(m, nn.BatchNorm2d) for m in trained.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    # transformers freezes stem and first stage of a ResNet, and nothing of other backbones
    assert {n.split(".")[1] for n, p in frozen.model.model.backbone.model.named_parameters() if not p.requires_grad} == (
        {"embedder", "stages"} if name == "resnet18" else set()
    )


def test_a_frozen_backbone_of_our_own_families_is_the_one_that_transformers_builds():
    backbone = Backbone(BackboneConfig(name="resnet18", norm="frozen"))
    theirs = DeformableDetr.build(
        DeformableDetrModelConfig.model_validate(SMALL | {"levels": 3, "backbone": {"name": "resnet18", "norm": "frozen"}}), SPEC
    ).model.model.backbone.model
    theirs.load_state_dict(backbone.model.state_dict())
    assert {n: p.requires_grad for n, p in backbone.model.named_parameters()} == {n: p.requires_grad for n, p in theirs.named_parameters()}
    images = torch.randn(1, 3, SIZE, SIZE)
    for ours, other in zip(backbone(images), theirs(images).feature_maps, strict=True):
        assert torch.equal(ours, other)


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Norms and weights that are not the defaults."""
    generator = torch.Generator().manual_seed(3)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            low, high = (0.5, 1.5) if name.endswith(("running_var", "bn1.weight", "bn2.weight")) else (-0.1, 0.1)
            value.copy_(torch.empty_like(value).uniform_(low, high, generator=generator))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_file_in_torchvisions_names_gives_torchvisions_features(name: str, tmp_path: Path):
    reference = getattr(torchvision.models, name)(weights=None).eval()
    randomise(reference)
    save_file(reference.state_dict(), tmp_path / "weights.safetensors")
    config = BackboneConfig(name=name, levels=(2, 4), weights=str(tmp_path / "weights.safetensors"))
    backbone = Backbone(config).eval()
    load_backbone_weights(backbone, config)
    images = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        second, fourth = backbone(images)
        x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(images))))
        expected = reference.layer2(reference.layer1(x))
        torch.testing.assert_close(second, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(fourth, reference.layer4(reference.layer3(expected)), atol=1e-5, rtol=1e-4)


def test_a_file_in_the_models_own_names_is_read_and_its_later_stages_left_out(tmp_path: Path):
    whole = Backbone(BackboneConfig(name="resnet18", levels=(4,)))
    save_file({f"resnet.{k}": v for k, v in whole.model.state_dict().items()} | {"classifier.1.weight": torch.zeros(3, 512)},
              tmp_path / "w.safetensors")  # fmt: skip
    config = BackboneConfig(name="resnet18", levels=(2,), weights=str(tmp_path / "w.safetensors"))
    backbone = Backbone(config)
    load_backbone_weights(backbone, config)
    for name, value in backbone.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name


def test_weights_that_do_not_fit_are_refused_with_every_key(tmp_path: Path):
    state = dict(Backbone(BackboneConfig(name="resnet18")).model.state_dict())
    del state["encoder.stages.1.layers.0.layer.0.convolution.weight"]
    state["strange"] = torch.zeros(1)
    state["embedder.embedder.convolution.weight"] = torch.zeros(64, 3, 3, 3)
    save_file(state, tmp_path / "w.safetensors")
    config = BackboneConfig(name="resnet18", weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(CheckpointError) as error:
        load_backbone_weights(Backbone(config), config)
    for part in ("missing: encoder.stages.1.layers.0.layer.0.convolution.weight", "unexpected: strange",
                 "shape: embedder.embedder.convolution.weight is [64, 3, 3, 3]"):  # fmt: skip
        assert part in str(error.value)


def test_a_small_resnet_has_no_imagenet_weights_and_says_so():
    config = BackboneConfig(widths=(8, 16), depths=(1, 1), levels=(2,), weights="imagenet")
    with pytest.raises(ConfigError, match=r"no published ImageNet weights.*resnet50"):
        load_backbone_weights(Backbone(config), config)


def test_making_norms_trainable_keeps_their_values():
    backbone = Backbone(BackboneConfig(name="resnet18", norm="frozen"))
    randomise(backbone)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    make_trainable(backbone)
    assert all(p.requires_grad for p in backbone.parameters())
    for name, value in before.items():
        assert torch.equal(backbone.state_dict()[name], value)
