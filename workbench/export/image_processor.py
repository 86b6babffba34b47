"""Writes the image processor that transformers loads with an exported model, so that the folder says how to prepare images."""

from pathlib import Path
from typing import Any

import torch

from workbench.datasets.base import Dataset
from workbench.datasets.batches import evaluation_batches
from workbench.datasets.transforms import FixedSize, Transform
from workbench.detectors.detector import Detector
from workbench.errors import ExportError
from workbench.files import write_json

FILE = "preprocessor_config.json"
CHECKED_IMAGES = 8
BILINEAR = 2  # Pillow's number
# transformers resizes with torchvision, the workbench with Pillow; both use antialiasing on bytes and sometimes differ by a byte. They also
# round sides that keep their ratio differently.
BYTES_APART, PIXELS_APART = 2, 1


def write_image_processor(folder: Path, detector: Detector, transform: Transform) -> None:
    """Writes ``preprocessor_config.json``, which ``AutoImageProcessor.from_pretrained(folder)`` loads.

    Images are padded only in a batch of several sizes, to the largest of them and with a mask. They are never padded for models that
    ignore masks.

    Args:
        folder: folder of the model.
        detector: the detector; it determines the kind of processor, whose ``post_process_object_detection`` must fit its scores.
        transform: its evaluation transform.
    """
    kind = "RTDetr" if not detector.reads_padding else "Detr" if detector.activation == "softmax" else "DeformableDetr"
    resize = transform.config.resize
    size: dict[str, int] = {"height": 1, "width": 1}  # required, but unused if nothing is resized
    if isinstance(resize, FixedSize):
        size = {"height": resize.height, "width": resize.width}
    elif resize is not None:
        size = {"shortest_edge": max(resize.shortest), "longest_edge": resize.longest}
    write_json(folder / FILE, {
        "image_processor_type": f"{kind}ImageProcessor", "format": "coco_detection",
        "do_resize": resize is not None, "size": size, "resample": BILINEAR, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(transform.config.mean), "image_std": list(transform.config.std),
        "do_convert_annotations": True, "do_pad": detector.reads_padding,
    })  # fmt: skip


def check_image_processor(folder: Path, dataset: Dataset, transform: Transform) -> None:
    """Checks that transformers prepares a few images of the folder's user as the detector's evaluation does.

    Raises:
        ExportError: the prepared images differ.
    """
    from transformers import AutoImageProcessor

    processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    std = torch.tensor(transform.config.std).view(1, 3, 1, 1)
    for index in range(min(CHECKED_IMAGES, len(dataset))):
        ours = next(evaluation_batches(dataset, transform, 1, [index])).images
        theirs = processor(images=dataset.image(index).copy(), return_tensors="pt")["pixel_values"]
        sides = [abs(a - b) for a, b in zip(ours.shape, theirs.shape, strict=True)]
        difference = float((255 * std * (ours - theirs)).abs().max()) if not any(sides) else 0.0
        if max(sides) > PIXELS_APART or difference > BYTES_APART + 1e-3:
            shapes = f"{tuple(theirs.shape[2:])} pixels instead of {tuple(ours.shape[2:])}"
            what = shapes if any(sides) else f"{difference:.1f} of 255 apart"
            raise ExportError(
                f"transformers prepares image {dataset.records[index].image_id} of '{dataset.name}' differently from the "
                f"detector's training: {what}. Nothing was written. Export the detector as ONNX (--onnx)."
            )
