"""An exported dense detector: its raw answers with the rule of the interface, or its detections, are those of the detector."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from tests.export.test_export import SQUARE, data, saved, small_batches, stretch  # noqa: F401 - fixtures
from tests.families import DENSE_NAMES, TWO_STAGE_NAMES, tiny
from tests.flows import command
from workbench.datasets.base import Dataset
from workbench.datasets.batches import evaluation_batches
from workbench.datasets.coco import write_coco
from workbench.datasets.opening import open_dataset
from workbench.datasets.shapes import ShapesConfig, generate_shapes
from workbench.detectors.dense_detector import DenseDetector
from workbench.detectors.detector import Detections, Detector
from workbench.detectors.suppression import Suppression, suppressed
from workbench.errors import ExportError
from workbench.export import comparison, onnx_file
from workbench.export.comparison import Found, Scored
from workbench.export.interface import Interface, transform_of
from workbench.export.onnx_file import export_onnx, read_interface
from workbench.export.onnx_nms import chosen_detections

WITH_DUPLICATES = [*DENSE_NAMES, *TWO_STAGE_NAMES]
RULE = Suppression(score_threshold=0.3, nms_threshold=0.5, candidates=40, counts=(60, 15))


def scored(images: int, seed: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Random scores and overlapping boxes, some of them beyond the image."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(RULE.counts)
    boxes = torch.rand(images, count, 4, generator=generator) * torch.tensor([1.0, 1.0, 0.5, 0.5])
    return torch.rand(images, count, classes, generator=generator) ** 2, boxes


def slow_suppression(scores: np.ndarray, boxes: np.ndarray, rule: dict[str, Any], k: int) -> list[tuple[float, int, np.ndarray]]:
    """What the interface tells a user to do with the raw answers for one image: (score, class, xyxy in 0..1), best first."""
    corners = np.concatenate([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1).clip(0, 1)
    if boxes.ndim == 2:
        corners = corners[:, None].repeat(scores.shape[1], 1)
    pairs, start = [], 0
    for count in rule["counts"]:
        level = [(scores[n, c], c, corners[n, c]) for n in range(start, start + count) for c in range(scores.shape[1])]
        above = sorted((pair for pair in level if pair[0] > rule["score_threshold"]), key=lambda pair: -pair[0])
        pairs += above[: rule["candidates"]]
        start += count
    pairs = [pair for pair in pairs if (pair[2][2:] - pair[2][:2]).min() >= rule["smallest"]]
    left: list[tuple[float, int, np.ndarray]] = []
    for score, label, box in sorted(pairs, key=lambda pair: -pair[0]):
        if not any(other == label and overlap(box, kept) > rule["nms_threshold"] for _, other, kept in left):
            left.append((score, label, box))
    return left[:k]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = max(width, 0) * max(height, 0)
    return shared and shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


def equal(found: Detections, scores: Any, labels: Any, boxes: Any, side: Any = 1.0) -> None:
    """``boxes`` are xyxy in 0..1. Scores that are nearly equal may be in another order."""
    own = np.concatenate([found.scores[:, None], found.labels[:, None], found.boxes / side], 1)
    other = np.array([[float(score), int(label), *map(float, box)] for score, label, box in zip(scores, labels, boxes, strict=True)])
    assert len(own) == len(other)
    cost = abs(own[:, None] - other.reshape(-1, 6)).max(-1)
    assert cost[linear_sum_assignment(cost)].max(initial=0.0) <= 2e-5
    assert (np.diff(other.reshape(-1, 6)[:, 0]) <= 0).all()


def saved_calm(folder: Path, family: str, resize: dict[str, Any]) -> Detector:
    """A detector whose class scores are all over 0..1, because which of many equal scores comes first is not defined."""
    detector = tiny(family, spec=dataclasses.replace(SQUARE, resize=resize))
    if isinstance(detector, DenseDetector):
        with torch.no_grad():
            logits = detector(torch.randn(4, 3, 64, 64), torch.zeros(4, 64, 64, dtype=torch.bool)).logits
        for owner, name, *_ in detector.class_heads():
            getattr(owner, name).weight.data.mul_(2 / logits.std())
            getattr(owner, name).bias.data.fill_(-2.0)
    folder.mkdir()
    detector.save(folder)
    return detector


@pytest.mark.parametrize("smallest", [0.0, 0.1])
@pytest.mark.parametrize("of_classes", [False, True])
def test_detections_are_those_of_a_loop_over_levels_and_classes(of_classes: bool, smallest: float):
    rule = dataclasses.replace(RULE, smallest=smallest)
    for seed in range(3):
        scores, boxes = scored(2, seed)
        scores[1, :40] = 0.0
        if of_classes:
            boxes = boxes[:, :, None] + 0.1 * torch.rand(*scores.shape, 4, generator=torch.Generator().manual_seed(seed))
            rule = dataclasses.replace(rule, candidates=75 * 3, counts=(75,))
        for k in (5, 300):
            wanted = suppressed(scores, boxes, torch.ones(2, 2), rule, k)
            for image, found in enumerate(wanted):
                loop = slow_suppression(scores[image].numpy(), boxes[image].numpy(), dataclasses.asdict(rule), k)
                equal(found, *zip(*loop, strict=True))
            top, label, corners, count = chosen_detections(scores, boxes, rule, k)
            assert count.tolist() == [len(found.scores) for found in wanted] and top.shape[1] == min(k, 225 if of_classes else 40 + 40)
            for image, found in enumerate(wanted):
                n = int(count[image])
                equal(found, top[image, :n], label[image, :n], corners[image, :n])
                assert (label[image, n:] == -1).all() and not top[image, n:].any() and not corners[image, n:].any()


def test_images_without_a_score_above_the_threshold_have_no_detections():
    scores, boxes = scored(2, 0)
    top, label, _, count = chosen_detections(0.3 * torch.ones_like(scores), boxes, RULE, 10)
    assert count.tolist() == [0, 0] and not top.any() and (label == -1).all()
    assert [len(found.scores) for found in suppressed(0.3 * torch.ones_like(scores), boxes, torch.ones(2, 2), RULE, 10)] == [0, 0]


def asked(path: Path, interface: Interface, dataset: Dataset, detector: Detector) -> list[tuple[dict[str, np.ndarray], Detections]]:
    """What onnxruntime says of every image alone, on the canvas of the file, and the detector's own detections."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (detector.spec.mean, detector.spec.std))
    answers = []
    for batch in evaluation_batches(dataset, transform_of(detector), 1):
        batch = comparison._on_canvas(batch, interface.height, interface.width)
        pixels = ((batch.images * std + mean) * 255).masked_fill(batch.padding[:, None], 0).round().to(torch.uint8).permute(0, 2, 3, 1)
        feed = {"images": pixels.numpy()} | ({"padding": batch.padding.numpy()} if interface.padding else {})
        with torch.no_grad():
            (found,) = detector.detections(detector(batch.images, batch.padding), batch.sizes)
        answers.append((dict(zip(interface.outputs, session.run(interface.outputs, feed), strict=True)), found))
    return answers


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of two sizes."""
    folder = tmp_path_factory.mktemp("wide")
    write_coco(generate_shapes(ShapesConfig(train=1, val=4), "val"), folder)
    stretch(folder)
    return folder


RESIZES: dict[str, dict[str, Any]] = {"one size": {"height": 64, "width": 64}, "padded": {"shortest": [48], "longest": 64}}


@pytest.mark.parametrize(("family", "resize"), [*((family, "one size") for family in WITH_DUPLICATES), ("fcos", "padded"),
                                                ("faster_rcnn", "padded")])  # fmt: skip
def test_a_file_with_the_suppression_inside_gives_the_detections_of_the_detector(family: str, resize: str, tmp_path: Path, wide: Path):
    detector = saved_calm(tmp_path / "model", family, RESIZES[resize])
    agreement = export_onnx(str(tmp_path / "model"), tmp_path / "model.onnx", str(wide), nms=True)
    assert agreement.images == 4 and agreement.other == 0 and agreement.detections > 50 and agreement.ap == agreement.exported_ap
    interface = read_interface(tmp_path / "model.onnx")
    masks = ["masks"] if family == "mask_rcnn" else []
    assert interface.nms and interface.padding == (resize == "padded")
    assert interface.outputs == ["scores", "labels", "boxes", "count", *masks]
    dataset = open_dataset(wide, "val")
    for record, (said, found) in zip(dataset.records, asked(tmp_path / "model.onnx", interface, dataset, detector), strict=True):
        n = int(said["count"][0])
        side = torch.tensor([record.width, record.height] * 2)
        equal(found, said["scores"][0, :n], said["labels"][0, :n], said["boxes"][0, :n], side)


def test_the_masks_of_a_file_put_into_the_image_are_those_of_the_detector(tmp_path: Path, wide: Path):
    detector = saved_calm(tmp_path / "model", "mask_rcnn", RESIZES["padded"])
    agreement = export_onnx(str(tmp_path / "model"), tmp_path / "model.onnx", str(wide), nms=True)
    assert agreement.masks is not None and agreement.masks <= 1e-4 and "masks differ in" in str(agreement)
    interface = read_interface(tmp_path / "model.onnx")
    dataset, compared = open_dataset(wide, "val"), 0
    for record, (said, found) in zip(dataset.records, asked(tmp_path / "model.onnx", interface, dataset, detector), strict=True):
        n, size = int(said["count"][0]), (record.height, record.width)
        assert said["masks"].shape[1:] == (len(said["labels"][0]), 8, 8) and interface.mask_side == 8
        assert 0 <= said["masks"].min() and said["masks"].max() <= 1 and not said["masks"][0, n:].any()
        boxes = torch.from_numpy(said["boxes"][0, :n]) * torch.tensor([record.width, record.height] * 2)
        assert found.masks is not None
        for place in range(n):
            same = (found.labels == said["labels"][0, place]) & ((found.boxes - boxes[place]).abs().amax(1) < 1e-2)
            ((image,),) = paste_masks_in_image(torch.from_numpy(said["masks"][:, [place]]), boxes[place][None], size) > 0.5
            wanted = [pycocotools.mask.decode({"size": list(size), "counts": found.masks[i]}) for i in same.nonzero()[:, 0].tolist()]
            assert any((image.numpy() != mask).sum() <= 1 for mask in wanted)
            compared += int(image.sum() > 0)
    assert compared > 20


@pytest.mark.parametrize("family", ["fcos", "retinanet", "faster_rcnn"])
def test_the_raw_answers_and_the_rule_of_the_interface_give_the_detections_of_the_detector(family: str, tmp_path: Path, wide: Path):
    detector = saved_calm(tmp_path / "model", family, RESIZES["padded"])
    export_onnx(str(tmp_path / "model"), tmp_path / "model.onnx", str(wide))
    interface = read_interface(tmp_path / "model.onnx")
    assert not interface.nms and interface.suppression is not None and interface.outputs == ["scores", "boxes"]
    assert interface.suppression["score_threshold"] == 0.05 and interface.class_boxes == (family == "faster_rcnn")
    if family == "fcos":
        assert interface.suppression == {
            "score_threshold": 0.05, "nms_threshold": 0.6, "candidates": 1000, "counts": [256, 64, 16], "smallest": 0.0,
        }  # fmt: skip
    dataset = open_dataset(wide, "val")
    for record, (said, found) in zip(dataset.records, asked(tmp_path / "model.onnx", interface, dataset, detector), strict=True):
        loop = slow_suppression(said["scores"][0], said["boxes"][0], interface.suppression, 300)
        assert len(loop) > 10
        equal(found, *zip(*loop, strict=True), side=torch.tensor([record.width, record.height] * 2))
        # 12 x 12, 6 x 6 and 3 x 3 of the cells lie in a square image, 16 x 8, 8 x 4 and 4 x 2 in the other; those of the padding score 0
        inside = 144 + 36 + 9 if record.width == record.height else 128 + 32 + 8
        assert family != "fcos" or (said["scores"][0].max(1) > 0).sum() == inside


@pytest.mark.parametrize("family", ["fcos", "faster_rcnn"])
def test_both_files_are_checked_on_real_images_of_many_sizes(family: str, tmp_path: Path, shared_data: Path):
    spec = dataclasses.replace(SQUARE, resize={"shortest": [48], "longest": 80})
    saved(tmp_path / "model", family, spec=spec)
    for nms in (False, True):
        agreement = export_onnx(str(tmp_path / "model"), tmp_path / "model.onnx", str(shared_data / "bccd" / "BCCD"), nms=nms)
        assert agreement.images > 50 and agreement.scores <= 1e-4 and agreement.boxes <= 1e-3
        assert agreement.other <= 0.001 * agreement.detections
        assert (agreement.detections > 1000) == (nms or family == "faster_rcnn")


def test_a_file_that_suppresses_by_another_rule_is_refused(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    saved(tmp_path / "model", "fcos")
    made = onnx_file.onnx_program

    def wrong(detector: Any, interface: Interface) -> Any:
        assert interface.suppression is not None
        other = interface.suppression | {"nms_threshold": 0.1}
        return made(detector, dataclasses.replace(interface, suppression=other))

    monkeypatch.setattr(onnx_file, "onnx_program", wrong)
    with pytest.raises(ExportError, match=r"\d+ of \d+ detections are not shared.*1% other detections.*Nothing was written"):
        export_onnx(str(tmp_path / "model"), tmp_path / "model.onnx", str(data), nms=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_detections_are_compared_at_their_places_whatever_the_order_of_equal_scores():
    boxes = torch.tensor([[0.0, 0.0, 10, 10], [20, 20, 40, 40], [60, 60, 90, 90]])
    labels, scores = torch.tensor([0, 1, 0]), torch.tensor([0.9, 0.9, 0.5])
    own, none = Detections(torch.arange(3), labels, scores, boxes), Detections(*(torch.zeros(0, dtype=torch.int64),) * 3, torch.zeros(0, 4))
    order = torch.tensor([1, 0, 2])

    def differences(other: Detections) -> Any:
        found = comparison._Differences()
        found.add_found([own], [other], torch.tensor([[100, 100]]))
        return found

    same = differences(Detections(order, labels[order], scores[order], boxes[order]))
    assert (same.box, same.score, same.detections, same.other) == (0, 0, 3, 0)
    moved = differences(Detections(order, labels[order], scores[order], boxes[order] + 0.5))
    assert moved.box == pytest.approx(0.005) and moved.other == 0
    named = differences(Detections(order, torch.tensor([1, 1, 0]), scores[order] - 0.005, boxes[order]))
    assert named.other == 2 and named.score == pytest.approx(0.005, abs=1e-6)
    twice = differences(Detections(torch.zeros(3), labels[[0, 0, 2]], scores[[0, 0, 2]], boxes[[0, 0, 2]]))
    assert twice.other == 2 and differences(Detections(order, labels, scores + torch.nan, boxes)).other == 6
    assert differences(none).other == 3 and differences(Detections(order[:1], labels[:1], scores[:1], boxes[:1])).other == 2


def test_a_family_without_duplicates_has_nothing_to_suppress(tmp_path: Path, data: Path):  # noqa: F811
    saved(tmp_path / "model", "detr")
    with pytest.raises(ExportError, match=r"detr has no duplicates to suppress\. Export it without --nms"):
        export_onnx(str(tmp_path / "model"), tmp_path / "model.onnx", str(data), nms=True)


def test_the_command_puts_the_suppression_into_the_file_and_refuses_it_for_a_folder(tmp_path: Path, data: Path):  # noqa: F811
    saved(tmp_path / "model", "fcos")
    arguments = ["export", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--data", str(data), "--nms"]
    code, _, err = command(*arguments, "--transformers")
    assert code == 11 and "--nms is about an ONNX file" in err
    code, out, err = command(*arguments)
    assert code == 0 and "0 of" in out and "detections are not shared" in out, err
    assert read_interface(tmp_path / "out").nms


def test_files_of_earlier_versions_keep_their_interface(tmp_path: Path):
    import onnx

    facts = {"family": "detr", "classes": ["a"], "height": 64, "width": 64, "padding": False, "resize": None, "source": False}
    graph = onnx.helper.make_graph([], "empty", [], [])
    model = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(model, {"workbench": json.dumps({"format_version": 1, **facts})})
    onnx.save(model, tmp_path / "old.onnx")
    interface = read_interface(tmp_path / "old.onnx")
    assert interface == Interface("detr", ("a",), 64, 64, False, None, False) and interface.rule is None and not interface.nms


def test_detections_of_an_answer_are_in_pixels_of_the_image():
    scores, boxes = scored(1, 3)
    sizes = torch.tensor([[50, 200]])
    (raw,) = comparison._detections(Scored(scores, boxes, None, RULE), sizes)
    (inside,) = comparison._detections(Found(*chosen_detections(scores, boxes, RULE, 300)), sizes)
    assert torch.equal(raw.labels, inside.labels) and torch.equal(raw.scores, inside.scores)
    torch.testing.assert_close(raw.boxes, inside.boxes)
    assert float(raw.boxes[:, 0::2].max()) > 60 and float(raw.boxes[:, 1::2].max()) <= 50


def test_a_dense_detector_predicts_on_images_of_a_folder(tmp_path: Path, data: Path):  # noqa: F811
    saved(tmp_path / "model", "fcos")
    images = next(path.parent for path in data.rglob("*.png"))
    code, out, err = command("predict", str(tmp_path / "model"), str(images), "--out", str(tmp_path / "out"))
    assert code == 0 and "images, " in out, err
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["category_id"] for row in rows} <= {1, 2, 3} and len(rows) > 10
    assert tiny("fcos").reads_padding
