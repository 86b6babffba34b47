"""Is the teacher any good on this data? Asked before distilling, because a teacher that is not teaches nothing, silently."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from workbench.analysis.ap import coco_ap
from workbench.boxes import cxcywh_to_xyxy, pairwise_iou_and_giou
from workbench.datasets.loader import Batch, evaluation_batches
from workbench.detectors import DetectorOutput, probability
from workbench.errors import IncompatibleError
from workbench.training.evaluation import collect_detections
from workbench.training.setup import FrozenTeacher, Setup

SAMPLE = 200
LEAST_AP = 0.01
# a teacher below this is tried with its inputs and outputs read in other ways: two classes swapped still leave half of the AP
DOUBTFUL_AP = 0.4
_INPUTS = {
    "ImageNet mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "pixels in 0..1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "pixels in -1..1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "pixels in 0..255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}


def check_teacher(setup: Setup) -> float:
    """AP of the teacher on (at most 200 images of) the validation split, 0..1.

    Raises:
        IncompatibleError: below 1 AP, or below 40 AP where another class map, normalisation or box format makes it half as good again
            and better by 10 AP; the message says which.
    """
    assert setup.teacher is not None
    answers = _answers(setup, setup.teacher)
    ap = _ap(setup, answers)
    if ap >= DOUBTFUL_AP:
        return ap
    enough = 5 * LEAST_AP if ap < LEAST_AP else max(ap + 0.1, 1.5 * ap)
    cause, found = max(_repairs(setup, answers), key=lambda repair: repair[1])
    if found < enough:
        cause = ("It would teach nothing. Neither another normalisation, box format nor class order helps: it knows other images or "
                 "another size, or is hardly trained.")  # fmt: skip
    if ap < LEAST_AP or found >= enough:
        raise IncompatibleError(f"the teacher reaches {100 * ap:.2f} AP on split '{setup.val.split}' of '{setup.val.name}'. {cause}")
    return ap


def _repairs(setup: Setup, answers: list[tuple[Batch, DetectorOutput]]) -> Iterator[tuple[str, float]]:
    """Likely causes, and the AP that mending each would give."""
    assert setup.teacher is not None
    detector, student = setup.teacher.detector, setup.student.spec
    corners = [(batch, dataclasses.replace(output, boxes=_corners_as_centres(output.boxes))) for batch, output in answers]
    found = _ap(setup, corners)
    yield f"Likely cause: box format. Read as x1, y1, x2, y2 its boxes reach {100 * found:.1f} AP: its box head is another code's.", found
    order = _best_class_order(setup, answers)
    if order != list(range(len(order))):
        # a last column for no object stays where it is
        columns = [*order, *range(len(order), answers[0][1].logits.shape[-1])]
        permuted = [(batch, dataclasses.replace(output, logits=output.logits[..., columns])) for batch, output in answers]
        found = _ap(setup, permuted)
        names = ", ".join(detector.spec.classes[order.index(column)] for column in range(len(order)))
        yield f"Likely cause: class map. With its classes named {names} it reaches {100 * found:.1f} AP: correct its workbench.json.", found
    for name, (mean, std) in {**_INPUTS, "the recipe's mean and std": (student.mean, student.std)}.items():
        changed = FrozenTeacher(detector, student, dataclasses.replace(detector.spec, mean=mean, std=std))
        found = _ap(setup, _answers(setup, changed))
        yield f"Likely cause: normalisation. With {name} it reaches {100 * found:.1f} AP: correct mean, std in its workbench.json.", found


def _answers(setup: Setup, teacher: FrozenTeacher) -> list[tuple[Batch, DetectorOutput]]:
    indices = list(range(min(SAMPLE, len(setup.val))))
    batches = evaluation_batches(setup.val, setup.evaluation_transform, 16, indices)
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


def _corners_as_centres(boxes: Tensor) -> Tensor:
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, (high - low).clamp(min=0)], -1)


def _best_class_order(setup: Setup, answers: list[tuple[Batch, DetectorOutput]]) -> list[int]:
    """For each class of the teacher, the column that fires most on the targets of that name, one-to-one; its own in case of doubt."""
    assert setup.teacher is not None
    names = setup.teacher.detector.spec.classes
    own = [names.index(name) for name in setup.val.classes]
    votes = 1e-6 * np.eye(len(names))
    for batch, output in answers:
        scores = probability(output)[-1][..., : len(names)]
        for image, targets in enumerate(batch.targets):
            if not targets.valid.any():
                continue
            iou, _ = pairwise_iou_and_giou(cxcywh_to_xyxy(targets.boxes[targets.valid]), cxcywh_to_xyxy(output.boxes[-1, image]))
            best = (iou * scores[image].amax(-1)).argmax(-1)
            for label, query in zip(targets.labels[targets.valid].tolist(), best.tolist(), strict=True):
                votes[own[label]] += scores[image, query].numpy()
    return linear_sum_assignment(-votes)[1].tolist()
