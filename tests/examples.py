"""Small inputs that several test files share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.datasets.targets import TargetBatch, Targets
from workbench.detectors.deformable_detr import DeformableDetr, DeformableDetrModelConfig
from workbench.detectors.detector import InputSpec
from workbench.detectors.output import Level, Queries, QueryOutput


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


SPEC = InputSpec(("circle", "square", "triangle"), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
SMALL: dict[str, Any] = {
    "backbone": {"stem": 8, "widths": [8, 16], "depths": [1, 1], "levels": [2]},
    "width": 32, "heads": 4, "ffn": 32, "encoder_layers": 1, "decoder_layers": 2, "queries": 6, "levels": 1, "dropout": 0.0,
    "box_refine": True,
}  # fmt: skip


def small_detector(seed: int = 0, spec: InputSpec = SPEC, **changes: Any) -> DeformableDetr:
    """A tiny Deformable DETR in eval mode whose every weight and statistic is random: fresh ones have box heads that answer 0."""
    torch.manual_seed(seed)
    detector = DeformableDetr.build(DeformableDetrModelConfig.model_validate(SMALL | changes), spec).eval()
    with torch.no_grad():
        for name, value in detector.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif value.is_floating_point():
                value.add_(0.1 * torch.randn_like(value))
    return detector


def images_of(*sizes: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images of (height, width), padded to a batch: ``[B, 3, H, W]`` and the padding mask."""
    generator = torch.Generator().manual_seed(seed)
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    images, padding = torch.zeros(len(sizes), 3, height, width), torch.ones(len(sizes), height, width, dtype=torch.bool)
    for index, (h, w) in enumerate(sizes):
        images[index, :, :h, :w] = torch.randn(3, h, w, generator=generator)
        padding[index, :h, :w] = False
    return images, padding


def random_output(
    layers: int,
    counts: tuple[int, int],
    classes: int = 3,
    width: int = 8,
    levels: Sequence[tuple[int, int, int]] = ((8, 4, 6),),
    seed: int = 0,
) -> QueryOutput:
    """An output of ``counts`` = (images, queries) that no model made; ``levels`` are (stride, height, width). The last column of the
    last image is padding."""
    generator = torch.Generator().manual_seed(seed)
    images, queries = counts

    def level(stride: int, height: int, across: int) -> Level:
        padding = torch.zeros(images, height, across, dtype=torch.bool)
        padding[-1, :, -1] = True
        return Level(torch.randn(images, width, height, across, generator=generator), stride, padding)

    memory, neck = tuple(level(*shape) for shape in levels), tuple(level(*shape) for shape in levels)
    content = torch.randn(images, queries, width, generator=generator)
    return QueryOutput(
        logits=2 * torch.randn(layers, images, queries, classes, generator=generator),
        boxes=random_boxes(layers, images, queries, generator=generator),
        states=torch.randn(layers, images, queries, width, generator=generator),
        queries=Queries(content, None, None, torch.full((images, queries), -1)),
        memory=memory,
        neck=neck,
        backbone=(),
        context=None,
    )


def assert_detected_alike(first: Any, second: Any, within: float) -> None:
    """Two answers hold the same candidates of the same classes with the same scores.

    Candidates whose scores differ by less than processors round may stand in another order, or be cut off at the end in one answer alone.

    Args:
        first: candidates, classes and scores, each ``[D]``, the best first.
        second: the same.
        within: how far scores may differ.
    """
    scores = [np.asarray(answer[2], float) for answer in (first, second)]
    assert len(scores[0]) == len(scores[1])
    np.testing.assert_allclose(scores[0], scores[1], atol=within)
    found = [
        {(int(candidate), int(label)): float(score) for candidate, label, score in zip(*answer, strict=True)} for answer in (first, second)
    ]
    for own, other, lowest in ((*found, scores[0].min(initial=0)), (*found[::-1], scores[1].min(initial=0))):
        for pair, score in own.items():
            assert abs(score - other.get(pair, lowest)) <= within, (pair, score, other.get(pair))
