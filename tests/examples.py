"""Small inputs that several test files share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.datasets.loader import Targets
from workbench.matching import TargetBatch


def random_boxes(*shape: int, generator: torch.Generator | None = None) -> Tensor:
    """``[*shape, 4]`` cxcywh, inside the image."""
    size = 0.05 + 0.45 * torch.rand(*shape, 2, generator=generator)
    centre = size / 2 + (1 - size) * torch.rand(*shape, 2, generator=generator)
    return torch.cat([centre, size], -1)


def random_targets(counts: Sequence[int], classes: int, generator: torch.Generator | None = None) -> list[Targets]:
    """One ``Targets`` per count, all of them matchable."""
    return [
        Targets(random_boxes(n, generator=generator), torch.randint(classes, (n,), generator=generator), torch.ones(n, dtype=torch.bool))
        for n in counts
    ]


def batch_of(counts: Sequence[int], classes: int, generator: torch.Generator | None = None) -> TargetBatch:
    """``random_targets`` as a padded batch."""
    return TargetBatch.of(random_targets(counts, classes, generator))
