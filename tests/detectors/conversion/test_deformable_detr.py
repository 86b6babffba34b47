"""Deformable DETR of mmdet and DETRDistill loads whole and answers as mmdet's modules do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForObjectDetection

from tests.detectors.conversion.layouts import BACKBONE, COUNTER, deformable_detr, filled, images
from workbench.detectors.conversion.deformable_detr import convert_detrdistill, convert_mmdet
from workbench.detectors.deformable_detr import DeformableDetr, DeformableDetrModelConfig
from workbench.detectors.detector import InputSpec
from workbench.detectors.weights import fill_weights
from workbench.errors import CheckpointError

SPEC = InputSpec(("a", "b", "c"), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
SHAPES: dict[str, Any] = {"classes": 3, "queries": 5, "heads": 4, "ffn": 24, "encoder": 1, "decoder": 2}

# What mmdet 2.24.1 (github.com/BIVLab-USTC/DETRDistill at b5ee33d, with mmcv 1.4.0) answers for query 3 to these weights and
# images, box refinement on: layers 0 and 1, two images each. Its two-stage model is 256 wide whatever the configuration says.
GOLDEN: dict[str, Any] = {
    "one-stage": {
        "width": 32,
        "logits": [[[-0.57577, -1.89554, -0.08727], [-0.69922, -1.79909, -0.02453]],
                   [[-0.38986, 1.09718, 0.69442], [-0.10306, 1.41557, 0.84473]]],
        "boxes": [[[0.35342, 0.52134, 0.49552, 0.56245], [0.34797, 0.50848, 0.4827, 0.54888]],
                  [[0.19246, 0.59466, 0.18539, 0.41648], [0.20446, 0.56599, 0.21622, 0.43864]]],
    },
    "two-stage": {
        "width": 256,
        "logits": [[[1.89919, 0.04052, -0.73967], [0.88822, 0.13704, -1.05244]],
                   [[1.4876, -0.6198, -0.08848], [2.00497, -0.63894, -0.17836]]],
        "boxes": [[[0.20748, 0.93612, 0.03383, 0.04772], [0.66116, 0.68042, 0.02428, 0.04249]],
                  [[0.18722, 0.92489, 0.04979, 0.09536], [0.68004, 0.65185, 0.03483, 0.07098]]],
    },
}  # fmt: skip
every_kind = pytest.mark.parametrize("kind", GOLDEN)


def checkpoint(kind: str, version: int = 2) -> dict[str, Tensor]:
    return filled(deformable_detr(width=GOLDEN[kind]["width"], version=version, two_stage=kind == "two-stage", **SHAPES))


def detector_of(kind: str) -> DeformableDetr:
    config = {
        "backbone": BACKBONE | {"levels": [2, 3, 4], "norm": "frozen"}, "width": GOLDEN[kind]["width"], "heads": 4, "ffn": 24,
        "encoder_layers": 1, "decoder_layers": 2, "queries": 5, "box_refine": True, "two_stage": kind == "two-stage",
    }  # fmt: skip
    return DeformableDetr.build(DeformableDetrModelConfig.model_validate(config), SPEC).eval()


@every_kind
def test_the_answers_are_those_of_mmdet(kind: str, tmp_path: Path):
    detector = detector_of(kind)
    fill_weights(detector.model, convert_mmdet(checkpoint(kind)), tmp_path)
    batch, padding = images()
    with torch.no_grad():
        output = detector(batch, padding)
    torch.testing.assert_close(output.logits[:, :, 3], torch.tensor(GOLDEN[kind]["logits"]), atol=1e-4, rtol=0)
    torch.testing.assert_close(output.boxes[:, :, 3], torch.tensor(GOLDEN[kind]["boxes"]), atol=1e-4, rtol=0)
    detector.save(tmp_path)
    with torch.no_grad():
        plain = AutoModelForObjectDetection.from_pretrained(tmp_path).eval()(batch, pixel_mask=(~padding).long())
    torch.testing.assert_close(plain.logits, output.logits[-1], atol=1e-6, rtol=0)
    torch.testing.assert_close(plain.pred_boxes, output.boxes[-1], atol=1e-6, rtol=0)


@every_kind
def test_mmdet_3_names_the_same_tensors_otherwise(kind: str):
    old, new = checkpoint(kind), checkpoint(kind, version=3)
    assert set(old) != set(new) and len(old) == len(new)
    one = convert_mmdet(dict(old))
    two = convert_mmdet(dict(zip(new, old.values(), strict=True)))
    assert set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


def test_every_tensor_of_the_file_is_used_and_the_neck_gets_a_bias_of_zero(tmp_path: Path):
    state = checkpoint("one-stage")
    converted = convert_mmdet(state)
    attention = [name for name in state if "in_proj" in name]
    counters = [name for name in state if name.endswith(COUNTER)]
    biases = [f"model.input_proj.{level}.0.bias" for level in range(4)]
    assert len(converted) == len(state) - len(counters) + 2 * len(attention) + len(biases)
    assert all((converted[name] == 0).all() for name in biases)
    layer = "bbox_head.transformer.decoder.layers.1.attentions.0.attn.in_proj_weight"
    parts = [converted[f"model.decoder.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(torch.cat(parts), state[layer])
    for change in ({"bbox_head.extra.weight": torch.ones(1)}, {"decoder.layers.0.other.in_proj_weight": torch.ones(3, 1)}):
        with pytest.raises(CheckpointError, match=f"unexpected: {next(iter(change))}"):
            fill_weights(detector_of("one-stage").model, convert_mmdet(state | change), tmp_path)
    del state["bbox_head.cls_branches.1.bias"]
    with pytest.raises(CheckpointError, match=r"missing: class_embed\.1\.bias"):
        fill_weights(detector_of("one-stage").model, convert_mmdet(state), tmp_path)


def test_a_distillation_checkpoint_gives_its_student():
    plain = checkpoint("one-stage")
    beside = {f"teacher.{name}": value + 1 for name, value in plain.items() if value.is_floating_point()}
    beside |= {name: torch.ones(1) for name in (
        "distill_losses.loss_fgd_fpn_0.conv_mask_s.weight", "cl_head.img_proj.weight", "student_neck_convs_0_conv",
        "teacher_neck_extra_convs_0_conv",
    )}  # fmt: skip
    found = convert_detrdistill(beside | {f"student.{name}": value for name, value in plain.items()})
    wanted = convert_mmdet(dict(plain))
    assert set(found) == set(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)
    again = convert_detrdistill(dict(plain))
    assert set(again) == set(wanted), "DETRDistill's plain checkpoints are mmdet's"
    assert "optimizer.step" in convert_detrdistill({"student.x": torch.ones(1), "optimizer.step": torch.ones(1)})


def test_two_models_in_one_file_are_refused():
    both = checkpoint("one-stage") | checkpoint("one-stage", version=3)
    with pytest.raises(CheckpointError, match=r"which are one tensor 'model\.level_embed' here"):
        convert_mmdet(both)
