"""Models of the single-level families: what they are built from, saved as and loaded from."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from transformers import AutoModelForObjectDetection, TimmBackboneConfig

from tests.detectors.test_single_level import SIZES, SMALL, answer, every_family, fresh, small
from tests.examples import SPEC, images_of
from workbench.detectors.detector import InputSpec
from workbench.detectors.registry import FAMILIES, load_detector


@every_family
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_a_saved_model_is_a_plain_transformers_folder_with_equal_answers(name: str, norm: str, tmp_path: Path):
    detector = small(name, backbone=SMALL["backbone"] | {"norm": norm})
    detector.save(tmp_path)
    plain, report = AutoModelForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert type(plain) is type(detector.model) and plain.config.id2label == dict(enumerate(SPEC.classes))
    for ours, theirs in zip(answer(detector.model), answer(plain.eval()), strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=1e-6)
    loaded = load_detector(tmp_path).eval()
    assert type(loaded) is type(detector) and loaded.spec == SPEC
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in detector.parameters()]
    assert torch.equal(loaded(*images_of(*SIZES)).logits, detector(*images_of(*SIZES)).logits)


@every_family
def test_a_folder_that_transformers_wrote_loads_with_equal_answers(name: str, tmp_path: Path):
    detector = small(name, backbone=SMALL["backbone"] | {"norm": "frozen"})
    detector.model.save_pretrained(tmp_path)
    loaded = load_detector(tmp_path).eval()
    output, (logits, boxes) = loaded(*images_of(*SIZES)), answer(detector.model)
    torch.testing.assert_close(output.logits[-1], logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(output.boxes[-1], boxes, atol=1e-6, rtol=0)
    assert loaded.spec == InputSpec(SPEC.classes, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@every_family
def test_a_checkpoint_whose_backbone_shows_more_levels_takes_the_last_of_them(name: str, tmp_path: Path):
    small(name, backbone=SMALL["backbone"] | {"norm": "frozen"}).model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["backbone_config"] |= {"out_features": ["stage1", "stage2"], "out_indices": [1, 2]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    detector: Any = load_detector(tmp_path).eval()
    output = detector(*images_of(*SIZES))
    assert [level.stride for level in output.backbone] == [4, 8] and [level.stride for level in output.memory] == [8]
    assert torch.equal(output.neck[0].features, detector.model.model.input_projection(output.backbone[1].features))
    torch.testing.assert_close(output.logits[-1], answer(detector.model)[0], atol=1e-6, rtol=0)


@every_family
def test_a_timm_backbone_takes_its_weights_from_a_file(name: str, tmp_path: Path):
    reference = fresh(name, 1, backbone={"name": "timm/resnet18", "levels": [2]})
    state = {key.split("backbone.")[-1]: value for key, value in reference.model.state_dict().items() if ".layer1." in key or "conv1" in key
             or ".bn1." in key or ".layer2." in key}  # fmt: skip
    state = {key.removeprefix("conv_encoder.").removeprefix("model.").removeprefix("_backbone."): value for key, value in state.items()}
    assert "conv1.weight" in state and "layer2.0.conv1.weight" in state
    save_file({key: value.contiguous().clone() for key, value in state.items()}, tmp_path / "w.safetensors")
    other = fresh(name, 2, backbone={"name": "timm/resnet18", "levels": [2], "weights": str(tmp_path / "w.safetensors")})
    images, padding = images_of(*SIZES)
    assert torch.equal(other.eval()(images, padding).backbone[0].features, reference.eval()(images, padding).backbone[0].features)


@every_family
def test_a_reset_head_knows_the_new_classes_and_keeps_everything_else(name: str):
    detector = small(name)
    before = {key: value.clone() for key, value in detector.model.state_dict().items()}
    spec = InputSpec(("cat", "dog", "bird", "cow", "sheep"), SPEC.mean, SPEC.std)
    made = detector.reset_classes(spec)
    head = "class_embed" if name == "dab_detr" else "class_labels_classifier"
    assert sorted(made) == [f"{head}.bias", f"{head}.weight"]
    assert detector.spec == spec and detector.model.config.num_labels == 5
    for key, value in detector.model.state_dict().items():
        assert key in made or torch.equal(value, before[key]), key
    output = detector(*images_of((64, 96)))
    assert output.logits.shape == (3, 1, 6, 6 if name == "detr" else 5)


@every_family
@pytest.mark.parametrize(("changes", "message"), [
    ({"backbone": SMALL["backbone"] | {"levels": [1, 2]}}, r"one feature level.*\[1, 2\].*\[2\] for stride 8"),
    ({"backbone": {"name": "resnet18"}}, "one feature level"),
    ({"heads": 5}, "not a multiple of heads"),
    ({"width": 30}, "multiple of 4"),
    ({"dilation": True}, "dilation needs a timm backbone"),
    ({"box_refine": True}, "Extra inputs"),
])  # fmt: skip
def test_an_architecture_that_cannot_be_built_is_refused_with_the_reason(name: str, changes: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        FAMILIES[name].config.model_validate(SMALL | changes)


@every_family
def test_a_dilated_last_stage_halves_the_stride(name: str, tmp_path: Path):
    detector = fresh(name, dilation=True, backbone={"name": "timm/resnet50", "levels": [4], "norm": "frozen"}).eval()
    backbone = detector.model.config.backbone_config
    assert isinstance(backbone, TimmBackboneConfig) and backbone.output_stride == 16
    output = detector(*images_of((64, 96)))
    assert output.memory[0].stride == output.backbone[0].stride == 16
    assert output.memory[0].features.shape[-2:] == (4, 6) and output.backbone[0].features.shape[1] == 2048
    frozen = {key.split("model.backbone.")[1] for key, p in detector.named_parameters() if not p.requires_grad}
    assert frozen and all("layer1" in key or "conv1" in key for key in frozen)


@every_family
def test_published_sizes_are_the_defaults(name: str):
    config: Any = FAMILIES[name].config.model_validate({"backbone": {"name": "resnet50", "levels": [4], "norm": "frozen"}})
    values = (config.width, config.heads, config.ffn, config.encoder_layers, config.decoder_layers, config.dropout)
    assert values == (256, 8, 2048, 6, 6, 0.0 if name == "dab_detr" else 0.1)
    assert config.queries == (100 if name == "detr" else 300)
    weights = {"class": 2.0 if name == "conditional_detr" else 1.0, "bbox": 5.0, "giou": 2.0}
    assert small(name).loss_weights == weights
    theirs = config.transformers_config(SPEC.classes)
    published = type(theirs)()
    for key in ("hidden_size", "encoder_ffn_dim", "decoder_layers", "num_queries", "activation_function", "attention_dropout"):
        assert getattr(theirs, key) == getattr(published, key), key


@every_family
def test_the_backbone_is_read_from_where_the_family_keeps_it(name: str):
    detector = fresh(name)
    encoder: Any = type(detector).conv_encoder(detector.model)
    assert encoder.model.channels == SMALL["backbone"]["widths"][-1:]
    frozen = fresh(name, backbone=SMALL["backbone"] | {"norm": "frozen"})
    still = {key.split("model.encoder.")[1] for key, p in frozen.named_parameters() if not p.requires_grad and "backbone" in key
             and "encoder.stages" in key}  # fmt: skip
    assert still and all(key.startswith("stages.0.") for key in still), "stem and first stage only"
