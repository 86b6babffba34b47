"""Records a decoder's attention maps, only while they are asked for, and hides queries from its attention."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from workbench.detectors.output import Attentions

CrossMap = Callable[[nn.Module, dict[str, Any], Any], Tensor]


class Recorded:
    """The maps of the layers seen so far, in the order in which they were computed."""

    def __init__(self) -> None:
        self.self_maps: list[Tensor] = []
        self.cross_maps: list[Tensor] = []

    def attentions(self) -> Attentions | None:
        """Returns the maps of all layers, stacked; None if nothing was recorded."""
        if not self.self_maps:
            return None
        return Attentions(torch.stack(self.self_maps), torch.stack(self.cross_maps))


def second_output(module: nn.Module, arguments: dict[str, Any], output: Any) -> Tensor:
    """Returns the map ``[B, H, N, S]`` that a dense attention module of transformers returns beside its values."""
    return output[1]


@contextlib.contextmanager
def recording(
    wanted: bool,
    config: PretrainedConfig,
    self_attention: Sequence[nn.Module],
    cross_attention: Sequence[nn.Module],
    cross_map: CrossMap = second_output,
) -> Iterator[Recorded]:
    """Records the attention of a model while a ``with`` block runs it.

    Args:
        wanted: False records nothing and changes nothing.
        config: the model's configuration. Attention is computed eagerly during the block, because fused kernels return no maps.
        self_attention: the self-attention module of each decoder layer.
        cross_attention: the cross-attention module of each decoder layer.
        cross_map: computes a map ``[B, H, N, S]`` from a cross-attention module, its keyword arguments and its output.
    """
    recorded = Recorded()
    if not wanted:
        yield recorded
        return

    def keep_self(module: nn.Module, args: Any, arguments: dict[str, Any], output: Any) -> None:
        recorded.self_maps.append(output[1])

    def keep_cross(module: nn.Module, args: Any, arguments: dict[str, Any], output: Any) -> None:
        recorded.cross_maps.append(cross_map(module, arguments, output))

    before = config._attn_implementation
    handles = [module.register_forward_hook(keep_self, with_kwargs=True) for module in self_attention]
    handles += [module.register_forward_hook(keep_cross, with_kwargs=True) for module in cross_attention]
    try:
        config._attn_implementation = "eager"
        yield recorded
    finally:
        config._attn_implementation = before
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def hiding(valid: Tensor | None, self_attention: Sequence[nn.Module]) -> Iterator[None]:
    """Hides invalid queries from all others while a ``with`` block runs a decoder.

    Args:
        valid: ``[B, N]`` bool, False for queries to hide; None hides nothing.
        self_attention: the self-attention modules of all decoder layers. They must take an additive ``attention_mask``.
    """
    if valid is None:
        yield
        return
    # not minus infinity: a row without a valid query would become NaN
    mask = torch.zeros(valid.shape, device=valid.device).masked_fill(~valid, torch.finfo(torch.float16).min)[:, None, None, :]

    def add(module: nn.Module, args: Any, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        states = arguments["hidden_states"]
        whole = mask.to(states.dtype).expand(-1, -1, states.shape[1], -1)
        return args, {**arguments, "attention_mask": whole}

    handles = [module.register_forward_pre_hook(add, with_kwargs=True) for module in self_attention]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def sampled_map(locations: Tensor, weights: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Returns deformable attention as a map over cells: each sampling point's weight is shared by the four cells around it.

    Args:
        locations: ``[B, N, H, L, P, 2]`` x and y in 0..1 of the level, for H heads, L levels and P points.
        weights: ``[B, N, H, L, P]``; they sum to 1 over L and P.
        shapes: (height, width) of each level.

    Returns:
        ``[B, 1, N, S]``, the mean over heads. Weight outside the image is dropped, because the attention reads 0 there.
    """
    # in mixed precision a cell number above 256 would be rounded to another cell's
    locations, weights = locations.float(), weights.float()
    images, queries, heads = weights.shape[:3]
    maps: list[Tensor] = []
    for level, (height, width) in enumerate(shapes):
        size = locations.new_tensor([width, height])
        point = locations[:, :, :, level] * size - 0.5
        corner = point.detach().floor()
        cells = weights.new_zeros(images, queries, height * width)
        for shift in ((0, 0), (1, 0), (0, 1), (1, 1)):
            cell = corner + locations.new_tensor(shift)
            share = (1 - (point - cell).abs()).prod(-1)
            inside = ((cell >= 0) & (cell < size)).all(-1)
            index = (cell[..., 1] * width + cell[..., 0]).long().where(inside, 0)
            value = (weights[:, :, :, level] * share).where(inside, 0.0)
            cells = cells.scatter_add(2, index.flatten(2), value.flatten(2))
        maps.append(cells / heads)
    return torch.cat(maps, -1)[:, None]


def deformable_map(module: Any, arguments: dict[str, Any], output: Any) -> Tensor:
    """Returns where a deformable cross-attention reads, ``[B, 1, N, S]``, from its own linear layer for the sampling points."""
    hidden, weights, reference = arguments["hidden_states"], output[1], arguments["reference_points"]
    if arguments["position_embeddings"] is not None:
        hidden = hidden + arguments["position_embeddings"]
    shapes = [(int(height), int(width)) for height, width in arguments["spatial_shapes_list"]]
    offsets = module.sampling_offsets(hidden).view(*weights.shape, 2)
    if reference.shape[-1] == 2:
        offsets = offsets / offsets.new_tensor([(width, height) for height, width in shapes])[:, None]
    else:
        offsets = offsets / weights.shape[-1] * reference[:, :, None, :, None, 2:] * 0.5
    return sampled_map(reference[:, :, None, :, None, :2] + offsets, weights, shapes)
