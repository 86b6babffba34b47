"""Lets a step that does not fit into the memory of the device go on in smaller passes, from the same place in every random stream."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage] - the common class of all batch norms

from workbench.training.loader import TrainBatch


class Passes:
    """Knows in how many passes the images of a step go through, and takes back what a step that failed has changed.

    Args:
        modules: the modules that are trained, whose batch norms count the images of a step.
        device: their device.
    """

    def __init__(self, modules: nn.Module, device: torch.device):
        self.count = 1
        self._device = device
        norms = [module for module in modules.modules() if isinstance(module, _BatchNorm)]
        self._buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self._kept: list[Tensor] = [torch.empty_like(buffer) for buffer in self._buffers]
        self._random: list[Tensor] = []

    def remember(self) -> None:
        """Notes the random streams and the statistics before a step."""
        self._random = [torch.get_rng_state(), *([torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else [])]
        if self._kept:
            torch._foreach_copy_(self._kept, self._buffers)  # pyright: ignore[reportPrivateImportUsage] - one launch in place of hundreds

    def restore(self) -> None:
        """Takes the random streams and the statistics back to where they were."""
        torch.set_rng_state(self._random[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(self._random[1], self._device)
        if self._kept:
            torch._foreach_copy_(self._buffers, self._kept)  # pyright: ignore[reportPrivateImportUsage]

    def halve(self, images: int) -> bool:
        """Halves what goes through at once and frees the memory that torch holds back; False if it is a single image already.

        Args:
            images: number of images that a part of the batch has.
        """
        if self.count >= images:
            return False
        self.count = min(2 * self.count, images)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    def cut(self, part: TrainBatch) -> Sequence[TrainBatch]:
        """Returns the pieces of a part that go through at once, which differ by one image at most."""
        images = len(part.image_ids)
        count = min(self.count, images)
        return [part] if count == 1 else list(_pieces(part, images, count))


def _pieces(part: TrainBatch, images: int, count: int) -> Iterator[TrainBatch]:
    for index in range(count):
        yield part.part(index * images // count, (index + 1) * images // count)
