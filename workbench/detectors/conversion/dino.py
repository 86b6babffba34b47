"""DINO's official layout: github.com/IDEA-Research/DINO at faa8520, models/dino/dino.py and deformable_transformer.py.

ResNet backbones only; sharing of heads as the configuration of the checkpoint says (``share_heads``).
"""

import re

import torch
from torch import Tensor

from workbench.detectors.pretrained import resnet_name
from workbench.errors import CheckpointError

_FFN = {"linear1": "mlp.fc1", "linear2": "mlp.fc2"}
_LAYER = {
    "encoder": _FFN | {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm"},
    "decoder": _FFN | {"norm1": "encoder_attn_layer_norm", "norm2": "self_attn_layer_norm", "norm3": "final_layer_norm",
                       "cross_attn": "encoder_attn"},
}  # fmt: skip
_PREFIXES = {
    "input_proj": "neck",
    "label_enc": "label_embedding",
    "class_embed": "class_heads",
    "bbox_embed": "box_heads",
    # the decoder holds the same heads a second time
    "transformer.decoder.class_embed": "class_heads",
    "transformer.decoder.bbox_embed": "box_heads",
    "transformer.enc_out_class_embed": "proposal_class",
    "transformer.enc_out_bbox_embed": "proposal_box",
    "transformer.enc_output": "proposal",
    "transformer.enc_output_norm": "proposal_norm",
    "transformer.level_embed": "level_embedding",
    "transformer.tgt_embed": "content",
    "transformer.decoder.norm": "decoder_norm",
    "transformer.decoder.ref_point_head": "position_head",
}


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the official code in the names of ``Dino``.

    Args:
        state: by official name; tensors are not copied where they stay whole.

    Returns:
        By our names; a name that no rule knows stays as it is.

    Raises:
        CheckpointError: two tensors that the official code shares differ.
    """
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        for new, part in _parts(_renamed(name), value):
            if new in result and not torch.equal(result[new], part):
                raise CheckpointError(f"{name} differs from its other copy in the checkpoint; both would be {new}.")
            result[new] = part
    return result


def _parts(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """One tensor, or the three projections that the official self-attention holds in one."""
    if found := re.fullmatch(r"(decoder\.\d+\.self_attn)\.in_proj_(weight|bias)", name):
        return [(f"{found[1]}.{which}_proj.{found[2]}", part) for which, part in zip("qkv", value.chunk(3), strict=True)]
    return [(name, value)]


def _renamed(name: str) -> str:
    if found := re.fullmatch(r"backbone\.0\.body\.(.*)", name):
        return f"backbone.model.{resnet_name(found[1])}"
    if found := re.fullmatch(r"transformer\.(encoder|decoder)\.layers\.(\d+)\.(\w+)\.(.*)", name):
        side, index, part, rest = found.groups()
        rest = rest.replace("out_proj.", "o_proj.") if (side, part) == ("decoder", "self_attn") else rest
        return f"{side}.{index}.{_LAYER[side].get(part, part)}.{rest}"
    for prefix, new in _PREFIXES.items():
        if name == prefix or name.startswith(f"{prefix}."):
            return new + name.removeprefix(prefix)
    return name
