"""A public checkpoint becomes a detector folder, or every key that does not fit is named and there is no folder."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from tests.detectors.conversion.layouts import BACKBONE, adamixer, filled, images
from tests.flows import command
from workbench.detectors.adamixer import AdaMixer
from workbench.detectors.conversion.adamixer import convert
from workbench.detectors.conversion.layouts import LAYOUTS
from workbench.detectors.registry import family, load_detector
from workbench.errors import CheckpointError, ConfigError
from workbench.recipe.loading import load_recipe
from workbench.resources import share_path
from workbench.tasks.convert import CheckpointDescription

DESCRIPTION: dict[str, Any] = {
    "model": {
        "family": "adamixer", "backbone": BACKBONE | {"levels": [1, 2, 3, 4], "norm": "frozen"}, "width": 32, "heads": 4, "ffn": 24,
        "decoder_layers": 1, "queries": 5, "groups": 2, "in_points": 4, "out_points": 6,
    },
    "classes": ["cat", "dog", "bird"],
    "transform": {"mean": [0.1, 0.2, 0.3], "resize": {"shortest": [800], "longest": 1333}},
}  # fmt: skip
SHIPPED = sorted((share_path("recipes") / "checkpoints").glob("*.yaml"))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    made = filled(adamixer(classes=3, queries=5, layers=1, width=32, heads=4, ffn=24, groups=2, points=(4, 6)))
    made["rpn_head.init_proposal_bboxes.weight"] = torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(5, 1)
    return made


@pytest.fixture
def description(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.yaml"
    path.write_text(yaml.safe_dump(DESCRIPTION))
    return path


def run(*arguments: Any) -> tuple[int, str, str]:
    return command("convert", *(str(argument) for argument in arguments))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_checkpoint_becomes_a_folder_with_its_weights(tmp_path: Path, state: dict[str, Tensor], description: Path, suffix: str):
    source, out = tmp_path / f"in{suffix}", tmp_path / "detector"
    if suffix == ".pth":
        torch.save({"meta": {"CLASSES": ("cat", "dog", "bird"), "epoch": 12}, "state_dict": state, "optimizer": {}}, source)
    else:
        save_file(state, source)
    code, text, err = run(source, "--layout", "adamixer_mmdet", "--config", description, "--out", out)
    assert code == 0, err
    detector = load_detector(out).eval()
    assert isinstance(detector, AdaMixer)
    assert f"{sum(p.numel() for p in detector.parameters()):,} parameters" in text
    assert detector.spec.classes == ("cat", "dog", "bird") and detector.spec.mean == (0.1, 0.2, 0.3)
    assert detector.spec.resize == {"shortest": [800], "longest": 1333}
    wanted = convert(state)
    assert all(torch.equal(value, wanted[name]) for name, value in detector.state_dict().items())
    assert torch.isfinite(detector(*images()).logits).all()
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors", "workbench.json"]


def test_every_key_that_does_not_fit_is_named_and_there_is_no_folder(tmp_path: Path, state: dict[str, Tensor], description: Path):
    stage = "roi_head.bbox_head.0"
    broken = {name: value for name, value in state.items() if name not in (f"{stage}.iof_tau", "neck.gn_out.bias")}
    broken |= {"neck.more.weight": torch.ones(1), f"{stage}.fc_cls.weight": torch.ones(80, 32)}
    torch.save(broken, tmp_path / "in.pth")
    code, _, err = run(tmp_path / "in.pth", "--layout", "adamixer_mmdet", "--config", description, "--out", tmp_path / "detector")
    assert code == CheckpointError.exit_code and str(tmp_path / "in.pth") in err
    assert "missing: layers.0.attention.iof_scale" in err and "missing: neck.norm.bias" in err and "unexpected: neck.more.weight" in err
    assert "shape: layers.0.class_head.out.weight is [80, 32] in the file, [3, 32] in the model" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.yaml", "in.pth"]


def test_a_folder_that_is_there_is_not_replaced(tmp_path: Path, state: dict[str, Tensor], description: Path):
    torch.save(state, tmp_path / "in.pth")
    (tmp_path / "detector").mkdir()
    (tmp_path / "detector" / "precious").write_text("kept")
    code, _, err = run(tmp_path / "in.pth", "--layout", "adamixer_mmdet", "--config", description, "--out", tmp_path / "detector")
    assert code == CheckpointError.exit_code and "already exists" in err
    assert (tmp_path / "detector" / "precious").read_text() == "kept"


@pytest.mark.parametrize(("arguments", "message"), [
    (("--layout", "yolo", "--config", "{config}", "--out", "x"), "unknown layout 'yolo'. Layouts: adamixer_mmdet"),
    (("--layout", "deformable_detr_mmdet", "--config", "{config}", "--out", "x"), "model.family is 'adamixer'"),
    (("--layout", "adamixer_mmdet", "--config", "nowhere", "--out", "x"), "adamixer_r50_coco"),
    (("--layout", "adamixer_mmdet", "--out", "x"), "--layout needs --config"),
    (("--layout", "adamixer_mmdet", "--config", "{config}"), "--layout needs --config"),
    (("--config", "{config}"), "--config works only with --layout"),
])  # fmt: skip
def test_a_request_that_cannot_be_honoured_says_why(
    tmp_path: Path, state: dict[str, Tensor], description: Path, arguments: tuple[str, ...], message: str
):
    torch.save(state, tmp_path / "in.pth")
    code, _, err = run(tmp_path / "in.pth", *(argument.format(config=description) for argument in arguments))
    assert code == ConfigError.exit_code and message in " ".join(err.split())


@pytest.mark.parametrize(("change", "message"), [
    ({"classes": None}, "classes"), ({"family": "adamixer"}, "Extra inputs"), ({"model": {"family": "adamixer", "depth": 3}}, "depth"),
])  # fmt: skip
def test_a_description_that_is_wrong_is_named_by_its_key(tmp_path: Path, state: dict[str, Tensor], change: dict[str, Any], message: str):
    torch.save(state, tmp_path / "in.pth")
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(DESCRIPTION | change))
    code, _, err = run(tmp_path / "in.pth", "--layout", "adamixer_mmdet", "--config", path, "--out", tmp_path / "detector")
    assert code == ConfigError.exit_code and message in err and str(path) in err


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_descriptions_hold_a_model_of_a_known_layout_and_coco_s_80_classes(path: Path):
    described = CheckpointDescription.model_validate(yaml.safe_load(path.read_text()))
    assert described.model["family"] in {layout.family for layout in LAYOUTS.values()}
    family(str(described.model["family"])).config.model_validate(described.model)
    assert len(set(described.classes)) == 80 and described.classes[0] == "person" and described.classes[79] == "toothbrush"


@pytest.mark.parametrize("path", sorted((share_path("recipes") / "families").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_of_families_are_valid(path: Path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem and recipe.data.path == "shapes"
