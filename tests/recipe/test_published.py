"""The recipes of published settings, field by field against the hyper-parameters that their sources state."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from workbench.datasets.transforms import FixedSize
from workbench.detectors.detector import kind_of
from workbench.detectors.registry import FAMILIES
from workbench.methods.clockdistill.clockdistill import CLoCKDistill
from workbench.methods.detkds.config import DetKDSConfig
from workbench.methods.detkds.genotype import Genotype
from workbench.methods.detrdistill.detrdistill import DETRDistill
from workbench.methods.registry import find_method
from workbench.recipe.loading import load_recipe
from workbench.resources import share_path
from workbench.training.dry_run import dry_run
from workbench.training.launch import teacher_of

FOLDER = share_path("recipes") / "published"
PUBLISHED = sorted(FOLDER.glob("*.yaml"))
RELEASED = FOLDER / "coco_deformable_detr_detrdistill.yaml"
CONDITIONAL = FOLDER / "coco_conditional_detr_detrdistill.yaml"
# recipes of detectors without queries
DENSE = [
    path for path in PUBLISHED if kind_of(FAMILIES[yaml.safe_load(path.read_text())["student"]["family"]].detector.provides) != "query"
]
COCO_EPOCH = -(-118287 // 16)  # images without targets are kept, the last batch is a part


def values_of(path: Path, arm: str | None = None) -> dict[str, Any]:
    return load_recipe(path, arm=arm).model_dump(mode="json")


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_every_arm_loads_and_the_teacher_is_another_published_recipe(path: Path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    for arm in (recipe.own_arm, *recipe.arms):
        one = load_recipe(path, arm=arm)
        made = teacher_of(one, path.parent)
        if one.methods:
            assert made is not None and made[0].name in {other.stem for other in PUBLISHED}
            shown = [recipe.data.transform.model_dump(mode="json") for recipe in (made[0], one)]
            if path in DENSE:
                # GFL's teacher is trained at several scales and its student at one, of which the largest is the same
                for values in shown:
                    values["resize"]["shortest"] = max(values["resize"]["shortest"])
            assert shown[0] == shown[1]


@pytest.mark.parametrize("arm", [None, "r18", "mobilenet_v2", "paper", "undistilled"])
def test_the_schedule_is_the_released_one(arm: str | None):
    train = values_of(RELEASED, arm)["train"]
    # AdamW 2e-4, weight decay 1e-4, a tenth for backbone, sampling offsets and reference points
    assert (train["learning_rate"], train["weight_decay"], train["backbone_factor"], train["sampling_factor"]) == (2e-4, 1e-4, 0.1, 0.1)
    # 16 images, 50 epochs, times 0.1 after 40, L2 clip 0.1
    assert (train["batch_size"], train["steps"], train["schedule"], train["drops"]) == (16, 50 * COCO_EPOCH, "step", [0.8])
    assert (train["clip_norm"], train["class_weight"]) == (0.1, 2.0)
    # 500 steps of warm-up in the distilled run alone
    assert train["warmup"] == (0 if arm == "undistilled" else 500)


@pytest.mark.parametrize(("path", "name"), [
    (RELEASED, "resnet50"), (FOLDER / "coco_deformable_detr_r101.yaml", "resnet101"),
    (FOLDER / "coco_deformable_detr_clockdistill.yaml", "resnet50"),
])  # fmt: skip
def test_the_deformable_detr_is_the_released_one(path: Path, name: str):
    student = values_of(path)["student"]
    wanted = {
        "family": "deformable_detr", "width": 256, "heads": 8, "ffn": 1024, "encoder_layers": 6, "decoder_layers": 6, "queries": 300,
        "levels": 4, "points": 4, "dropout": 0.1, "box_refine": False, "two_stage": False,
    }  # fmt: skip
    assert {key: student[key] for key in wanted} == wanted
    backbone = student["backbone"]
    assert (backbone["name"], backbone["levels"], backbone["norm"], backbone["weights"]) == (name, [2, 3, 4], "frozen", "imagenet")


@pytest.mark.parametrize(
    "path", [path for path in PUBLISHED if "adamixer" not in path.stem and path not in DENSE], ids=lambda path: path.stem
)
def test_images_are_prepared_as_detr_prepares_them(path: Path):
    transform = values_of(path)["data"]["transform"]
    assert transform["resize"] == {"shortest": list(range(480, 801, 32)), "longest": 1333}
    assert [op["op"] for op in transform["augment"]] == ["flip", "crop"]
    assert (transform["mean"], transform["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.parametrize(("name", "backbone"), [("coco_adamixer_detrdistill", "resnet50"), ("coco_adamixer_r101", "resnet101")])
def test_the_adamixer_is_the_released_one_with_100_queries_and_twelve_epochs(name: str, backbone: str):
    values = values_of(FOLDER / f"{name}.yaml")
    student, train, transform = values["student"], values["train"], values["data"]["transform"]
    wanted = {
        "family": "adamixer", "width": 256, "heads": 8, "ffn": 2048, "decoder_layers": 6, "queries": 100, "groups": 4, "in_points": 32,
        "out_points": 128, "dropout": 0.0,
    }  # fmt: skip
    assert {key: student[key] for key in wanted} == wanted
    assert (student["backbone"]["name"], student["backbone"]["levels"], student["backbone"]["norm"]) == (backbone, [1, 2, 3, 4], "frozen")
    # one rate for all parameters, 500 steps of warm-up, a tenth after epochs 8 and 11
    assert (train["learning_rate"], train["backbone_factor"], train["sampling_factor"]) == (2.5e-5, 1.0, 1.0)
    assert (train["weight_decay"], train["clip_norm"], train["warmup"], train["batch_size"]) == (1e-4, 1.0, 500, 16)
    assert train["steps"] == 12 * COCO_EPOCH and [round(12 * drop, 2) for drop in train["drops"]] == [8, 11]
    assert transform["resize"] == {"shortest": [800], "longest": 1333} and [op["op"] for op in transform["augment"]] == ["flip"]
    assert (transform["mean"], transform["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.parametrize(("name", "backbone", "epochs"), [("coco_dino_clockdistill", "resnet50", 12), ("coco_dino_r101", "resnet101", 36)])
def test_the_dino_is_the_released_one_with_four_scales(name: str, backbone: str, epochs: int):
    values = values_of(FOLDER / f"{name}.yaml")
    student, train = values["student"], values["train"]
    wanted = {
        "family": "dino", "width": 256, "heads": 8, "ffn": 2048, "encoder_layers": 6, "decoder_layers": 6, "queries": 900, "levels": 4,
        "points": 4, "dropout": 0.0, "denoising": 100, "label_noise": 0.5,
    }  # fmt: skip
    assert {key: student[key] for key in wanted} == wanted
    assert (student["backbone"]["name"], student["backbone"]["levels"], student["backbone"]["norm"]) == (backbone, [2, 3, 4], "frozen")
    # AdamW 1e-4, a tenth for the backbone alone, L2 clip 0.1, class loss 1 beside its matching cost 2
    assert (train["learning_rate"], train["backbone_factor"], train["sampling_factor"]) == (1e-4, 0.1, 1.0)
    assert (train["weight_decay"], train["clip_norm"], train["batch_size"], train["class_weight"]) == (1e-4, 0.1, 16, 1.0)
    assert train["steps"] == epochs * COCO_EPOCH and [round(epochs * drop) for drop in train["drops"]] == [epochs * 11 // 12]


WHOLE = Genotype("global", "catt", "scale_r2", "norm_N", "l1")
# the formulas of lliai/DetKDS@a7d2127, configs/distillers/detkds, and their gamma; those of Faster R-CNN that only its configuration lists
FORMULAS: dict[tuple[str, str | None], dict[Genotype, float]] = {
    ("coco_retinanet_detkds", None): {WHOLE: 6, Genotype("foreground", "no", "local_s4", "norm_HW", "l1"): 2},
    ("coco_retinanet_x101_detkds", None): {Genotype("instance", "catt", "scale_r1", "norm_C", "l1"): 50},
    ("coco_faster_rcnn_detkds", None): {WHOLE: 2},
    ("coco_faster_rcnn_detkds", "configured"): {
        WHOLE: 2, Genotype("foreground", "mask", "no", "norm_C", "l1"): 2, Genotype("instance", "mask", "scale_r1", "norm_C", "pear"): 0.1,
        Genotype("logits", t3="softmax_C", distance="pear"): 0.1,
    },
    ("coco_fcos_detkds", None): {WHOLE: 5, Genotype("foreground", "mask", "scale_r1", "norm_C", "l1"): 2},
    ("coco_gfl_detkds", None): {WHOLE: 10},
    ("coco_reppoints_detkds", None): {WHOLE: 10},
}  # fmt: skip


@pytest.mark.parametrize(("name", "arm"), FORMULAS)
def test_the_formulas_of_detkds_are_the_released_ones(name: str, arm: str | None):
    path, wanted = FOLDER / f"{name}.yaml", FORMULAS[name, arm]
    for one, mode in ((arm, "official"), *((("corrected", "corrected"),) if arm is None else ())):
        (config,) = load_recipe(path, arm=one).methods
        assert isinstance(config, DetKDSConfig)
        # P2 to P5 of Faster R-CNN, every level of the others
        feature = "head" if "faster_rcnn" in name else "neck"
        assert (config.mode, config.feature, config.balance, config.weights) == (mode, feature, None, {})
        assert {config.genotypes[input]: part.weight for input, part in config.formulas.items()} == wanted
    assert "released" in load_recipe(path).note
    assert values_of(path, arm)["student"]["inherit"] == INHERITED


def test_the_distillation_is_the_released_one():
    (method,) = values_of(RELEASED)["methods"]
    assert (method["method"], method["profile"], method["weight"], method["balance"]) == ("detrdistill", "official_code", 1.0, None)
    assert (method["logits"]["weights"], method["logits"]["layers"]) == ([1.0, 5.0, 2.0], "all")
    assert (method["features"]["mask"], method["features"]["feature"], method["features"]["layers"]) == ("cosine", "neck", "all")
    assert method["assignment"] == {"assign_source": "student", "reference": "student"}
    assert method["contrastive"] == {"width": 512, "temperature": 0.07}
    assert DETRDistill.Config.published_weights == {"contrastive": 0.2}


@pytest.mark.parametrize(("arm", "name"), [("r18", "resnet18"), ("mobilenet_v2", "mobilenet_v2"), ("undistilled_r18", "resnet18")])
def test_the_light_students_differ_in_their_backbone_alone(arm: str, name: str):
    own, light = values_of(RELEASED), values_of(RELEASED, arm)
    assert light["student"]["backbone"]["name"] == name
    assert {k: v for k, v in own["student"].items() if k != "backbone"} == {k: v for k, v in light["student"].items() if k != "backbone"}


@pytest.mark.parametrize(("arm", "depth"), [(None, (6, 6)), ("encoder6_decoder3", (6, 3)), ("encoder3_decoder6", (3, 6)),
                                             ("encoder3_decoder3", (3, 3))])  # fmt: skip
def test_the_unequal_depths_are_those_of_table_four(arm: str | None, depth: tuple[int, int]):
    student = values_of(CONDITIONAL, arm)["student"]
    assert (student["family"], student["queries"]) == ("conditional_detr", 300)
    assert (student["encoder_layers"], student["decoder_layers"]) == depth
    assert values_of(CONDITIONAL, arm)["methods"][0]["depth"] == "groups"


@pytest.mark.parametrize("name", ["kitti_dab_detr_clockdistill", "coco_deformable_detr_clockdistill", "coco_dino_clockdistill"])
def test_clockdistill_has_its_second_hand_weights_and_says_what_it_is(name: str):
    path = FOLDER / f"{name}.yaml"
    (method,) = values_of(path)["methods"]
    assert CLoCKDistill.Config.published_weights == {"memory_foreground": 5e-5, "memory_background": 1e-7}
    assert method["weights"] == {} and method["logits"]["weights"] == [1.0, 5.0, 2.0]
    assert "re-implementation, unverified" in path.read_text()


HEADS: dict[str, dict[str, Any]] = {
    # RetinaHead: 4 convolutions without a norm, 3 octaves of 3 ratios, extra levels from C5
    "retinanet": {
        "width": 256, "extra_levels": 2, "extra_from": "backbone", "head_convs": 4, "head_norm": "none", "octave_scales": 3,
        "anchor_ratios": [0.5, 1.0, 2.0], "anchor_sizes": [], "nms_threshold": 0.5, "score_threshold": 0.05, "candidates": 1000,
    },
    # FCOSHead with center_sampling (radius 1.5) and GIoU loss, extra levels from P5
    "fcos": {
        "width": 256, "extra_levels": 2, "extra_from": "pyramid", "head_convs": 4, "head_norm": "group", "head_groups": 32, "radius": 1.5,
        "giou_weight": 1.0, "nms_threshold": 0.6, "score_threshold": 0.05, "candidates": 1000,
    },
    # GFLHead: reg_max 16, octave_base_scale 8, extra levels from P5
    "gfl": {
        "width": 256, "extra_levels": 2, "extra_from": "pyramid", "head_convs": 4, "head_norm": "group", "head_groups": 32, "reg_max": 16,
        "anchor_scale": 8.0, "nms_threshold": 0.6, "score_threshold": 0.05, "candidates": 1000,
    },
    # RepPointsHead: 3 convolutions with GroupNorm, extra levels from C5
    "reppoints": {
        "width": 256, "extra_levels": 2, "extra_from": "backbone", "head_convs": 3, "head_norm": "group", "head_groups": 32,
        "nms_threshold": 0.5, "score_threshold": 0.05, "candidates": 1000,
    },
    # RPNHead and Shared2FCBBoxHead: one level behind the backbone's four, 2000 anchors of a level and 1000 proposals in training
    "faster_rcnn": {
        "width": 256, "extra_levels": 1, "extra_from": "pool", "head_convs": 1, "head_norm": "none", "anchor_scales": [8.0],
        "anchor_ratios": [0.5, 1.0, 2.0], "anchor_samples": 256, "training_candidates": 2000, "training_proposals": 1000, "proposals": 1000,
        "proposal_threshold": 0.7, "candidates": 1000, "samples": 512, "roi_cells": 7, "roi_width": 1024, "nms_threshold": 0.5,
        "score_threshold": 0.05,
    },
}  # fmt: skip


@pytest.mark.parametrize("path", DENSE, ids=lambda path: path.stem)
def test_a_dense_detector_is_mmdets(path: Path):
    student = values_of(path)["student"]
    wanted = HEADS[student["family"]]
    assert {key: student[key] for key in wanted} == wanted
    backbone = student["backbone"]
    ends = {"r101": "resnet101", "x101": "timm/resnext101_64x4d"}
    assert backbone["name"] == ends.get(path.stem.rpartition("_")[2], "resnet50")
    # frozen_stages=1 and norm_eval
    assert (backbone["norm"], backbone["weights"]) == ("frozen", "imagenet")
    assert backbone["levels"] == ([1, 2, 3, 4] if student["family"] == "faster_rcnn" else [2, 3, 4])


ONE, TWO, MANY = [800], [640, 800], [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
# epochs, learning rate, clipping, short sides, epochs of the drops
SCHEDULES: dict[tuple[str, str | None], tuple[int, float, float, list[int], list[int]]] = {
    ("coco_retinanet_r101", None): (24, 0.01, 0.0, ONE, [16, 22]),
    ("coco_retinanet_x101", None): (36, 0.01, 0.0, [640, 672, 704, 736, 768, 800], [27, 33]),
    ("coco_fcos_r101", None): (24, 0.01, 35.0, TWO, [16, 22]),
    ("coco_gfl_r101", None): (24, 0.01, 0.0, MANY, [16, 22]),
    ("coco_faster_rcnn_r101", None): (24, 0.02, 0.0, ONE, [16, 22]),
    ("coco_reppoints_r101", None): (24, 0.01, 0.0, ONE, [16, 22]),
    ("coco_retinanet_r50", None): (24, 0.01, 0.0, ONE, [16, 22]),
    ("coco_retinanet_r50", "fgd"): (24, 0.01, 35.0, ONE, [16, 22]),
    ("coco_retinanet_r50", "mgd"): (24, 0.01, 35.0, ONE, [16, 22]),
    ("coco_retinanet_r50", "pkd"): (24, 0.01, 0.0, ONE, [16, 22]),
    ("coco_retinanet_r50", "cwd"): (12, 0.01, 0.0, ONE, [8, 11]),
    ("coco_fcos_r50", None): (24, 0.01, 35.0, TWO, [16, 22]),
    ("coco_fcos_r50", "fgd"): (24, 0.01, 35.0, TWO, [16, 22]),
    ("coco_gfl_r50", None): (12, 0.01, 0.0, ONE, [8, 11]),
    ("coco_gfl_r50", "ld"): (12, 0.01, 0.0, ONE, [8, 11]),
    ("coco_gfl_r50", "fgd"): (12, 0.01, 35.0, ONE, [8, 11]),
    ("coco_gfl_r50", "cwd"): (12, 0.01, 0.0, ONE, [8, 11]),
    ("coco_retinanet_detkds_plain", None): (24, 0.01, 0.0, ONE, [16, 22]),
    ("coco_retinanet_detkds_plain", "matched"): (24, 0.02, 35.0, ONE, [16, 22]),
    ("coco_faster_rcnn_detkds_plain", None): (24, 0.02, 0.0, ONE, [16, 22]),
    ("coco_faster_rcnn_detkds_plain", "matched"): (24, 0.02, 35.0, ONE, [16, 22]),
    ("coco_fcos_detkds", None): (24, 0.01, 35.0, TWO, [16, 22]),
    ("coco_fcos_detkds", "undistilled"): (24, 0.01, 35.0, TWO, [16, 22]),
    ("coco_reppoints_detkds_plain", None): (24, 0.01, 0.0, ONE, [16, 22]),
    ("coco_reppoints_detkds_plain", "matched"): (24, 0.01, 35.0, ONE, [16, 22]),
    ("coco_gfl_detkds_plain", None): (12, 0.01, 0.0, ONE, [8, 11]),
    ("coco_gfl_detkds_plain", "matched"): (24, 0.01, 35.0, MANY, [16, 22]),
    ("coco_retinanet_detkds", None): (24, 0.01, 35.0, ONE, [16, 22]),
    ("coco_retinanet_x101_detkds", None): (24, 0.02, 35.0, ONE, [16, 22]),
    ("coco_faster_rcnn_detkds", "configured"): (24, 0.02, 35.0, ONE, [16, 22]),
    ("coco_gfl_detkds", None): (24, 0.01, 35.0, MANY, [16, 22]),
    ("coco_reppoints_detkds", None): (24, 0.01, 35.0, ONE, [16, 22]),
}


def test_every_recipe_of_a_dense_detector_has_a_schedule_to_be_compared_with():
    assert {name for name, _ in SCHEDULES} == {path.stem for path in DENSE}


@pytest.mark.parametrize(("name", "arm"), SCHEDULES)
def test_the_schedule_of_a_dense_detector_is_mmdets_or_that_of_the_methods_own_code(name: str, arm: str | None):
    values, (epochs, rate, clip, sides, drops) = values_of(FOLDER / f"{name}.yaml", arm), SCHEDULES[name, arm]
    train = values["train"]
    assert (train["optimizer"], train["momentum"], train["weight_decay"], train["batch_size"]) == ("sgd", 0.9, 1e-4, 16)
    # two images at a time, as on each of eight GPUs; DetKDS compared four on RetinaNet with R101
    assert train["batch_size"] / train["accumulate"] == (4 if name == "coco_retinanet_detkds" else 2)
    assert (train["steps"], train["learning_rate"], train["clip_norm"]) == (epochs * COCO_EPOCH, rate, clip)
    assert (train["backbone_factor"], train["warmup"], train["schedule"], train["ema"]) == (1.0, 500, "step", 0.0)
    assert [round(epochs * drop) for drop in train["drops"]] == drops
    assert values["data"]["transform"]["resize"] == {"shortest": sides, "longest": 1333}
    assert [op["op"] for op in values["data"]["transform"]["augment"]] == ["flip"]
    assert (values["data"]["transform"]["mean"], values["data"]["transform"]["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


INHERITED = {"from": "teacher", "parts": ["neck", "head"]}


@pytest.mark.parametrize("family", ["retinanet", "fcos", "gfl"])
def test_the_methods_between_dense_detectors_have_their_released_weights(family: str):
    path = FOLDER / f"coco_{family}_r50.yaml"
    arms = load_recipe(path).arms
    assert list(arms) == [*(["ld"] if family == "gfl" else []), "fgd", "mgd", "pkd", "cwd"]
    for name in arms:
        values = values_of(path, name)
        (method,) = values["methods"]
        assert method["method"] == name and method["weight"] == 1.0 and method["balance"] is None
        assert values["teacher"]["recipe"] == f"coco_{family}_r101.yaml"
        # init_student of FGD and MGD
        assert values["student"].get("inherit") == (INHERITED if name in ("fgd", "mgd") else None)
        built: Any = find_method(name).Config.model_validate(method)
        weights = {term: method["weights"].get(term, built.published_weights[term]) for term in built.term_names}
        if name == "fgd":
            # alpha, beta, gamma, lambda and the temperature; FCOS has 1.6 times RetinaNet's
            factor = 1.6 if family == "fcos" else 1.0
            alpha = {"foreground": 1e-3, "background": 5e-4, "attention": 5e-4, "relation": 5e-6}
            assert weights == pytest.approx({term: factor * value for term, value in alpha.items()})
            assert method["temperature"] == (0.8 if family == "fcos" else 0.5)
        elif name == "mgd":
            assert weights == {"features": 2e-5} and method["mask_ratio"] == 0.65
        elif name == "pkd":
            assert weights == {"features": 10.0}
        elif name == "cwd":
            assert weights == {"channels": 10.0} and method["temperature"] == 1.0
        else:
            assert weights == {"main": 0.25, "valuable": 0.25, "classes": 10.0}
            assert (method["temperature"], method["class_temperature"], method["candidates"]) == (10.0, 2.0, 9)


@pytest.mark.parametrize(("name", "arm", "teacher"), [
    ("coco_retinanet_detkds_plain", None, "coco_retinanet_x101"), ("coco_faster_rcnn_detkds_plain", None, "coco_faster_rcnn_r101"),
    ("coco_fcos_detkds", "undistilled", "coco_fcos_r101"), ("coco_reppoints_detkds_plain", None, "coco_reppoints_r101"),
    ("coco_gfl_detkds_plain", None, "coco_gfl_r101"),
])  # fmt: skip
def test_the_five_students_of_detkds_stand_undistilled_beside_their_teachers(name: str, arm: str | None, teacher: str):
    values = values_of(FOLDER / f"{name}.yaml", arm)
    assert (values["teacher"]["recipe"], values["methods"], values["student"].get("inherit")) == (f"{teacher}.yaml", [], None)


def test_the_gain_on_gfl_is_not_to_be_read_against_the_student_of_one_scale():
    text = (FOLDER / "coco_gfl_detkds_plain.yaml").read_text()
    assert "40.2 AP" in text and "42.9 AP" in text and "`matched`" in text


@pytest.mark.parametrize(("name", "arm"), [
    ("coco_retinanet_r50", "fgd"), ("coco_fcos_r50", "mgd"), ("coco_gfl_r50", "ld"), ("coco_gfl_r50", "pkd"),
    ("coco_reppoints_detkds_plain", None), ("coco_faster_rcnn_detkds_plain", None), ("coco_retinanet_detkds", None),
    ("coco_faster_rcnn_detkds", "configured"),
])  # fmt: skip
def test_a_dry_run_of_a_dense_recipe_passes_on_images_of_a_sixteenth(name: str, arm: str | None):
    recipe = load_recipe(FOLDER / f"{name}.yaml", arm=arm)
    transform = recipe.data.transform.model_copy(update={"resize": FixedSize(height=128, width=160)})
    found = dry_run(recipe.model_copy(update={"data": recipe.data.model_copy(update={"transform": transform})}), FOLDER)
    assert found.classes == 80 and found.teacher_parameters > found.student_parameters
    assert {key.partition(".")[0] for key in found.terms if "." in key} == {config.method for config in recipe.methods}
