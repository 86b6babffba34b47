"""Keeps a run from going on with NaN, without asking the device in every step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.training.loader import TrainBatch


@dataclass(frozen=True)
class Doubtful:
    """A step of which the device knows whether it was finite, and the host does not yet.

    Attributes:
        step: Index of the step, from 0.
        batch: Its images.
        terms: Its unweighted terms by name, without graph.
        finite: Whether the loss and the gradient were finite.
    """

    step: int
    batch: TrainBatch
    terms: dict[str, Tensor]
    finite: "Arriving"


class Arriving:
    """A flag of the device on its way to the host; nothing waits for it before it is read.

    Args:
        flag: a bool.
    """

    def __init__(self, flag: Tensor):
        self._host, self._arrived = flag, None
        if flag.device.type == "cuda":
            self._host = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._host.copy_(flag, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> bool:
        """Returns the flag once it has arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return bool(self._host)
