"""Measures at every evaluation how similar the student's own features are to the teacher's, without an adapter."""

import math
from typing import Any

import numpy as np
import torch

from workbench.analysis.alignment import linear_cka
from workbench.datasets.base import Dataset
from workbench.datasets.batches import evaluation_batches
from workbench.detectors.output import DetectorOutput, Level
from workbench.methods.levels import Resolved, levels_of
from workbench.recipe.setup import Setup

IMAGES = 16
CELLS = 100  # per image and level, evenly spaced, because neighbouring cells are nearly alike
KINDS: tuple[Resolved, ...] = ("memory", "neck", "backbone")
UNLIKE_KINDS: tuple[Resolved, ...] = ("head", "neck", "backbone")  # of a detector with queries and one without


class FeatureAlignment:
    """Compares the student's features with the teacher's on the same few images.

    Args:
        setup: models of a run that has a teacher.
        dataset: its first images are used.
        device: device of both models.
    """

    def __init__(self, setup: Setup, dataset: Dataset, device: torch.device):
        assert setup.teacher is not None
        self.setup = setup
        batch = next(iter(evaluation_batches(dataset, setup.evaluation_transform, IMAGES, list(range(min(IMAGES, len(dataset)))))))
        self.batch = batch.to(device)
        own, other = setup.student.provides, setup.teacher.detector.provides
        kinds = KINDS if ("queries" in own) == ("queries" in other) else UNLIKE_KINDS
        self.kinds: list[Resolved] = [kind for kind in kinds if kind in own & other]
        with torch.no_grad():
            self.teacher = self._cells(setup.teacher(self.batch.images, self.batch.padding))

    @torch.no_grad()
    def measure(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Returns the linear CKA by kind of level (``KINDS`` or ``UNLIKE_KINDS``) and stride, for those that both models have."""
        student = self.setup.student
        training = student.training
        own = self._cells(student.eval()(self.batch.images, self.batch.padding))
        student.train(training)
        found: dict[str, dict[str, Any]] = {}
        for (kind, stride), (cells, image) in own.items():
            other = self.teacher.get((kind, stride))
            if other is not None and len(other[0]) == len(cells):
                value = linear_cka(cells, other[0], image)
                bounded = {} if math.isnan(value.low) else {"low": value.low, "high": value.high}
                numbers = {"value": value.value, "low": None, "high": None, **bounded, "images": value.images, "cells": value.cells}
                found.setdefault(kind, {})[str(stride)] = {**numbers, "without": list(value.without)}
        return found

    def _cells(self, output: DetectorOutput) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
        """Returns the ``[M, D]`` features of the sampled cells and each cell's image, by kind and stride."""
        return {(kind, level.stride): _sampled(level) for kind in self.kinds for level in levels_of(output, kind)}


def _sampled(level: Level) -> tuple[np.ndarray, np.ndarray]:
    height, width = level.features.shape[-2:]
    every = max(1, math.ceil(math.sqrt(height * width / CELLS)))
    features = level.features[:, :, ::every, ::every].float().permute(0, 2, 3, 1).cpu().numpy()
    inside = ~level.padding[:, ::every, ::every].cpu().numpy()
    return features[inside], np.nonzero(inside)[0]
