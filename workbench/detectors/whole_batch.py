"""Makes the terms of a part of a batch those of the whole batch, where several processes or several passes share it.

A batch is divided over the processes of a run, and over the passes that a process makes where its memory does not hold its images at once
(``Parts``). Each division computes its terms from its own images, and the mean of the divisions' gradients trains the student. So a sum
over a division's images has to be divided by what a division has *on average*, and a statistic of the batch has to be made from all of
them. Every normaliser of a detector or a method comes through here.

All processes, and all passes, must ask the same questions in the same order. A term that is left out because a division has no target asks
before it is left out. What a division asks must not depend on an earlier answer.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


class Parts:
    """Lets the parts of a batch, which go through one after another, know each other's normalisers.

    Each part goes through twice: under ``noting`` without a gradient, and once all parts have, under ``learning``.

    Args:
        count: number of parts.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._noted: list[list[Tensor]] = []
        self._part, self._asked = -1, 0

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Notes what the next part asks for while the block runs. Whatever the part computes from the answers means nothing."""
        self._noted.append([])
        self._part = -1
        with _active(self):
            yield

    @contextmanager
    def learning(self, part: int) -> Iterator[None]:
        """Answers a part, by its number, with what all parts noted while the block runs."""
        self._part, self._asked = part, 0
        with _active(self):
            yield

    def all(self, value: Tensor) -> list[Tensor]:
        """Returns the values of all parts in answer to a part's own one, which keeps its gradient."""
        if self._part < 0:
            self._noted[-1].append(value.detach())
            return [value]
        values = [noted[self._asked] for noted in self._noted]
        values[self._part] = value
        self._asked += 1
        return values


_parts: Parts | None = None


@contextmanager
def _active(parts: Parts) -> Iterator[None]:
    global _parts
    _parts = parts
    try:
        yield
    finally:
        _parts = None


def divisions() -> int:
    """Returns over how many processes, or passes, the batch is divided; 1 if it is whole."""
    if _parts is not None:
        return _parts.count
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def over_processes(count: Tensor, least: float | None = None) -> Tensor:
    """Averages a normaliser over the divisions of the batch, so that a term divided by it is that of the whole batch.

    Args:
        count: number of boxes, cells or images of this division, or the sum of their weights; any shape, the same in every division.
        least: smallest normaliser of the *whole* batch; None sets none.
    """
    parts = divisions()
    if parts == 1:
        return count if least is None else count.clamp(min=least)
    total = count.detach().float().clone()
    if _parts is not None:
        total = torch.stack(_parts.all(total)).sum(0)
    else:
        dist.all_reduce(total)
    return (total if least is None else total.clamp(min=least)) / parts


def images_over_processes(images: int, device: torch.device) -> Tensor | int:
    """Returns how many images a division of the batch has on average, for a mean over images."""
    return images if divisions() == 1 else over_processes(torch.full((), float(images), device=device))


def sum_over_processes(value: Tensor) -> Tensor:
    """Scales a sum over this division's images, so that the mean of the divisions is the sum over the whole batch."""
    parts = divisions()
    return value if parts == 1 else value * parts


def from_all_processes(value: Tensor) -> Tensor:
    """Returns a statistic of every division of the batch, ``[P, ...]``, with a gradient into this division's own.

    It is for terms that are not a sum over images, such as a norm or a correlation over the batch. Every division must compute the same
    term from the answer. The gradient is P times as large, so that the mean of the divisions' gradients is that of the whole batch; no
    process talks to another while gradients are computed.

    Args:
        value: any shape, the same in every division.
    """
    parts = divisions()
    if parts == 1:
        return value[None]
    # the value to the bit, with P times its gradient
    own = value.detach() + parts * (value - value.detach())
    if _parts is not None:
        return torch.stack(_parts.all(own))
    values = [torch.empty_like(value) for _ in range(parts)]
    dist.all_gather(values, value.detach().contiguous())
    values[dist.get_rank()] = own
    return torch.stack(values)


__all__ = ["Parts", "divisions", "from_all_processes", "images_over_processes", "over_processes", "sum_over_processes"]
