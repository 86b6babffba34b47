"""Implements FKD (Zhang and Ma, ICLR 2021), attention-guided and non-local distillation for detectors."""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector
from workbench.detectors.output import DetectorOutput
from workbench.detectors.whole_batch import from_all_processes
from workbench.methods.context import MethodContext, Pairing
from workbench.methods.fgd import attention
from workbench.methods.maps import MapConfig, MapMethod


class FKDConfig(MapConfig, frozen=True):
    """Configures FKD, which distils features weighted by attention, and the relations that a non-local block finds.

    Weights and temperature are those of one-stage detectors in the authors' code, mmdet/models/detectors/single_stage.py of the
    supplementary material (openreview.net, uKhGRvM8QNH). The repository
    ArchipLab-LinfengZhang/Object-Detection-Knowledge-Distillation-ICLR2021@3e2bb66 points to it. The weights are 6 times those of
    two-stage detectors. The paper rounds them to 4e-4, 2e-2, 4e-4 and states temperature 0.5.
    """

    published_weights: ClassVar[dict[str, float]] = {"features": 4.2e-4, "channel": 2.4e-2, "spatial": 2.4e-2, "non_local": 4.2e-4}
    method: Literal["fkd"] = "fkd"
    """Selects the method."""
    temperature: float = Field(0.1, gt=0)
    """Temperature of the softmax in the attention masks. A lower one concentrates them."""

    @property
    def term_names(self) -> tuple[str, ...]:
        """See ``BaseMethodConfig``."""
        return tuple(self.published_weights)


class FKD(MapMethod):
    """FKD, whose terms are Euclidean norms over the whole batch (not squared, not divided), summed over levels.

    - ``features``: squared errors of adapted features, weighted by the mean of both spatial and of both channel attention masks.
    - ``channel``, ``spatial``: errors of the means over cells and over channels, each through an adaptor.
    - ``non_local``: error between the outputs of a non-local block on each side. Both blocks are trained, and the student's output goes
      through an adaptor.

    The adaptors exist even where widths are equal. If widths differ, a 1x1 convolution first maps the student to the teacher's width; the
    paper has only equal widths.
    """

    name = "fkd"
    Config = FKDConfig
    terms = "features, channel, spatial, non_local"
    citation = "FKD, ICLR 2021; released code in its supplementary material"
    config: FKDConfig

    def __init__(self, config: FKDConfig, student: Detector, teacher: Detector, pairing: Pairing):
        super().__init__(config, student, teacher, pairing)
        self.levels = nn.ModuleDict({str(stride): _LevelModules(stride, width) for stride, width in self.widths.items()})

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, targets: TargetBatch, context: MethodContext) -> dict[str, Tensor]:
        """See ``Method.forward``."""
        sums = dict.fromkeys(self.term_names, torch.zeros((), device=student.logits.device))
        for pair in self.map_pairs(student, teacher):
            modules: Any = self.levels[str(pair.stride)]
            own, other, inside = pair.student, pair.teacher, pair.inside
            with torch.no_grad():
                masks = [attention(values, inside, self.config.temperature) for values in (own, other)]
                spatial, channel = ((a + b) / 2 for a, b in zip(*masks, strict=True))
            cells = pair.cells[:, None]
            values = {
                "features": (modules.features(own).float() - other) * (spatial * channel[:, :, None, None]).sqrt(),
                "channel": modules.channel(own.sum((2, 3)) / cells).float() - other.sum((2, 3)) / cells,
                "spatial": modules.spatial(own.mean(1, keepdim=True)).float() - other.mean(1, keepdim=True),
                "non_local": modules.non_local(modules.student(own, inside)).float() - modules.teacher(other, inside),
            }
            for name, value in values.items():
                kept = value if name == "channel" else value.masked_fill(~inside, 0.0)
                sums[name] = sums[name] + torch.linalg.vector_norm(from_all_processes(torch.linalg.vector_norm(kept)))
        return sums


class _LevelModules(nn.Module):
    """Adaptors and non-local blocks of one level. Fine levels pool more cells (released code)."""

    def __init__(self, stride: int, width: int):
        super().__init__()
        self.features, self.channel = nn.Conv2d(width, width, 1), nn.Linear(width, width)
        self.spatial, self.non_local = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(width, width, 1)
        pooling = 8 if stride <= 8 else 4 if stride == 16 else 2
        inner = max(width // 4 if pooling > 2 else width // 2, 1)
        self.student, self.teacher = NonLocal(width, inner, pooling), NonLocal(width, inner, pooling)


class NonLocal(nn.Module):
    """Non-local block with dot products and pooled keys (Wang et al., CVPR 2018), residual. It starts as the identity.

    Padding is excluded everywhere: pooled windows hold only cells inside, and the norm's statistics are those of cells inside. Windows at
    the border may be smaller than the others; the released code drops their cells.

    Args:
        width: number of channels.
        inner: number of channels of queries, keys and values.
        pooling: side of the window over which keys and values are pooled.
    """

    def __init__(self, width: int, inner: int, pooling: int):
        super().__init__()
        self.pooling = pooling
        self.query, self.key, self.value = (nn.Conv2d(width, inner, 1) for _ in range(3))
        self.out, self.norm = nn.Linear(inner, width), nn.BatchNorm1d(width)
        nn.init.zeros_(self.norm.weight)

    def forward(self, features: Tensor, inside: Tensor) -> Tensor:
        """Maps ``[B, D, H, W]`` to the same shape, with ``inside [B, 1, H, W]`` True where a cell is not padding."""
        keys, values = (self._pooled(layer(features), inside) for layer in (self.key, self.value))
        windows = self._pooled(torch.zeros_like(features[:, :1]), inside, empty=1.0).eq(0).sum((1, 2))
        # matrix products are associative: keys with values first costs cells times channels squared instead of cells squared
        mixed = keys @ values.transpose(1, 2) / windows[:, None, None]
        answer = self.query(features).float().flatten(2).transpose(1, 2) @ mixed
        cells = inside.flatten(1)
        added = features.new_zeros(*cells.shape, features.shape[1])
        added[cells] = self.norm(self.out(answer[cells])).float()
        return features + added.transpose(1, 2).view_as(features)

    def _pooled(self, values: Tensor, inside: Tensor, empty: float = 0.0) -> Tensor:
        """Returns the largest value of each window, ``[B, D, windows]``; ``empty`` in windows that hold only padding."""
        pooled = F.max_pool2d(values.float().masked_fill(~inside, -torch.inf), self.pooling, ceil_mode=True)
        return pooled.masked_fill(pooled.isinf(), empty).flatten(2)
