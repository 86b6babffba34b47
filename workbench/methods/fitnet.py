"""Implements FitNet (Romero et al., ICLR 2015), in which the student's feature map regresses the teacher's."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from workbench.datasets.targets import TargetBatch
from workbench.detectors.output import DetectorOutput
from workbench.detectors.whole_batch import over_processes
from workbench.methods.context import MethodContext
from workbench.methods.maps import MapConfig, MapMethod


class FitNetConfig(MapConfig, frozen=True):
    """Configures FitNet, which makes the student's feature map regress the teacher's.

    The loss is the mean squared error of adapted features, the form in which detection papers compare with FitNet. The weight of 1 on every
    level is that of LutingWang/HEAD@1179b78, configs/kd/fitnet.py.
    """

    published_weights: ClassVar[dict[str, float]] = {"features": 1.0}
    method: Literal["fitnet"] = "fitnet"
    """Selects the method."""

    @property
    def term_names(self) -> tuple[str, ...]:
        """See ``BaseMethodConfig``."""
        return ("features",)


class FitNet(MapMethod):
    """FitNet with the term ``features``: mean squared error over cells and channels (the hint loss), summed over levels.

    Only the hint loss applies to a detector. The second stage of the paper, which softens the class outputs of a classifier, is left out,
    and the hint is trained together with the detection loss instead of before it.
    """

    name = "fitnet"
    Config = FitNetConfig
    terms = "features"
    citation = "FitNets, ICLR 2015, hint loss; weight of LutingWang/HEAD@1179b78 configs/kd/fitnet.py"
    config: FitNetConfig

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, targets: TargetBatch, context: MethodContext) -> dict[str, Tensor]:
        """See ``Method.forward``."""
        errors = [
            (pair.teacher - pair.student).square().sum() / (over_processes(pair.cells.sum()) * pair.teacher.shape[1])
            for pair in self.map_pairs(student, teacher)
        ]
        return {"features": torch.stack(errors).sum()}
