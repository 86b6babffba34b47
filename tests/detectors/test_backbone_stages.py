"""Stages of a backbone: those that no level needs are cut, the first can be fixed, and norm layers keep timm's activations."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoBackbone, DeformableDetrForObjectDetection

from tests.examples import SMALL, SPEC, batch_of, images_of
from workbench.detectors.backbone import Backbone, BackboneConfig, bare_backbone
from workbench.detectors.detector import Detector
from workbench.detectors.registry import FAMILIES, load_detector
from workbench.errors import CheckpointError, ConfigError

LITE = "timm/tf_efficientnet_lite0"
IMAGES = images_of((64, 96))
OWN: dict[str, Any] = {"width": 8, "extra_levels": 1, "head_convs": 0, "head_norm": "none"}


def detector_of(family: str, **backbone: Any) -> Detector:
    """A small detector on strides 8 and 16 of EfficientNet-Lite0, in eval mode, with statistics that are not the first ones."""
    torch.manual_seed(0)
    values = (SMALL | {"levels": 2} if family == "deformable_detr" else OWN) | {"backbone": {"name": LITE, "levels": [2, 3]} | backbone}
    detector = FAMILIES[family].detector.build(FAMILIES[family].config.model_validate(values), SPEC).eval()
    randomise(detector)
    return detector


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif value.is_floating_point():
            value.add_(0.05 * torch.randn(value.shape, generator=generator))


def backbone_of(detector: Any) -> nn.Module:
    """The bare backbone, wherever the family keeps it."""
    return bare_backbone(detector.conv_encoder(detector.model)) if hasattr(detector, "conv_encoder") else detector.backbone.model


def features(model: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return list(model(IMAGES[0].to(next(iter(model.state_dict().values())).dtype)))


def fill(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copies the tensors that the model has."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(state[name])


families = pytest.mark.parametrize("family", ["deformable_detr", "fcos"])


@pytest.mark.parametrize("name", [LITE, "mobilenet_v2", "timm/mobilenetv3_small_050"])
def test_a_cut_backbone_draws_the_weights_and_gives_the_features_of_the_whole_one(name: str):
    config = BackboneConfig(name=name, levels=(2, 3))
    torch.manual_seed(3)
    whole: Any = AutoBackbone.from_config(config.transformers_config())
    torch.manual_seed(3)
    backbone = Backbone(config)
    state = whole._backbone.state_dict()
    assert {*state} - {*backbone.model.state_dict()} == {*backbone.cut} != set()
    assert all(torch.equal(value, state[key]) for key, value in backbone.model.state_dict().items())
    for ours, theirs in zip(features(backbone.eval().model), features(whole.eval()._backbone), strict=True):
        assert torch.equal(ours, theirs)


def test_a_backbone_whose_last_level_is_the_deepest_is_not_cut():
    assert Backbone(BackboneConfig(name=LITE, levels=(3, 4))).cut == ()


@families
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_a_detector_computes_the_features_that_timm_computes_and_holds_no_tensor_behind_them(family: str, norm: str):
    original = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=[2, 3]).eval()
    randomise(original)
    backbone = backbone_of(detector_of(family, norm=norm))
    fill(backbone, original.state_dict())
    for ours, theirs in zip(features(backbone), features(original), strict=True):
        # a frozen norm multiplies in another order than a trained one in eval mode
        torch.testing.assert_close(ours, theirs, atol=0 if norm == "batch" else 1e-4, rtol=0 if norm == "batch" else 1e-3)
    assert sum(p.numel() for p in backbone.parameters()) < 0.25 * sum(p.numel() for p in original.parameters())


@families
@pytest.mark.parametrize("norm", ["batch", "frozen"])
@pytest.mark.parametrize("freeze", [None, 2])
def test_a_detector_on_a_cut_backbone_is_saved_and_loaded_with_equal_outputs_and_fixed_stages(
    family: str, norm: str, freeze: int | None, tmp_path: Path
):
    detector = detector_of(family, norm=norm, freeze=freeze)
    detector.save(tmp_path)
    loaded = load_detector(tmp_path).eval()
    assert torch.equal(detector(*IMAGES).logits, loaded(*IMAGES).logits)
    assert [p.requires_grad for p in detector.parameters()] == [p.requires_grad for p in loaded.parameters()]


@families
def test_weights_of_the_cut_part_are_left_out_of_an_old_detector_and_no_others(family: str, tmp_path: Path):
    detector = detector_of(family)
    detector.save(tmp_path)
    whole = timm.create_model("tf_efficientnet_lite0", features_only=True)
    inside = next(name for name, module in detector.named_modules() if module is backbone_of(detector))
    inside = inside.removeprefix("model.") if family == "deformable_detr" else inside
    tensors = load_file(tmp_path / "model.safetensors")
    more = {f"{inside}.{name}": value for name, value in whole.state_dict().items() if name.startswith(("blocks.5.", "blocks.6."))}
    save_file(tensors | more, tmp_path / "model.safetensors")
    assert torch.equal(load_detector(tmp_path).eval()(*IMAGES).logits, detector(*IMAGES).logits)
    save_file(tensors | more | {f"{inside}.blocks.6.strange": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"unexpected: .*blocks\.6\.strange") as error:
        load_detector(tmp_path)
    assert str(error.value).count("unexpected") == 1


def test_a_transformers_detector_that_was_saved_without_activations_answers_as_it_did(tmp_path: Path):
    """Plain transformers builds the model of that time."""
    detector = detector_of("deformable_detr", norm="frozen", levels=[3, 4])
    detector.save(tmp_path)
    forget_exact_norms(tmp_path)
    then = DeformableDetrForObjectDetection.from_pretrained(tmp_path).eval()
    now = load_detector(tmp_path).eval()
    assert not now.exact_norms
    with torch.no_grad():
        torch.testing.assert_close(now(*IMAGES).logits[-1], then(IMAGES[0]).logits, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(now(*IMAGES).logits, detector(*IMAGES).logits, atol=1e-3)
    again = tmp_path / "again"
    again.mkdir()
    now.save(again)
    assert torch.equal(load_detector(again).eval()(*IMAGES).logits, now(*IMAGES).logits)


def test_one_of_our_own_that_was_saved_without_activations_answers_as_it_did(tmp_path: Path):
    detector = detector_of("fcos", norm="frozen")
    detector.save(tmp_path)
    forget_exact_norms(tmp_path)
    now = backbone_of(load_detector(tmp_path).eval())
    then = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=[2, 3]).eval()
    then.load_state_dict(now.state_dict(), strict=False)
    for module in then.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.act, module.eps = nn.Identity(), 1e-5
    # without activations nothing limits the numbers, so they grow and with them what another order of the sums makes of them
    for ours, theirs in zip(features(now.double()), features(then.double()), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-7)


def forget_exact_norms(folder: Path) -> None:
    """Makes the folder one of the time when the activations were left out."""
    values = json.loads((folder / "workbench.json").read_text())
    assert values.pop("exact_norms") is True
    (folder / "workbench.json").write_text(json.dumps(values))


BELOW = {  # what lies in the stem and in the stages of strides 4 and 8
    LITE: ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.", "blocks.2."),
    "resnet18": ("embedder.", "encoder.stages.0.", "encoder.stages.1."),
    "timm/resnet18": ("conv1.", "bn1.", "layer1.", "layer2."),
    "timm/convnext_atto": ("stem_", "stages_0.", "stages_1."),
}
ENDS = {LITE: (0, 3, 4, 5), "resnet18": (0, 1, 2, 3), "timm/resnet18": (0, 2, 3, 4), "timm/convnext_atto": (0, 1, 2, 3)}


@pytest.mark.parametrize("name", BELOW)
@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_the_stages_that_are_frozen_are_the_first_and_norms_are_trained_or_not_whatever_their_stage(name: str, count: int, norm: str):
    model = Backbone(BackboneConfig.model_validate({"name": name, "levels": [2, 3], "norm": norm, "freeze": count})).model
    below = BELOW[name][: ENDS[name][count]]
    norms = {f"{key}." for key, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert bool(norms) == (norm == "batch" and name != "timm/convnext_atto")
    for key, parameter in model.named_parameters():
        in_norm = any(key.startswith(prefix) for prefix in norms)
        assert parameter.requires_grad == (in_norm or not key.startswith(below or "-")), key


def test_what_is_frozen_does_not_move_in_training_and_the_rest_does():
    detector = detector_of("deformable_detr", norm="frozen", freeze=3).train()
    before = {name: value.clone() for name, value in backbone_of(detector).state_dict().items()}
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=0.1)
    targets = batch_of([2], len(SPEC.classes), torch.Generator().manual_seed(0))
    terms = detector.losses(detector(*IMAGES), targets, 2.0)
    torch.stack(list(terms.values())).sum().backward()
    optimizer.step()
    for name, value in backbone_of(detector).state_dict().items():
        fixed = name.startswith(BELOW[LITE]) or "bn" in name
        assert torch.equal(value, before[name]) == fixed, name


def test_more_frozen_stages_than_there_are_and_a_backbone_without_known_stages_are_refused():
    with pytest.raises(ValidationError, match=r"freeze 5 is more than the 4 stages up to the last level, stem included"):
        BackboneConfig(name=LITE, levels=(2, 3), freeze=5)
    swin = {"name": "transformers/swin", "options": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}, "freeze": 1}
    with pytest.raises(ConfigError, match=r"backbone\.freeze 1: the stages of this backbone \(SwinBackbone\) are not known"):
        Backbone(BackboneConfig.model_validate(swin))
