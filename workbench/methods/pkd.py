"""Implements PKD (Cao et al., NeurIPS 2022), imitation of features by Pearson correlation."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from workbench.datasets.targets import TargetBatch
from workbench.detectors.output import DetectorOutput
from workbench.methods.context import MethodContext
from workbench.methods.maps import MapConfig, MapMethod

EPS = 1e-6


class PKDConfig(MapConfig, frozen=True):
    """Configures PKD, which raises the Pearson correlation of the student's feature maps with the teacher's.

    The weight of 10 is that of one-stage detectors, on four levels (open-mmlab/mmrazor@90c7af1,
    configs/distill/mmdet/pkd/pkd_fpn_retina_x101_retina_r50_2x_coco.py; two-stage detectors use 6 there).
    """

    published_weights: ClassVar[dict[str, float]] = {"features": 10.0}
    method: Literal["pkd"] = "pkd"
    """Selects the method."""

    @property
    def term_names(self) -> tuple[str, ...]:
        """See ``BaseMethodConfig``."""
        return ("features",)


class PKD(MapMethod):
    """PKD with the term ``features``: half the mean squared error of maps that are standardised per channel over the batch.

    This is ``PKDLoss`` of the released code. It equals 1 - r with Pearson's r, up to the bias of the variance, and is summed over levels.
    """

    name = "pkd"
    Config = PKDConfig
    terms = "features"
    citation = "PKD, NeurIPS 2022; released code open-mmlab/mmrazor@90c7af1"
    config: PKDConfig

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, targets: TargetBatch, context: MethodContext) -> dict[str, Tensor]:
        """See ``Method.forward``."""
        errors: list[Tensor] = []
        for pair in self.map_pairs(student, teacher):
            inside = pair.inside[:, 0]
            own, other = (_standardised(values.movedim(1, -1)[inside]) for values in (pair.student, pair.teacher))
            errors.append((own - other).square().mean() / 2)
        return {"features": torch.stack(errors).sum()}


def _standardised(values: Tensor) -> Tensor:
    """Standardises ``[cells, D]`` to mean 0 and standard deviation 1 in every channel."""
    return (values - values.mean(0)) / (values.std(0) + EPS)
