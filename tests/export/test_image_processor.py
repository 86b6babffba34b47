"""What a user of an exported folder gets through transformers alone is what the detector itself finds."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.examples import SPEC
from tests.families import NAMES, tiny
from workbench.datasets.base import Dataset
from workbench.datasets.batches import evaluation_batches
from workbench.datasets.coco import write_coco
from workbench.datasets.opening import open_dataset
from workbench.datasets.shapes import ShapesConfig, generate_shapes
from workbench.detectors.registry import FAMILIES, load_detector
from workbench.detectors.transformers_adapter import TransformersDetector
from workbench.errors import ExportError
from workbench.export.image_processor import FILE, check_image_processor, write_image_processor
from workbench.export.interface import transform_of
from workbench.export.transformers_folder import export_transformers

IN_TRANSFORMERS = [name for name in NAMES if issubclass(FAMILIES[name].detector, TransformersDetector)]
RESIZES = (None, {"height": 128, "width": 64}, {"shortest": [64, 80], "longest": 120})


def asked_as_a_user(folder: Path, picture: Image.Image) -> dict[str, torch.Tensor]:
    """Scores, labels and boxes in pixels, best first, through nothing but transformers."""
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    processor: Any = AutoImageProcessor.from_pretrained(folder)
    model: Any = AutoModelForObjectDetection.from_pretrained(folder).eval()
    with torch.no_grad():
        answers = model(**processor(images=picture, return_tensors="pt"))
    (found,) = processor.post_process_object_detection(answers, threshold=0.0, target_sizes=[(picture.height, picture.width)])
    order = found["scores"].argsort(descending=True, stable=True)
    return {name: values[order] for name, values in found.items()}


def test_transformers_alone_finds_in_an_image_what_our_own_teacher_finds(tmp_path: Path):
    write_coco(generate_shapes(ShapesConfig(train=1, val=8), "val"), tmp_path / "data")
    export_transformers("shapes_teacher", tmp_path / "plain", str(tmp_path / "data"))
    dataset = open_dataset(tmp_path / "data", "val")
    detector = load_detector(tmp_path / "plain").eval()
    for index in (0, 7):
        found = asked_as_a_user(tmp_path / "plain", Image.fromarray(dataset.image(index)))
        batch = next(evaluation_batches(dataset, transform_of(detector), 1, [index]))
        with torch.no_grad():
            (ours,) = detector.detections(detector(batch.images, batch.padding), batch.sizes, len(found["scores"]))
        sure = ours.scores > 0.3
        assert sure.any()
        torch.testing.assert_close(found["scores"][: len(sure)][sure], ours.scores[sure], atol=1e-4, rtol=0)
        inside = found["boxes"].clip(0, dataset.records[index].width)  # ours end at the edge of the image, which is a square here
        torch.testing.assert_close(inside[: len(sure)][sure], ours.boxes[sure], atol=1e-2, rtol=0)
        assert found["labels"][: len(sure)][sure].tolist() == ours.labels[sure].tolist()


@pytest.mark.parametrize("family", IN_TRANSFORMERS)
def test_every_family_has_a_processor_that_prepares_real_images_as_its_evaluation_does_and_reads_its_scores(
    family: str, tmp_path: Path, shared_data: Path
):
    dataset = open_dataset(shared_data / "bccd" / "BCCD", "val")
    spec = dataclasses.replace(SPEC, resize={"height": 64, "width": 128})
    detector = tiny(family, spec=spec).eval()
    detector.save(tmp_path)
    write_image_processor(tmp_path, detector, transform_of(detector))
    check_image_processor(tmp_path, dataset, transform_of(detector))
    found = asked_as_a_user(tmp_path, Image.fromarray(dataset.image(0)))
    batch = next(evaluation_batches(dataset, transform_of(detector), 1, [0]))
    with torch.no_grad():
        (ours,) = detector.detections(detector(batch.images, batch.padding), batch.sizes, 1)
    # a byte of a resized pixel may differ, which moves the scores of random weights a little
    assert float(found["scores"][0]) == pytest.approx(float(ours.scores[0]), abs=0.02)


@pytest.mark.parametrize("resize", RESIZES)
def test_sizes_are_those_of_the_evaluation_and_a_single_image_is_never_padded(resize: Any, tmp_path: Path, shared_data: Path):
    dataset = open_dataset(shared_data / "bccd" / "BCCD", "val")
    detector = tiny("detr", spec=dataclasses.replace(SPEC, resize=resize))
    write_image_processor(tmp_path, detector, transform_of(detector))
    check_image_processor(tmp_path, dataset, transform_of(detector))
    from transformers import AutoImageProcessor

    processor: Any = AutoImageProcessor.from_pretrained(tmp_path)
    wide, high = Image.new("RGB", (90, 60)), Image.new("RGB", (60, 90))
    alone = processor(images=wide, return_tensors="pt")
    assert alone["pixel_mask"].all() and alone["pixel_mask"].shape[-2:] == alone["pixel_values"].shape[-2:]
    both = processor(images=[wide, high], return_tensors="pt")
    sizes = [transform_of(detector).evaluation_ops(*picture.size) for picture in (wide, high)]
    widths = [ops[0]["width"] if ops else picture.width for ops, picture in zip(sizes, (wide, high), strict=True)]
    assert both["pixel_values"].shape[-1] == max(widths)


@pytest.mark.parametrize(("name", "value"), [("image_mean", [0.1, 0.5, 0.5]), ("do_rescale", False), ("size", {"height": 96, "width": 90})])
def test_a_processor_that_prepares_images_otherwise_is_refused(name: str, value: Any, tmp_path: Path):
    dataset: Dataset = open_dataset("shapes", "val", train=1, val=2, test=1)
    detector = tiny("detr", spec=dataclasses.replace(SPEC, resize={"height": 96, "width": 96}))
    write_image_processor(tmp_path, detector, transform_of(detector))
    check_image_processor(tmp_path, dataset, transform_of(detector))
    (tmp_path / FILE).write_text(json.dumps({**json.loads((tmp_path / FILE).read_text()), name: value}))
    with pytest.raises(ExportError, match=r"image 1 of .* differently from the detector's training"):
        check_image_processor(tmp_path, dataset, transform_of(detector))
