"""Stores class logits: those of all classes, or of the best few with the numbers of these classes."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

# logit of a class that was not kept; its probability is 0 in both precisions
_ABSENT = -6e4
# converts a tensor to the precision of a cache, or to a given type, contiguous
Convert = Callable[..., Tensor]


def pack_logits(logits: Tensor, top_k: int | None, convert: Convert, prefix: str = "") -> dict[str, Tensor]:
    """Returns ``logits [..., C]``; with ``top_k`` the best of them alone, and beside them ``classes`` (int16). Names get the prefix."""
    if top_k is None:
        return {f"{prefix}logits": convert(logits)}
    best = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    return {f"{prefix}logits": convert(best.values), f"{prefix}classes": convert(best.indices, torch.int16)}


def unpack_logits(rows: Mapping[str, Tensor], columns: int, prefix: str = "") -> Tensor:
    """Returns logits ``[..., columns]`` in float32 of what ``pack_logits`` made; those of classes that were not kept are very low."""
    values, classes = rows[f"{prefix}logits"].float(), rows.get(f"{prefix}classes")
    if classes is None:
        return values
    return values.new_full((*values.shape[:-1], columns), _ABSENT).scatter_(-1, classes.long(), values)
