"""Measures the AP of students on the same images again and again."""

from workbench.analysis.detection.ap import coco_ap
from workbench.datasets.base import Dataset
from workbench.datasets.batches import Batch, evaluation_batches
from workbench.datasets.transforms import Transform
from workbench.training.evaluation import BATCH, detect
from workbench.training.learner import Learner

HELD_PIXELS = 100_000_000
"""Images are decoded once and held in memory if they have no more pixels than this (1.2 GB as floats)."""


class Measure:
    """Computes AP on fixed images.

    Args:
        images: the images.
        transform: transform of evaluation images.
    """

    def __init__(self, images: Dataset, transform: Transform):
        self.images, self.transform = images, transform
        self._truth = images.coco()
        few = sum(record.width * record.height for record in images.records) <= HELD_PIXELS
        self._batches: list[Batch] | None = list(evaluation_batches(images, transform, BATCH)) if few else None

    def ap(self, learner: Learner) -> float:
        """Returns the AP (0..1, COCO, IoU 0.50:0.95) of a student in training; one that detects nothing has 0."""
        student = learner.setup.student
        with learner.averaged():
            detections = detect(student, self.images, self.transform, learner.accelerator.device, self._batches)
        student.train()
        return coco_ap(self._truth, detections).ap if len(detections) else 0.0
