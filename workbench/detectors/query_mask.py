"""Hides queries from each other in decoders of transformers whose self-attention takes no mask."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig

_NAME = "workbench_hiding"


@contextmanager
def hiding_by_attention(valid: Tensor | None, config: PretrainedConfig) -> Iterator[None]:
    """Does what ``attention.hiding`` does, by replacing the attention function that ``config`` names while a ``with`` block runs.

    Args:
        valid: ``[B, N]`` bool, False for queries to hide; None hides nothing.
        config: the model's configuration.
    """
    if valid is None:
        yield
        return
    # not minus infinity: a row without a valid query would become NaN
    mask = torch.zeros(valid.shape, device=valid.device).masked_fill(~valid, torch.finfo(torch.float16).min)[:, None, None, :]

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, scaling: float, dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        weights = (query @ key.transpose(2, 3) * scaling + mask.to(query.dtype)).softmax(-1)
        seen = F.dropout(weights, dropout, module.training) @ value
        return seen.transpose(1, 2).contiguous(), weights

    AttentionInterface.register(_NAME, attend)
    before = config._attn_implementation
    try:
        config._attn_implementation = _NAME
        yield
    finally:
        config._attn_implementation = before
