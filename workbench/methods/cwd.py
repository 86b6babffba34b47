"""Implements CWD (Shu et al., ICCV 2021), channel-wise knowledge distillation for dense prediction."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from workbench.datasets.targets import TargetBatch
from workbench.detectors.output import DetectorOutput
from workbench.detectors.whole_batch import images_over_processes
from workbench.methods.context import MethodContext
from workbench.methods.maps import MapConfig, MapMethod


class CWDConfig(MapConfig, frozen=True):
    """Configures CWD, which compares each channel as a distribution over the cells.

    The weight of 5 and the temperature of 1 on every level are those of the released code (pppppM/mmdetection-distiller@7a8a130,
    configs/distillers/cwd/cwd_retina_rx101_64x4d_distill_retina_r50_fpn_2x_coco.py).
    """

    published_weights: ClassVar[dict[str, float]] = {"channels": 5.0}
    method: Literal["cwd"] = "cwd"
    """Selects the method."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of the softmax over the cells of a channel."""

    @property
    def term_names(self) -> tuple[str, ...]:
        """See ``BaseMethodConfig``."""
        return ("channels",)


class CWD(MapMethod):
    """CWD with the term ``channels``, which treats each channel as a distribution over cells.

    The term is T^2 times the KL divergence of the student's distribution from the teacher's, averaged over images and channels and summed
    over levels. The released code keeps the teacher's entropy, a constant, in the sum.
    """

    name = "cwd"
    Config = CWDConfig
    terms = "channels"
    citation = "CWD, ICCV 2021; released code pppppM/mmdetection-distiller@7a8a130"
    config: CWDConfig

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, targets: TargetBatch, context: MethodContext) -> dict[str, Tensor]:
        """See ``Method.forward``."""
        temperature = self.config.temperature
        losses: list[Tensor] = []
        images = images_over_processes(len(targets.valid), targets.valid.device)
        for pair in self.map_pairs(student, teacher):
            outside = ~pair.inside.flatten(2)
            own, other = (
                (values.flatten(2) / temperature).masked_fill(outside, -torch.inf).log_softmax(-1).masked_fill(outside, 0.0)
                for values in (pair.student, pair.teacher)
            )
            divergence = (other.exp() * (other - own)).masked_fill(outside, 0.0).sum()
            losses.append(temperature**2 * divergence / (images * other.shape[1]))
        return {"channels": torch.stack(losses).sum()}
