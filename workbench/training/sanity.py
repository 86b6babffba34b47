"""Checks before distillation whether the teacher detects anything on this data: a useless teacher would silently teach nothing."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from workbench.analysis.detection.ap import coco_ap
from workbench.analysis.diagnosis.teacher_input import DOUBTFUL_AP, LEAST_AP, mends, readings_path
from workbench.boxes import cxcywh_to_xyxy, pairwise_iou_and_giou
from workbench.datasets.batches import Batch, evaluation_batches
from workbench.datasets.transforms import FixedSize, ShortestSide, Transform, TransformConfig
from workbench.detectors.output import DetectorOutput, TwoStageOutput, probability
from workbench.errors import IncompatibleError, RunError
from workbench.files import write_json
from workbench.recipe.loading import stored_recipe
from workbench.recipe.setup import FrozenTeacher, Setup, build, stored_teacher
from workbench.store.run import Run
from workbench.training.evaluation import collect_detections

SAMPLE = 200
_INPUTS = {
    "ImageNet mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "pixels in 0..1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "pixels in -1..1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "pixels in 0..255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}


@dataclass(frozen=True)
class Reading:
    """Result of a teacher whose input or output is interpreted in another way.

    Attributes:
        cause: What would be wrong: box format, class map, normalisation, resolution.
        how: The other interpretation, in words.
        advice: What to correct.
        ap: The AP it reaches, 0..1.
    """

    cause: str
    how: str
    advice: str
    ap: float


def check_teacher(setup: Setup) -> float:
    """Returns the teacher's AP (0..1) on at most 200 images of the validation split.

    Raises:
        IncompatibleError: the AP is below 1; or it is below 40, and another class map, normalisation, resolution or box format raises it
            by half and by at least 10 AP. The message says which.
    """
    ap, readings = try_teacher(setup)
    if not readings:
        return ap
    best = max(readings, key=lambda reading: reading.ap)
    if mends(ap, best.ap):
        cause = f"Likely cause: {best.cause}. {best.how} it reaches {100 * best.ap:.1f} AP: {best.advice}."
    elif ap < LEAST_AP:
        cause = ("It would teach nothing. No other normalisation, size, box format or class order helps: the teacher was trained on other "
                 "images, or hardly at all.")  # fmt: skip
    else:
        return ap
    raise IncompatibleError(f"the teacher reaches {100 * ap:.2f} AP on split '{setup.val.split}' of '{setup.val.name}'. {cause}")


def try_teacher(setup: Setup) -> tuple[float, list[Reading]]:
    """Returns the teacher's AP on at most 200 validation images, and the readings that were tried if it is below 40 AP."""
    assert setup.teacher is not None
    answers = _answers(setup, setup.teacher, setup.evaluation_transform)
    ap = _ap(setup, answers)
    return ap, [] if ap >= DOUBTFUL_AP else list(_readings(setup, answers))


def keep_readings(run: Run) -> None:
    """Tries the teacher of an existing run and writes the result below the run's ``derived/``, where the diagnosis reads it.

    Raises:
        WorkbenchError: data or teacher no longer exist, or the run's folder cannot be written.
    """
    info = run.info()
    setup = build(stored_recipe(info["recipe"], str(run.info_path)), stored_teacher(run))
    if setup.teacher_hash != info.get("teacher_hash"):
        raise RunError(f"the teacher of run '{run.name}' has other weights today than it taught with. Restore it.")
    ap, readings = try_teacher(setup)
    images = min(SAMPLE, len(setup.val))
    write_json(readings_path(run), {"ap": ap, "images": images, "readings": [dataclasses.asdict(reading) for reading in readings]})


def _readings(setup: Setup, answers: list[tuple[Batch, DetectorOutput]]) -> Iterator[Reading]:
    assert setup.teacher is not None
    detector, student = setup.teacher.detector, setup.student.spec
    corners = [(batch, _read_as_corners(output)) for batch, output in answers]
    yield Reading("box format", "With its boxes read as x1, y1, x2, y2", "its box head predicts another format", _ap(setup, corners))
    order = _best_class_order(setup, answers)
    if order != list(range(len(order))):
        permuted = [(batch, _in_order(output, order)) for batch, output in answers]
        names = ", ".join(detector.spec.classes[order.index(column)] for column in range(len(order)))
        yield Reading("class map", f"With its classes named {names}", "correct its workbench.json", _ap(setup, permuted))
    for name, (mean, std) in {**_INPUTS, "the recipe's mean and std": (student.mean, student.std)}.items():
        changed = FrozenTeacher(detector, student, dataclasses.replace(detector.spec, mean=mean, std=std))
        found = _ap(setup, _answers(setup, changed, setup.evaluation_transform))
        yield Reading("normalisation", f"With {name}", "correct mean, std in its workbench.json", found)
    for name, resize in _sizes(setup):
        config = setup.evaluation_transform.config.model_copy(update={"resize": resize})
        found = _ap(setup, _answers(setup, setup.teacher, Transform(config)))
        yield Reading("resolution", f"With images {name}", "set data.transform.resize in the recipe, or train it at this size", found)


