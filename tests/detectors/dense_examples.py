"""Dense detectors whose head says what a test wants, and targets of every size, for what must equal torchvision's own classes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.examples import SPEC
from workbench.datasets.targets import TargetBatch, Targets
from workbench.detectors.dense_detector import DenseDetector
from workbench.detectors.detector import Detections
from workbench.detectors.output import DenseOutput, HeadMap
from workbench.detectors.registry import FAMILIES

Sides = tuple[int, int]  # height and width

# draws the numbers of a map: shape, generator
Draw = Callable[[tuple[int, ...], torch.Generator], Tensor]


# what torchvision's heads say by name: of each level [B, h * w * A, numbers]
Outputs = dict[str, list[Tensor]]


class Features(nn.Identity):
    """What torchvision's detectors ask of a backbone when they are made."""

    out_channels = 32


def dense(name: str, **changes: Any) -> DenseDetector:
    """A detector of strides 8, 16 and 32 that is as small as it can be; its weights do not matter."""
    torch.manual_seed(0)
    family = FAMILIES[name]
    backbone = {"stem": 4, "widths": [4, 4, 8], "depths": [1, 1, 1], "levels": [2, 3]}
    config = {"family": name, "backbone": backbone, "width": 8, "extra_levels": 1, "head_convs": 0, "head_norm": "none"} | changes
    detector = family.detector.build(family.config.model_validate(config), SPEC).eval()
    assert isinstance(detector, DenseDetector)
    return detector


def saying(detector: DenseDetector, numbers: Draw, seed: int) -> tuple[Callable[..., DenseOutput], list[HeadMap]]:
    """A detector's forward with a random head, and the maps of its last call: leaves that collect gradients.

    Args:
        detector: gives grid, decoding and output.
        numbers: draws what boxes are decoded from.
        seed: of the maps.
    """
    generator, maps = torch.Generator().manual_seed(seed), list[HeadMap]()
    real = detector.predict

    def predict(levels: Sequence[Tensor]) -> tuple[HeadMap, ...]:
        maps.clear()
        for said in real(levels):
            logits = (1.5 * torch.randn(said.logits.shape, generator=generator) - 1).requires_grad_()
            boxes = numbers(tuple(said.boxes.shape), generator).requires_grad_()
            quality = None if said.quality is None else torch.randn(said.quality.shape, generator=generator).requires_grad_()
            maps.append(HeadMap(said.stride, logits, boxes, quality))
        return tuple(maps)

    def forward(*sizes: Sides, canvas: Sides | None = None) -> DenseOutput:
        height, width = canvas or (max(h for h, _ in sizes), max(w for _, w in sizes))
        padding = torch.ones(len(sizes), height, width, dtype=torch.bool)
        for index, (h, w) in enumerate(sizes):
            padding[index, :h, :w] = False
        detector.predict = predict
        try:
            return detector(torch.zeros(len(sizes), 3, height, width), padding)
        finally:
            detector.predict = real

    return forward, maps


def boxes_of_every_size(count: int, generator: torch.Generator) -> Tensor:
    """``[count, 4]`` cxcywh inside the image, from a hundredth of its side (less than a cell) to all of it."""
    size = 100 ** -torch.rand(count, 2, generator=generator).square()
    return torch.cat([size / 2 + (1 - size) * torch.rand(count, 2, generator=generator), size], -1)


def targets_of_every_size(counts: Sequence[int], seed: int, labels: Sequence[int] = (0, 1, 2)) -> TargetBatch:
    """Targets of the given classes alone."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.tensor(labels)
    return TargetBatch.of([
        Targets(
            boxes_of_every_size(count, generator),
            chosen[torch.randint(len(labels), (count,), generator=generator)],
            torch.ones(count, dtype=torch.bool),
        )
        for count in counts
    ])  # fmt: skip


def in_pixels(targets: TargetBatch, sizes: Sequence[Sides]) -> list[dict[str, Tensor]]:
    """The valid targets as torchvision takes them, in double precision: its assignment subtracts areas from 1e8, which single precision
    rounds to 8 square pixels."""
    made: list[dict[str, Tensor]] = []
    for boxes, labels, valid, (height, width) in zip(targets.boxes, targets.labels, targets.valid, sizes, strict=True):
        x, y, w, h = boxes[valid].unbind(-1)
        corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1) * torch.tensor([width, height, width, height])
        made.append({"boxes": corners.double(), "labels": labels[valid]})
    return made


def rows(level: Tensor, numbers: int) -> Tensor:
    """A map ``[B, A * numbers, h, w]`` as ``[B, h * w * A, numbers]``, by a loop over cells."""
    batch, channels, height, width = level.shape
    shapes = channels // numbers
    said = [
        level[:, a * numbers : (a + 1) * numbers, y, x] for y in range(height) for x in range(width) for a in range(shapes)
    ]  # fmt: skip
    return torch.stack(said, 1).view(batch, -1, numbers)


def gradients(loss: Tensor, maps: Sequence[HeadMap]) -> list[Tensor]:
    """What a loss asks of every map."""
    leaves = [value for level in maps for value in (level.logits, level.boxes, level.quality) if value is not None]
    found = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True)]


def spied(model: Any) -> list[Tensor]:
    """The assignment of each image that a detector of torchvision hands to its head; filled when losses are computed."""
    assigned: list[Tensor] = []
    compute = model.head.compute_loss

    def spying(targets: Any, outputs: Any, anchors: Any, matched: list[Tensor]) -> dict[str, Tensor]:
        assigned[:] = matched
        return compute(targets, outputs, anchors, matched)

    model.head.compute_loss = spying
    return assigned


def their_detections(
    model: Any, outputs: Outputs, anchors: Sequence[Tensor], sizes: Sequence[Sides], inside: Tensor
) -> list[dict[str, Tensor]]:
    """What torchvision detects in each image.

    Args:
        model: a detector of torchvision.
        outputs: what its head says.
        anchors: of each level.
        sizes: of the images.
        inside: ``[B, N]``, the candidates that an image has.
    """
    found: list[dict[str, Tensor]] = []
    for index, size in enumerate(sizes):
        kept = inside[index].split([len(level) for level in anchors])
        own = {name: [level[index, k][None] for level, k in zip(levels, kept, strict=True)] for name, levels in outputs.items()}
        found += model.postprocess_detections(own, [[level[k].float() for level, k in zip(anchors, kept, strict=True)]], [size])
    return found


def assert_equal_detections(ours: Detections, wanted: dict[str, Tensor], scale: Sequence[float]) -> None:
    """Box for box, in the same order."""
    assert torch.equal(ours.labels, wanted["labels"])
    torch.testing.assert_close(ours.scores, wanted["scores"], atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.boxes, wanted["boxes"] * torch.tensor(scale), atol=1e-3, rtol=1e-5)
