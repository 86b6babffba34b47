"""Is the teacher any good on this data? Asked before distilling, because a teacher that is not teaches nothing, silently."""

import dataclasses

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from workbench.analysis.ap import coco_ap
from workbench.boxes import cxcywh_to_xyxy, pairwise_iou_and_giou
from workbench.datasets.loader import Batch, evaluation_batches
from workbench.detectors.output import DetectorOutput
from workbench.errors import IncompatibleError
from workbench.training.evaluation import collect_detections
from workbench.training.setup import FrozenTeacher, Setup

SAMPLE = 200
LEAST_AP = 0.01
_OTHER_INPUTS = {
    "ImageNet mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "pixels in 0..1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "pixels in -1..1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "pixels in 0..255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}


def check_teacher(setup: Setup) -> float:
    """AP of the teacher on (at most 200 images of) the validation split, 0..1.

    Raises:
        IncompatibleError: below 1 AP; the message says which change makes it better: class map, normalisation or box format.
    """
    assert setup.teacher is not None
    answers = _answers(setup, setup.teacher)
    ap = _ap(setup, answers)
    if ap < LEAST_AP:
        raise IncompatibleError(f"the teacher reaches {100 * ap:.2f} AP on split '{setup.val.split}' of '{setup.val.name}': it would teach "
                                f"nothing. {_cause(setup, answers, ap)}")
    return ap


def _cause(setup: Setup, answers: list[tuple[Batch, DetectorOutput]], ap: float) -> str:
    """The likeliest cause: the first repair that lifts AP well above what is asked."""
    assert setup.teacher is not None
    detector, student, enough = setup.teacher.detector, setup.student.spec, max(5 * LEAST_AP, 3 * ap)
    corners = [(batch, dataclasses.replace(output, boxes=_corners_as_centres(output.boxes))) for batch, output in answers]
    if (found := _ap(setup, corners)) >= enough:
        return f"Likely cause: box format. Read as x1, y1, x2, y2 its boxes reach {100 * found:.1f} AP: its box head is another code's."
    order = _best_class_order(answers, len(detector.spec.classes))
    if order != list(range(len(order))):
        permuted = [(batch, dataclasses.replace(output, logits=output.logits[..., order])) for batch, output in answers]
        if (found := _ap(setup, permuted)) >= enough:
            names = ", ".join(detector.spec.classes[order.index(column)] for column in range(len(order)))
            return f"Likely cause: class map. With its classes named {names} it reaches {100 * found:.1f} AP: correct its workbench.json."
    for name, (mean, std) in _OTHER_INPUTS.items():
        # the same detector, told another normalisation
        changed = FrozenTeacher(detector, dataclasses.replace(student))
        changed.same = False
        changed.scale = (torch.tensor(student.std) / torch.tensor(std))[:, None, None]
        changed.shift = ((torch.tensor(student.mean) - torch.tensor(mean)) / torch.tensor(std))[:, None, None]
        if (found := _ap(setup, _answers(setup, changed))) >= enough:
            return f"Likely cause: normalisation. With {name} it reaches {100 * found:.1f} AP: correct mean and std in its workbench.json."
    return "Neither another normalisation, box format nor class order helps: it knows other images or another size, or is hardly trained."


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


def _best_class_order(answers: list[tuple[Batch, DetectorOutput]], classes: int) -> list[int]:
    """For each class of the data, the teacher's column that fires most often on its targets, one-to-one."""
    votes = np.zeros((classes, classes))
    for batch, output in answers:
        scores = output.logits[-1][..., :classes].sigmoid()
        for image, targets in enumerate(batch.targets):
            iou, _ = pairwise_iou_and_giou(cxcywh_to_xyxy(targets.boxes), cxcywh_to_xyxy(output.boxes[-1, image]))
            best = (iou * scores[image].amax(-1)).argmax(-1) if len(targets.labels) else torch.zeros(0, dtype=torch.int64)
            for label, query in zip(targets.labels.tolist(), best.tolist(), strict=True):
                votes[label] += scores[image, query].numpy()
    return linear_sum_assignment(-votes)[1].tolist()