def _sizes(setup: Setup) -> Iterator[tuple[str, FixedSize | ShortestSide | None]]:
    """Yields the image size that the teacher was trained on, if it differs from the recipe's and the teacher accepts it."""
    assert setup.teacher is not None
    detector = setup.teacher.detector
    own = TransformConfig.model_validate({"resize": detector.spec.resize}).resize
    step = detector.side_multiple
    fits = isinstance(own, FixedSize) and not (own.height % step or own.width % step)
    if own != setup.evaluation_transform.config.resize and (fits or (detector.reads_padding and step == 1)):
        yield "in their original size" if own is None else "resized as in its workbench.json", own


def _answers(setup: Setup, teacher: FrozenTeacher, transform: Transform) -> list[tuple[Batch, DetectorOutput]]:
    indices = list(range(min(SAMPLE, len(setup.val))))
    batches = evaluation_batches(setup.val, transform, 16, indices)
    return [(batch, teacher(batch.images, batch.padding)) for batch in batches]


def _ap(setup: Setup, answers: list[tuple[Batch, DetectorOutput]]) -> float:
    assert setup.teacher is not None
    detector = setup.teacher.detector
    found = [(batch, detector.detections(output, batch.sizes)) for batch, output in answers]
    truth, seen = setup.val.coco(), {image_id for batch, _ in answers for image_id in batch.image_ids}
    truth["images"] = [image for image in truth["images"] if image["id"] in seen]
    truth["annotations"] = [annotation for annotation in truth["annotations"] if annotation["image_id"] in seen]
    ap = coco_ap(truth, collect_detections(setup.val, found, detector.spec.classes)).ap
    return 0.0 if np.isnan(ap) else ap


def _read_as_corners(output: DetectorOutput) -> DetectorOutput:
    """Returns the output as if its boxes had been predicted as x1, y1, x2, y2."""
    if isinstance(output, TwoStageOutput) and output.class_boxes is not None:
        output = dataclasses.replace(output, class_boxes=_corners_as_centres(output.class_boxes))
    return dataclasses.replace(output, boxes=_corners_as_centres(output.boxes))


def _in_order(output: DetectorOutput, order: list[int]) -> DetectorOutput:
    """Returns the output with its class columns in another order; a last column for no object stays in place."""
    if isinstance(output, TwoStageOutput) and output.class_boxes is not None:
        output = dataclasses.replace(output, class_boxes=output.class_boxes[:, :, order])
    columns = [*order, *range(len(order), output.logits.shape[-1])]
    return dataclasses.replace(output, logits=output.logits[..., columns])


def _corners_as_centres(boxes: Tensor) -> Tensor:
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, (high - low).clamp(min=0)], -1)


def _best_class_order(setup: Setup, answers: list[tuple[Batch, DetectorOutput]]) -> list[int]:
    """Assigns to each teacher class the column that fires most on targets of that name, one-to-one; in doubt, the class's own column."""
    assert setup.teacher is not None
    names = setup.teacher.detector.spec.classes
    own = [names.index(name) for name in setup.val.classes]
    votes = 1e-6 * np.eye(len(names))
    for batch, output in answers:
        scores = probability(output)[-1][..., : len(names)]
        for image, valid in enumerate(batch.targets.valid):
            if not valid.any():
                continue
            boxes, labels = batch.targets.boxes[image, valid], batch.targets.labels[image, valid]
            iou, _ = pairwise_iou_and_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(output.boxes[-1, image]))
            best = (iou * scores[image].amax(-1)).argmax(-1)
            for label, query in zip(labels.tolist(), best.tolist(), strict=True):
                votes[own[label]] += scores[image, query].numpy()
    return linear_sum_assignment(-votes)[1].tolist()
