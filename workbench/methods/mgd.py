"""Implements MGD (Yang et al., ECCV 2022), masked generative distillation."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector
from workbench.detectors.output import DetectorOutput
from workbench.detectors.whole_batch import images_over_processes
from workbench.methods.context import MethodContext, Pairing
from workbench.methods.maps import MapConfig, MapMethod


class MGDConfig(MapConfig, frozen=True):
    """Configures MGD, which generates the teacher's feature map from the student's, of which random cells are hidden.

    The weight of 2e-5 and the mask ratio of 0.65 are those of one-stage detectors (yzd-v/MGD@2c9da0b,
    det/configs/distillers/mgd/retina_rx101_64x4d_distill_retina_r50_fpn_2x_coco.py).
    """

    published_weights: ClassVar[dict[str, float]] = {"features": 2e-5}
    method: Literal["mgd"] = "mgd"
    """Selects the method."""
    mask_ratio: float = Field(0.65, ge=0, lt=1)
    """Share of the student's cells that are hidden from the generator (lambda)."""

    @property
    def term_names(self) -> tuple[str, ...]:
        """See ``BaseMethodConfig``."""
        return ("features",)


class MGD(MapMethod):
    """MGD with the term ``features``: a generator makes the teacher's map from the student's, in which random cells are hidden.

    The generator is a 3x3 convolution, ReLU and a 3x3 convolution. The squared error is summed over cells and channels, averaged over
    images and summed over levels.
    """

    name = "mgd"
    Config = MGDConfig
    terms = "features"
    citation = "MGD, ECCV 2022; released code yzd-v/MGD@2c9da0b"
    config: MGDConfig

    def __init__(self, config: MGDConfig, student: Detector, teacher: Detector, pairing: Pairing):
        super().__init__(config, student, teacher, pairing)
        self.generators = nn.ModuleDict({
            str(stride): nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for stride, width in self.widths.items()
        })  # fmt: skip
        # masks are a pure function of (run's seed, step), so that a resumed run repeats them and no other random stream is disturbed
        self.seed = int(torch.randint(2**31, ()))

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, targets: TargetBatch, context: MethodContext) -> dict[str, Tensor]:
        """See ``Method.forward``."""
        generator = torch.Generator().manual_seed(self.seed + context.training.step)
        errors: list[Tensor] = []
        images = images_over_processes(len(targets.valid), targets.valid.device)
        for pair in self.map_pairs(student, teacher):
            seen = (torch.rand(pair.inside.shape, generator=generator) >= self.config.mask_ratio).to(pair.student.device)
            made = self.generators[str(pair.stride)](pair.student * seen).float()
            errors.append((made - pair.teacher).square().masked_fill(~pair.inside, 0.0).sum() / images)
        return {"features": torch.stack(errors).sum()}
