"""Implements PKD (Cao et al., NeurIPS 2022), imitation of features by Pearson correlation."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from workbench.datasets.targets import TargetBatch
from workbench.detectors.output import DetectorOutput
from workbench.detectors.whole_batch import from_all_processes
from workbench.methods.context import MethodContext
from workbench.methods.maps import MapConfig, MapMethod, MapPair

EPS = 1e-6
TINY = 1e-24  # variance below which a channel counts as constant and has no gradient


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
            errors.append(_standardised_error(pair))
        return {"features": torch.stack(errors).sum()}


def _standardised_error(pair: MapPair) -> Tensor:
    """Returns half the mean squared error of two maps, each standardised per channel over the cells of the whole batch.

    The square is multiplied out, because only sums over cells can be added up over processes.
    """
    count = pair.cells.sum().to(pair.student)
    own_mean, other_mean = (values.sum((0, 2, 3)) / count for values in (pair.student, pair.teacher))
    own, other = (
        (values - mean[:, None, None]).masked_fill(~pair.inside, 0.0)
        for values, mean in ((pair.student, own_mean), (pair.teacher, other_mean))
    )
    products = [(a * b).sum((0, 2, 3)) for a, b in ((own, own), (other, other), (own, other))]
    found = from_all_processes(torch.stack([count.expand_as(own_mean), own_mean, other_mean, *products]))
    # products of each process's values about its own means, and of these means about the common one
    counts, own_means, other_means = found[:, :3].unbind(1)
    total = counts.sum(0)
    own_apart, other_apart = (means - (counts * means).sum(0) / total for means in (own_means, other_means))
    pairs = ((own_apart, own_apart), (other_apart, other_apart), (own_apart, other_apart))
    own_square, other_square, product = found[:, 3:].sum(0) + torch.stack([(counts * a * b).sum(0) for a, b in pairs])
    own_scale, other_scale = ((square / (total - 1)).clamp(min=TINY).sqrt() + EPS for square in (own_square, other_square))
    error = own_square / own_scale.square() + other_square / other_scale.square() - 2 * product / (own_scale * other_scale)
    return (error / (2 * total)).mean()
