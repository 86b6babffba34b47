"""Looks, before training, whether the levels of a detector without queries suit the images: targets that no candidate covers, cut cells."""

from collections.abc import Iterator

import numpy as np
import torch

from workbench.datasets.base import Dataset
from workbench.datasets.targets import TargetBatch, Targets
from workbench.datasets.transforms import FixedSize, ShortestSide, Transform, targets_after
from workbench.detectors.dense_detector import DenseDetector
from workbench.detectors.detector import Detector
from workbench.detectors.two_stage_detector import TwoStageDetector
from workbench.errors import ConfigError

SAMPLE = 200
WORTH_A_NOTE = 0.05  # share of targets without a candidate


def check_coverage(student: Detector, train: Dataset, transform: Transform) -> list[str]:
    """Returns a note if more than 5 % of the training targets, on 200 images at most, are covered by no anchor or point.

    Crowd and ignore regions are left out. Images are augmented as in training, but not read. A family whose assignment depends on what
    it predicts, and one without anchors or points, is not checked.

    Args:
        student: the detector to train.
        train: the training data.
        transform: the transform of training.

    Raises:
        ConfigError: no target is covered; the message says how large targets and candidates are.
    """
    if not isinstance(student, DenseDetector) or not student.geometric:
        return []
    covered: list[np.ndarray] = []
    sides: list[np.ndarray] = []
    for targets, size in _targets(train, transform):
        covered.append(student.covered(size[None], TargetBatch.of([targets]))[0].numpy()[targets.valid.numpy()])
        sides.append((targets.boxes[targets.valid, 2:] * size).prod(-1).sqrt().numpy())
    found, side = np.concatenate(covered or [np.zeros(0, bool)]), np.concatenate(sides or [np.zeros(0)])
    share = 1 - float(found.mean()) if len(found) else 0.0
    if share <= WORTH_A_NOTE:
        return []
    what = f"{student.uncovered}. {_sizes(side, student)}"
    if found.any():
        return [f"student {student.family}: {100 * share:.0f} % of {len(found):,} targets of the training images {what}."]
    raise ConfigError(
        f"student {student.family}: all of {len(found):,} targets of the training images {what}. Choose other levels or sizes of anchors "
        "for the student, or another data.transform.resize."
    )


def check_strides(student: Detector, size: FixedSize | ShortestSide | None) -> list[str]:
    """Returns a note if a stride of a detector without queries does not divide the one size that all images get.

    It harms little, because a cell at the edge sees padding for what is missing. Images of several sizes are padded anyway, and not noted.

    Args:
        student: the detector to train.
        size: size that images are brought to.
    """
    if not isinstance(student, DenseDetector | TwoStageDetector) or not isinstance(size, FixedSize):
        return []
    cut = [stride for stride in student.config.strides if size.height % stride or size.width % stride]
    if not cut:
        return []
    return [
        f"student {student.family}: images of {size.width}x{size.height} pixels are no multiple of the strides {', '.join(map(str, cut))}, "
        f"so that cells at their right or lower edge lie partly outside. Multiples of {max(cut)} in data.transform.resize avoid it."
    ]


def _targets(train: Dataset, transform: Transform) -> Iterator[tuple[Targets, torch.Tensor]]:
    """Yields the targets of evenly spread training images, augmented, and their width and height; images without any are left out."""
    rng = np.random.default_rng(0)
    holding = [index for index, record in enumerate(train.records) if record.trainable.any()]
    for place in np.linspace(0, len(holding) - 1, min(len(holding), SAMPLE)).round().astype(int):
        record = train.records[holding[place]]
        boxes, valid, (width, height) = targets_after(record, transform.draw(rng, record.width, record.height))
        yield Targets(*map(torch.from_numpy, (boxes, record.labels, valid))), torch.tensor([width, height], dtype=torch.float32)


def _sizes(targets: np.ndarray, student: DenseDetector) -> str:
    """Returns how large targets and candidates are, in words."""
    low, high = np.percentile(targets, [5, 95])
    strides = student.config.strides
    grid = student.grid_of(strides[-1], strides[-1], torch.device("cpu"))
    anchors = (grid.anchors[:, 2:] - grid.anchors[:, :2]).prod(-1).sqrt()
    between = f", anchors {anchors.min():.0f} to {anchors.max():.0f}" if anchors.any() else ""
    return (
        f"After the transform nine in ten targets are {low:.0f} to {high:.0f} pixels large (the root of their area){between}; the levels "
        f"have strides {', '.join(map(str, strides))}"
    )
