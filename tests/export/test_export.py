"""An export answers as its detector does, or is not written."""

import copy
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.examples import SPEC
from tests.families import NAMES, tiny
from workbench.cli import app
from workbench.datasets.batches import evaluation_batches
from workbench.datasets.coco import write_coco
from workbench.datasets.opening import open_dataset
from workbench.datasets.shapes import ShapesConfig, generate_shapes
from workbench.detectors.detector import Detector
from workbench.detectors.output import TwoStageOutput, valid_scores
from workbench.detectors.registry import FAMILIES
from workbench.detectors.transformers_adapter import TransformersDetector
from workbench.errors import ExportError, MissingExtraError
from workbench.export import comparison as agreement
from workbench.export import onnx_file
from workbench.export.comparison import Agreement
from workbench.export.interface import transform_of
from workbench.export.onnx_file import export_onnx, read_interface
from workbench.export.transformers_folder import export_transformers

SQUARE = dataclasses.replace(SPEC, resize={"height": 64, "width": 64})
IN_TRANSFORMERS = [name for name in NAMES if issubclass(FAMILIES[name].detector, TransformersDetector)]
# the shortest decoder that the family has: graphs are traced node by node
ONE_LAYER = {name: {"decoder_layers": 1} for name in ("adamixer", "conditional_detr", "dab_detr", "detr", "lw_detr", "rf_detr")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images in a folder: one full batch of the check would hide a fixed batch size."""
    folder = tmp_path_factory.mktemp("data")
    write_coco(generate_shapes(ShapesConfig(train=1, val=5), "val"), folder)
    return folder


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(agreement, "BATCH", 3)
    yield


def saved(folder: Path, family: str, **changes: Any) -> Detector:
    detector = tiny(family, spec=changes.pop("spec", SQUARE), **ONE_LAYER.get(family, {}), **changes)
    folder.mkdir()
    detector.save(folder)
    return detector


@pytest.mark.parametrize("family", NAMES)
def test_the_onnx_file_of_every_family_gives_what_the_detector_gives(family: str, tmp_path: Path, data: Path):
    import onnxruntime

    detector = saved(tmp_path / "model", family)
    found = export_onnx(str(tmp_path / "model"), tmp_path / "model.onnx", str(data))
    assert found.images == 5 and found.ap == found.exported_ap
    assert ("masks are left out (--nms adds them)" in str(found)) == (family == "mask_rcnn")
    interface = read_interface(tmp_path / "model.onnx")
    assert (interface.family, interface.classes, interface.height, interface.width) == (family, SQUARE.classes, 64, 64)

    # once more as a user would: nothing but Pillow, numpy and onnxruntime, one image at a time
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    dataset = open_dataset(data, "val")
    picture = Image.fromarray(dataset.image(4)).resize((64, 64), Image.Resampling.BILINEAR)
    scores, boxes, *_ = session.run(None, {"images": np.asarray(picture)[None]})
    transform = transform_of(detector)
    batch = next(evaluation_batches(dataset, transform, 1, [4]))
    with torch.no_grad():
        output = detector(batch.images, batch.padding)
    own_boxes = output.class_boxes if isinstance(output, TwoStageOutput) and output.class_boxes is not None else output.boxes[-1]
    count = own_boxes.shape[1]  # of proposals there are fewer than the file has places for
    np.testing.assert_allclose(scores[:, :count], valid_scores(output, -1), atol=1e-4)
    np.testing.assert_allclose(boxes[:, :count], own_boxes, atol=1e-3)
    assert not scores[:, count:].any()


@pytest.mark.parametrize("family", IN_TRANSFORMERS)
def test_transformers_alone_loads_the_folder_and_gives_equal_outputs(family: str, tmp_path: Path, data: Path):
    saved(tmp_path / "model", family)
    found = export_transformers(str(tmp_path / "model"), tmp_path / "plain", str(data))
    assert found.boxes <= 1e-6 and found.scores <= 1e-6 and found.images == 5
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= {path.name for path in (tmp_path / "plain").iterdir()}


@pytest.mark.parametrize("family", sorted(set(NAMES) - set(IN_TRANSFORMERS)))
def test_a_family_that_transformers_has_no_model_for_is_refused_by_name(family: str, tmp_path: Path, data: Path):
    saved(tmp_path / "model", family)
    with pytest.raises(ExportError, match=f"{family}, and transformers has no model for it"):
        export_transformers(str(tmp_path / "model"), tmp_path / "plain", str(data))
    assert not (tmp_path / "plain").exists()


def test_a_padded_image_gives_the_same_boxes_through_the_mask(tmp_path: Path):
    spec = dataclasses.replace(SPEC, resize={"shortest": [48], "longest": 64})
    saved(tmp_path / "model", "detr", spec=spec)
    wide = tmp_path / "wide"
    write_coco(generate_shapes(ShapesConfig(train=1, val=4), "val"), wide)
    stretch(wide)
    found = export_onnx(str(tmp_path / "model"), tmp_path / "model.onnx", str(wide))
    interface = read_interface(tmp_path / "model.onnx")
    assert interface.padding and interface.inputs == ["images", "padding"] and (interface.height, interface.width) == (64, 64)
    assert found.boxes <= 1e-3


def stretch(folder: Path) -> None:
    """Every second image becomes half as high, with its boxes."""
    file = next(folder.rglob("*.json"))
    annotations = json.loads(file.read_text())
    low = {image["id"] for image in annotations["images"][::2]}
    for image in annotations["images"]:
        if image["id"] in low:
            path = next(folder.rglob(image["file_name"]))
            image["height"] //= 2
            Image.open(path).resize((image["width"], image["height"])).save(path)
    for box in annotations["annotations"]:
        if box["image_id"] in low:
            box["bbox"] = [box["bbox"][0], box["bbox"][1] / 2, box["bbox"][2], box["bbox"][3] / 2]
            box["area"] /= 2
    file.write_text(json.dumps(annotations))


def test_images_of_several_sizes_are_refused_for_a_model_that_sees_no_padding(tmp_path: Path):
    saved(tmp_path / "model", "rt_detr", spec=dataclasses.replace(SPEC, resize={"shortest": [64], "longest": 128}))
    write_coco(generate_shapes(ShapesConfig(train=1, val=2), "val"), tmp_path / "wide")
    stretch(tmp_path / "wide")
    with pytest.raises(ExportError, match=r"rt_detr takes images of one size only.*resize: \{height: H, width: W\}"):
        export_onnx(str(tmp_path / "model"), tmp_path / "model.onnx", str(tmp_path / "wide"))


def test_an_export_of_other_weights_is_refused_with_what_differs_and_leaves_nothing(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
):
    saved(tmp_path / "model", "detr")
    made = onnx_file.onnx_program

    def wrong(detector: Any, interface: Any) -> Any:
        other = copy.deepcopy(detector)
        with torch.no_grad():
            other.model.class_labels_classifier.bias[0] += 0.01
        return made(other, interface)

    monkeypatch.setattr(onnx_file, "onnx_program", wrong)
    (tmp_path / "there.onnx").write_bytes(b"an older export")
    with pytest.raises(ExportError, match=r"5 images of val: boxes differ by up to .* and scores by up to .*e-03; .*Nothing was written"):
        export_onnx(str(tmp_path / "model"), tmp_path / "there.onnx", str(data))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "there.onnx"]
    assert (tmp_path / "there.onnx").read_bytes() == b"an older export"


def test_a_folder_whose_weights_transformers_does_not_take_is_refused_and_leaves_nothing(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
):
    from safetensors.torch import load_file, save_file

    detector = saved(tmp_path / "model", "detr")
    save = type(detector).save

    def renamed(self: Any, folder: Path) -> None:
        save(self, folder)
        tensors = load_file(folder / "model.safetensors")
        save_file({name.replace("running_mean", "group_mean"): value for name, value in tensors.items()}, folder / "model.safetensors",
                  metadata={"format": "pt"})  # fmt: skip

    monkeypatch.setattr(type(detector), "save", renamed)
    with pytest.raises(ExportError, match=r"weights do not fit its model, .*mean"):
        export_transformers(str(tmp_path / "model"), tmp_path / "plain", str(data))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("changed", "good"),
    [({}, True), ({"boxes": 1e-3}, True), ({"boxes": 1.1e-3}, False), ({"scores": 1.1e-4}, False), ({"scores": math.nan}, False),
     ({"exported_ap": 0.4009}, True), ({"exported_ap": 0.3989}, False), ({"reselected": 2}, True), ({"reselected": 3}, False),
     ({"detections": 300, "other": 3}, True), ({"detections": 300, "other": 4}, False), ({"other": 1}, False),
     ({"masks": 1e-3}, True), ({"masks": 1.1e-3}, False)],
)  # fmt: skip
def test_an_agreement_holds_up_to_its_tolerances_and_no_number_is_no_agreement(changed: dict[str, float], good: bool):
    values: dict[str, Any] = {"boxes": 0.0, "scores": 0.0, "reselected": 0, "ap": 0.4, "exported_ap": 0.4}
    assert Agreement(images=20, split="val", **values | changed).holds(1e-3, 1e-4) is good


def test_a_missing_package_is_named_with_how_to_add_it(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"onnxruntime.*pip install 'distillation-workbench\[export\]'"):
        export_onnx("shapes_teacher", tmp_path / "model.onnx", str(data))


def test_a_file_of_another_tool_has_no_interface(tmp_path: Path):
    (tmp_path / "other.onnx").write_bytes(b"\x08\x07")
    with pytest.raises(ExportError, match="not an ONNX file written by 'workbench export'"):
        read_interface(tmp_path / "other.onnx")


def test_a_model_that_transformers_cannot_build_is_refused_as_a_folder(tmp_path: Path, data: Path):
    saved(tmp_path / "model", "deformable_detr", decoder_layers=1)
    with pytest.raises(ExportError, match="transformers cannot build this deformable_detr"):
        export_transformers(str(tmp_path / "model"), tmp_path / "out", str(data))
    assert not (tmp_path / "out").exists()


def test_a_timm_backbone_with_activations_in_its_norms_is_refused_as_a_folder_and_an_old_one_is_not(tmp_path: Path, data: Path):
    saved(tmp_path / "model", "deformable_detr", backbone={"name": "mobilenet_v2", "levels": [2], "norm": "frozen"})
    with pytest.raises(ExportError, match="without the activations in its norm layers"):
        export_transformers(str(tmp_path / "model"), tmp_path / "out", str(data))
    assert not (tmp_path / "out").exists()
    description = json.loads((tmp_path / "model" / "workbench.json").read_text())
    del description["exact_norms"]
    (tmp_path / "model" / "workbench.json").write_text(json.dumps(description))
    assert export_transformers(str(tmp_path / "model"), tmp_path / "out", str(data)).boxes <= 1e-5


def test_the_command_writes_and_says_how_the_export_answered(tmp_path: Path, data: Path):
    saved(tmp_path / "model", "detr")
    command = ["export", str(tmp_path / "model"), "--transformers", "--out", str(tmp_path / "plain"), "--data", str(data)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "5 images of val: boxes differ by up to" in result.output and "written:" in result.output
    assert (tmp_path / "plain" / "model.safetensors").is_file()
