"""Spreads a pass over a dataset over the processes of a run; the first process gets the answers in the order of one process."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn

Answer = TypeVar("Answer")


def rank_and_world() -> tuple[int, int]:
    """Returns the number of this process, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def is_first() -> bool:
    """True in the first process of a run, which writes, and in a process that is alone."""
    return rank_and_world()[0] == 0


def own_chunks(indices: Sequence[int], size: int, between: Callable[[], None] | None = None) -> Iterator[Sequence[int] | None]:
    """Yields this process's chunks of the indices. Chunk k is that of process k modulo the number of processes.

    The chunks are those of one process, so that each image is padded as it would be there. Every process yields equally often; one for
    which no chunk is left yields None, so that all can exchange answers after each round.

    Args:
        indices: positions of the images.
        size: images in a chunk; the last one may be smaller.
        between: called before each round.
    """
    rank, world = rank_and_world()
    for first in range(0, len(indices), size * world):
        if between is not None:
            between()
        own = indices[first + rank * size : first + (rank + 1) * size]
        yield own if len(own) else None


def to_first(answer: Answer) -> list[Answer]:
    """Returns the answers of all processes in the first one, in order; the others get nothing. All processes must call it."""
    rank, world = rank_and_world()
    if world == 1:
        return [answer]
    found: list[Any] | None = [None] * world if rank == 0 else None
    dist.gather_object(answer, found)
    return found or []


def in_order(answers: Sequence[Answer]) -> list[Answer]:
    """Returns the answers to all chunks in the first process, in the order of the chunks; the others get nothing."""
    by_process = to_first(list(answers))
    most = max((len(own) for own in by_process), default=0)
    return [own[turn] for turn in range(most) for own in by_process if turn < len(own)]


def share_buffers(model: nn.Module) -> None:
    """Gives every process the first one's buffers, such as statistics of a batch norm, which each process has of its own images."""
    if rank_and_world()[1] > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
