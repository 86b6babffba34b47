"""Detects objects in images without targets and writes COCO results and drawn images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from workbench.datasets.base import Dataset, Record
from workbench.datasets.batches import evaluation_batches
from workbench.datasets.images import FolderImages, read_header
from workbench.datasets.object_masks import decoded
from workbench.datasets.transforms import Transform, TransformConfig
from workbench.detectors.detector import Detections, Detector
from workbench.detectors.registry import load_detector
from workbench.device import resolve_device
from workbench.errors import DataError, RunError
from workbench.files import replacing, write_json
from workbench.recipe.setup import find_detector
from workbench.store.run import Run
from workbench.tasks.mask_drawing import with_masks

DETECTIONS_PER_IMAGE = 100
RESULTS, DRAWN = "results.json", "drawn"
# Okabe-Ito, assigned to classes in turn
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")


@dataclass(frozen=True)
class Predictions:
    """Summary of a prediction.

    Attributes:
        images: Number of images predicted.
        detections: Number of detections in results.json.
        skipped: One line per skipped file: its name and the reason.
    """

    images: int
    detections: int
    skipped: tuple[str, ...]


def predict(detector: str | Run, images: Path, out: Path, threshold: float, device: str) -> Predictions:
    """Runs a detector on an image, or on the images that lie directly in a folder, ordered by name.

    Writes ``results.json`` (COCO results: image_id, category_id, bbox xywh in pixels of the upright image, score, and of a detector of
    masks segmentation as compressed RLE; the 100 best per image), ``images.json`` (what each image_id and category_id stands for) and
    ``drawn/<file name>.png``. Ids count from 1.

    Args:
        detector: an open run, the name or path of a run, a detector folder, or an embedded detector.
        images: file or folder.
        out: folder to write to.
        threshold: lowest score that is drawn; results.json holds every detection.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        CheckpointError: there is no such detector.
        DataError: there is no image to predict.
        DeviceError: this machine does not have the device.
        RunError: the folder holds predictions already; they are left as they are.

    Example:
        >>> predict(run, Path("photos"), Path("predictions"), threshold=0.3, device="auto")
    """
    where = resolve_device(device)
    if there := [name for name in (RESULTS, DRAWN) if (out / name).exists()]:
        raise RunError(f"{out} holds predictions already ({', '.join(there)}). Choose another folder with --out, or remove them.")
    model = load_detector(find_detector(detector).folder)
    dataset, skipped = _open_images(images, model)
    spec = model.spec
    transform = Transform(TransformConfig.model_validate({"resize": spec.resize, "mean": spec.mean, "std": spec.std}))
    model.to(where).eval()
    results: list[dict[str, Any]] = []
    done: list[dict[str, Any]] = []
    for index, record in enumerate(dataset.records):
        try:
            found = _detect(model, dataset, index, transform, where)
            _draw(dataset.image(index), found, spec.classes, threshold, out / DRAWN / f"{record.file_name}.png")
        except DataError as error:
            skipped.append(str(error))
            continue
        results += _coco_results(record, found)
        done.append({"id": record.image_id, "file_name": record.file_name, "width": record.width, "height": record.height})
    write_json(out / RESULTS, results)
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(spec.classes)]
    write_json(out / "images.json", {"images": done, "categories": categories})
    return Predictions(len(done), len(results), tuple(skipped))


def _open_images(images: Path, model: Detector) -> tuple[Dataset, list[str]]:
    """Returns the readable images as a dataset without targets, and a line for each file that is not a readable image."""
    if images.is_dir():
        candidates = sorted((path for path in images.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)
    elif images.is_file():
        candidates = [images]
    else:
        raise DataError(f"{images} is neither an image nor a folder. Check the path.")
    files: list[Path] = []
    upright: list[bool] = []
    records: list[Record] = []
    skipped: list[str] = []
    nothing = np.zeros(0)
    for path in candidates:
        if path.is_dir():
            skipped.append(f"{path}: it is a folder; predict it separately")
            continue
        try:
            header = read_header(path)
        except DataError as error:
            skipped.append(str(error))
            continue
        files.append(path)
        upright.append(header.turned)
        width, height = header.displayed
        none = nothing.astype(np.int64)
        records.append(
            Record(len(files), path.name, width, height, np.zeros((0, 4)), none, none.astype(bool), none.astype(bool), none, nothing)
        )
    if not records:
        raise DataError(f"{images} contains no readable image. " + " ".join(skipped[:5]))
    classes = model.spec.classes
    return Dataset(images.name, "predict", classes, range(1, len(classes) + 1), records, FolderImages(files, upright)), skipped


@torch.no_grad()
def _detect(model: Detector, dataset: Dataset, index: int, transform: Transform, device: torch.device) -> Detections:
    """Detects objects in one image at a time, so that no image is padded and none affects another's result."""
    batch = next(evaluation_batches(dataset, transform, 1, [index])).to(device)
    return model.detections(model(batch.images, batch.padding), batch.sizes, DETECTIONS_PER_IMAGE)[0]


def _coco_results(record: Record, found: Detections) -> list[dict[str, Any]]:
    rows = zip(found.labels.tolist(), found.boxes.tolist(), found.scores.tolist(), strict=True)
    results: list[dict[str, Any]] = [
        {"image_id": record.image_id, "category_id": label + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for label, (x1, y1, x2, y2), score in rows
    ]
    for result, mask in zip(results, found.masks or (), strict=found.masks is not None):
        result["segmentation"] = {"size": [record.height, record.width], "counts": mask.decode("ascii")}
    return results


def _draw(image: np.ndarray, found: Detections, classes: tuple[str, ...], threshold: float, path: Path) -> None:
    """Draws masks, boxes, names and scores over the image, the best on top; small images are enlarged so that the names can be read."""
    factor = max(1, round(480 / max(image.shape[:2])))
    picture = Image.fromarray(image).resize((image.shape[1] * factor, image.shape[0] * factor), Image.Resampling.NEAREST)
    shown = [index for index, score in enumerate(found.scores.tolist()) if score >= threshold]
    if found.masks is not None:
        labels = found.labels.tolist()
        masks = ((decoded(found.masks[i], *image.shape[:2]), _COLOURS[labels[i] % len(_COLOURS)]) for i in reversed(shown))
        picture = Image.fromarray(with_masks(np.asarray(picture), masks))
    pen = ImageDraw.Draw(picture)
    line = max(2, max(picture.size) // 400)
    font = ImageFont.load_default(max(12, max(picture.size) // 60))
    rows = list(zip(found.labels.tolist(), found.scores.tolist(), (found.boxes * factor).tolist(), strict=True))
    for label, score, (x1, y1, x2, y2) in reversed([rows[index] for index in shown]):
        colour = _COLOURS[label % len(_COLOURS)]
        pen.rectangle((x1, y1, max(x2, x1), max(y2, y1)), outline=colour, width=line)
        text = f"{classes[label]} {score:.2f}"
        _, _, right, bottom = pen.textbbox((0, 0), text, font=font)
        y = y1 - bottom - 2 if y1 > bottom + 2 else y1
        pen.rectangle((x1, y, x1 + right + 4, y + bottom + 2), fill=colour)
        pen.text((x1 + 2, y), text, fill="black", font=font)
    with replacing(path) as temporary:
        picture.save(temporary, "PNG")
