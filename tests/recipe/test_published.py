"""The recipes of published settings, field by field against the hyper-parameters that their sources state."""

from pathlib import Path
from typing import Any

import pytest

from workbench.methods.clockdistill.clockdistill import CLoCKDistill
from workbench.methods.detrdistill.detrdistill import DETRDistill
from workbench.recipe.loading import load_recipe
from workbench.resources import share_path
from workbench.training.launch import teacher_of

FOLDER = share_path("recipes") / "published"
PUBLISHED = sorted(FOLDER.glob("*.yaml"))
RELEASED = FOLDER / "coco_deformable_detr_detrdistill.yaml"
CONDITIONAL = FOLDER / "coco_conditional_detr_detrdistill.yaml"
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
            assert made[0].data.transform == one.data.transform


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
    "path", [path for path in PUBLISHED if "adamixer" not in path.stem and "fcos" not in path.stem], ids=lambda p: p.stem
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


@pytest.mark.parametrize(("name", "backbone"), [("coco_fcos_detkds", "resnet50"), ("coco_fcos_r101", "resnet101")])
def test_the_fcos_is_the_released_one_but_for_its_optimiser(name: str, backbone: str):
    values = values_of(FOLDER / f"{name}.yaml")
    student, train, transform = values["student"], values["train"], values["data"]["transform"]
    wanted = {
        "family": "fcos",
        "width": 256,
        "extra_levels": 2,
        "extra_from": "pyramid",
        "head_convs": 4,
        "head_norm": "group",
        "radius": 1.5,
    }
    assert {key: student[key] for key in wanted} == wanted
    assert (student["backbone"]["name"], student["backbone"]["levels"], student["backbone"]["norm"]) == (backbone, [2, 3, 4], "frozen")
    # two images at a time, 500 steps of warm-up, 24 epochs, a tenth after 16 and 22, L2 clip 35
    assert train["batch_size"] / train["accumulate"] == 2 and (train["warmup"], train["clip_norm"]) == (500, 35.0)
    assert train["steps"] == 24 * COCO_EPOCH and [round(24 * drop, 1) for drop in train["drops"]] == [16, 22]
    assert transform["resize"] == {"shortest": [640, 800], "longest": 1333} and [op["op"] for op in transform["augment"]] == ["flip"]


@pytest.mark.parametrize(("arm", "mode"), [(None, "official"), ("corrected", "corrected")])
def test_the_formulas_of_detkds_on_fcos_are_the_released_ones(arm: str | None, mode: str):
    (method,) = values_of(FOLDER / "coco_fcos_detkds.yaml", arm)["methods"]
    assert (method["mode"], method["feature"], method["balance"]) == (mode, "neck", None)
    assert method["global_"] == {"t1": "catt", "t2": "scale_r2", "t3": "norm_N", "distance": "l1", "weight": 5.0}
    assert method["foreground"] == {"t1": "mask", "t2": "scale_r1", "t3": "norm_C", "distance": "l1", "weight": 2.0}
    assert (method["instance"], method["logits"], method["localization"]) == (None, None, None)


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
