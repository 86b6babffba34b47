"""A tiny Faster R-CNN, its outputs on random images, and targets for them."""

import copy
from functools import cache

import torch
from torch import Tensor

from tests.examples import SPEC, batch_of, images_of
from tests.families import tiny
from workbench.datasets.targets import TargetBatch, Targets
from workbench.detectors.faster_rcnn import FasterRcnn
from workbench.detectors.output import TwoStageOutput

SIZE = (64, 96)
CLASSES = len(SPEC.classes)
PADDED = (SIZE, (64, 80), (40, 96))


@cache
def shared() -> FasterRcnn:
    """One detector; tests that change it take a copy."""
    detector = tiny("faster_rcnn")
    assert isinstance(detector, FasterRcnn)
    return detector


def fresh(training: bool = False) -> FasterRcnn:
    return copy.deepcopy(shared()).train(training)


def run(detector: FasterRcnn, *sizes: tuple[int, int], targets: TargetBatch | None = None, seed: int = 7) -> TwoStageOutput:
    """A forward on random images of these heights and widths, whose draws are those of ``seed``."""
    torch.manual_seed(seed)
    return detector(*images_of(*sizes), targets)


def some_targets(*counts: int) -> TargetBatch:
    return batch_of(counts, CLASSES, torch.Generator().manual_seed(1))


def with_crowd(image: int = 0) -> TargetBatch:
    """Two images with two targets each; in one of them the left half is a crowd region."""
    boxes = torch.tensor([[0.75, 0.5, 0.3, 0.4], [0.25, 0.5, 0.5, 1.0]])
    return TargetBatch.of([Targets(boxes, torch.tensor([1, 0]), torch.tensor([True, index != image])) for index in range(2)])


def total(detector: FasterRcnn, output: TwoStageOutput, targets: TargetBatch) -> Tensor:
    losses = detector.losses(output, targets, 1.0)
    return torch.stack([detector.loss_weights[name] * value for name, value in losses.items()]).sum()
