"""Converts DINO's official layout (github.com/IDEA-Research/DINO at faa8520) to our ``Dino``.

The layout is that of models/dino/dino.py and deformable_transformer.py. Only ResNet backbones are supported. The model must share its
heads (``share_heads``) as the configuration of the checkpoint says.
"""

import torch
from torch import Tensor

from workbench.detectors.conversion.names import Rule, rename, split_attention
from workbench.detectors.pretrained import resnet_name
from workbench.errors import CheckpointError

_ENCODER = r"transformer\.encoder\.layers\.(\d+)\."
_DECODER = r"transformer\.decoder\.layers\.(\d+)\."
_DECODER_NORMS = {"1": "encoder_attn_layer_norm", "2": "self_attn_layer_norm", "3": "final_layer_norm"}
_RULES: list[Rule] = [
    (r"backbone\.0\.body\.(.+)", lambda m: f"backbone.model.{resnet_name(m[1])}"),
    (r"input_proj\.(.+)", r"neck.\1"),
    (r"label_enc\.weight", "label_embedding.weight"),
    (r"class_embed\.(.+)", r"class_heads.\1"),
    (r"bbox_embed\.(.+)", r"box_heads.\1"),
    (r"transformer\.enc_out_class_embed\.(.+)", r"proposal_class.\1"),
    (r"transformer\.enc_out_bbox_embed\.(.+)", r"proposal_box.\1"),
    (r"transformer\.enc_output\.(.+)", r"proposal.\1"),
    (r"transformer\.enc_output_norm\.(.+)", r"proposal_norm.\1"),
    (r"transformer\.level_embed", "level_embedding"),
    (r"transformer\.tgt_embed\.weight", "content.weight"),
    (r"transformer\.decoder\.norm\.(.+)", r"decoder_norm.\1"),
    (r"transformer\.decoder\.ref_point_head\.(.+)", r"position_head.\1"),
    (_ENCODER + r"self_attn\.(.+)", r"encoder.\1.self_attn.\2"),
    (_ENCODER + r"norm1\.(.+)", r"encoder.\1.self_attn_layer_norm.\2"),
    (_ENCODER + r"norm2\.(.+)", r"encoder.\1.final_layer_norm.\2"),
    (_ENCODER + r"linear([12])\.(.+)", r"encoder.\1.mlp.fc\2.\3"),
    (_DECODER + r"cross_attn\.(.+)", r"decoder.\1.encoder_attn.\2"),
    (_DECODER + r"self_attn\.(in_proj_\w+)", r"decoder.\1.self_attn.\2"),
    (_DECODER + r"self_attn\.out_proj\.(.+)", r"decoder.\1.self_attn.o_proj.\2"),
    (_DECODER + r"norm([123])\.(.+)", lambda m: f"decoder.{m[1]}.{_DECODER_NORMS[m[2]]}.{m[3]}"),
    (_DECODER + r"linear([12])\.(.+)", r"decoder.\1.mlp.fc\2.\3"),
]


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames, splits query, key and value, and drops the decoder's second copy of the heads.

    Names that belong to no DINO are kept, so that loading reports them.

    Raises:
        CheckpointError: the two copies of a head differ.
    """
    kept: dict[str, Tensor] = {}
    for name, value in state.items():
        head = name.removeprefix("transformer.decoder.")
        if head == name or head not in state:
            kept[name] = value
        elif not torch.equal(value, state[head]):
            raise CheckpointError(f"the checkpoint holds '{name}' and '{head}', which are one tensor, with different values.")
    return split_attention(rename(kept, _RULES), "decoder.", ("q_proj", "k_proj", "v_proj"))
