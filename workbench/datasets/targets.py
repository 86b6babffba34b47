"""Holds targets: of one image after a transform, and of a batch, padded to one tensor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """The G targets of one image after the transform, in file order.

    Attributes:
        boxes: ``[G, 4]`` float32 cxcywh in 0..1 of the un-padded image.
        labels: ``[G]`` int64; -1 where an ignore region has no class.
        valid: ``[G]`` bool, True for targets that may be matched (not crowd, not ignore, not cropped away).
        masks: ``[G, H, W]`` bool, their pixels in the un-padded image; None if the dataset was opened without masks.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True)
class TargetBatch:
    """Targets of a batch, padded to the largest count G.

    Attributes:
        boxes: ``[B, G, 4]`` cxcywh 0..1; padded slots hold a centred unit box so that costs stay finite.
        labels: ``[B, G]`` int64, 0 in padded slots.
        valid: ``[B, G]`` bool, True for targets that may be matched. Crowd, ignored and absent targets keep their index and are False.
        regions: ``[B, R, 4]`` cxcywh, the boxes of crowd and ignore regions, in which dense detectors learn no background; padded slots
            hold an empty box. None if no image has any.
        masks: The masks of each image's targets, ``[G, H, W]`` bool of its un-padded size; None without masks. They are not padded, since
            a batch of large images would hold gigabytes of them.
        on_host: ``valid`` on the CPU where the others are on another device, so that no step has to wait for that device.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    regions: Tensor | None = None
    masks: tuple[Tensor, ...] | None = None
    on_host: Tensor | None = None

    @property
    def valid_on_host(self) -> Tensor:
        """Returns ``valid`` on the CPU."""
        if self.valid.device.type == "cpu":
            return self.valid
        return self.valid.cpu() if self.on_host is None else self.on_host

    @property
    def any_valid(self) -> bool:
        """True if the batch has a target that may be matched."""
        return bool(self.valid_on_host.any())

    @classmethod
    def of(cls, targets: Sequence[Targets]) -> "TargetBatch":
        """Pads the targets of a batch's images."""
        device = targets[0].boxes.device
        most = max((len(target.labels) for target in targets), default=0)
        boxes = torch.tensor([0.5, 0.5, 1.0, 1.0], device=device).repeat(len(targets), most, 1)
        labels = torch.zeros(len(targets), most, dtype=torch.int64, device=device)
        valid = torch.zeros(len(targets), most, dtype=torch.bool, device=device)
        for row, target in enumerate(targets):
            count = len(target.labels)
            usable = target.valid[:, None]
            boxes[row, :count] = torch.where(usable, target.boxes, boxes[row, :count])
            # ignore regions have no class (-1); they are never matched, and 0 keeps look-ups in range
            labels[row, :count] = target.labels.clamp(min=0)
            valid[row, :count] = target.valid
        masks = tuple(target.masks for target in targets if target.masks is not None)
        return cls(boxes, labels, valid, _regions(targets), masks if len(masks) == len(targets) else None)

    @classmethod
    def of_nothing(cls, images: int, device: torch.device) -> "TargetBatch":
        """Returns one slot per image that holds no target, for code that indexes targets."""
        box = torch.tensor([0.5, 0.5, 1.0, 1.0], device=device).repeat(images, 1, 1)
        empty = torch.zeros(images, 1, dtype=torch.int64, device=device)
        return cls(box, empty, empty.bool())

    def __getitem__(self, images: slice) -> "TargetBatch":
        """Returns the targets of some of the images, padded to the last slot that one of them uses."""
        valid, on_host = self.valid[images], self.valid_on_host[images]
        used = int(on_host.any(0).nonzero().max()) + 1 if bool(on_host.any()) else 0
        regions = None if self.regions is None else self.regions[images]
        masks = None if self.masks is None else self.masks[images]
        return TargetBatch(self.boxes[images, :used], self.labels[images, :used], valid[:, :used], regions, masks, on_host[:, :used])

    def to(self, device: torch.device | str) -> "TargetBatch":
        """Returns the same targets on ``device``."""
        regions = None if self.regions is None else copied(self.regions, device)
        masks = None if self.masks is None else tuple(copied(own, device) for own in self.masks)
        boxes, labels, valid = (copied(values, device) for values in (self.boxes, self.labels, self.valid))
        return TargetBatch(boxes, labels, valid, regions, masks, self.valid_on_host)


def copied(values: Tensor, device: torch.device | str) -> Tensor:
    """Returns values on ``device``; the copy of a tensor of the host to a GPU goes through pinned memory, and nothing waits for it."""
    if torch.device(device).type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _regions(targets: Sequence[Targets]) -> Tensor | None:
    """Returns the boxes of targets that may not be matched but lie in the image, padded with empty boxes; None if there are none."""
    kept = [target.boxes[~target.valid & (target.boxes[:, 2:] > 0).all(-1)] for target in targets]
    most = max((len(boxes) for boxes in kept), default=0)
    if not most:
        return None
    padded = [torch.cat([boxes, boxes.new_zeros(most - len(boxes), 4)]) for boxes in kept]
    return torch.stack(padded)
