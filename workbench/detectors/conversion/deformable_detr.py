"""Converts Deformable DETR of mmdet and of DETRDistill to transformers' ``DeformableDetrForObjectDetection``.

mmdet 2 (github.com/BIVLab-USTC/DETRDistill at b5ee33d carries 2.24.1) keeps the transformer inside ``bbox_head``. mmdet 3
(github.com/open-mmlab/mmdetection) keeps it beside ``bbox_head`` under other names. Both are read.
"""

import re

import torch
from torch import Tensor

from workbench.detectors.conversion.names import Rule, rename, split_attention
from workbench.detectors.pretrained import resnet_name

_ENCODER = r"(?:bbox_head\.transformer\.)?encoder\.layers\.(\d+)\."
_DECODER = r"(?:bbox_head\.transformer\.)?decoder\.layers\.(\d+)\."
_FFN = r"(?:ffns\.0|ffn)\.layers\."
_ENCODER_NORMS = ("self_attn_layer_norm", "final_layer_norm")
_DECODER_NORMS = ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")

# what a distillation checkpoint holds beside the student: the teacher, the losses with their adapters, and the features that the
# last forward left in buffers (mmdet/distillation/distillers/distiller.py)
_NOT_THE_STUDENT = re.compile(r"teacher[._].*|student_.*|distill_losses\..*|cl_head\..*")


def convert_mmdet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames, splits query, key and value, and gives the neck's convolutions the zero bias that mmdet leaves out.

    Classes keep their indices. The last head of a two-stage model is the encoder's in both layouts. Names that belong to no Deformable
    DETR are kept, so that loading reports them.
    """
    levels = len([name for name in state if re.fullmatch(r"neck\.convs\.\d+\.conv\.weight", name)])
    result = split_attention(rename(state, _rules(levels)), "model.decoder.", ("q_proj", "k_proj", "v_proj"))
    for name in [name for name in result if re.fullmatch(r"model\.input_proj\.\d+\.0\.weight", name)]:
        result.setdefault(name.replace("weight", "bias"), torch.zeros(len(result[name]), dtype=result[name].dtype))
    return result


def convert_detrdistill(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Extracts the student from a distillation checkpoint of DETRDistill. Its plain checkpoints have mmdet's layout."""
    if any(name.startswith("student.") for name in state):
        state = {name.removeprefix("student."): value for name, value in state.items() if not _NOT_THE_STUDENT.fullmatch(name)}
    return convert_mmdet(state)


def _rules(levels: int) -> list[Rule]:
    return [
        (r"backbone\.(.+)", lambda m: f"model.backbone.model.{resnet_name(m[1])}"),
        (r"neck\.convs\.(\d+)\.conv\.(\w+)", r"model.input_proj.\1.0.\2"),
        (r"neck\.convs\.(\d+)\.gn\.(\w+)", r"model.input_proj.\1.1.\2"),
        (r"neck\.extra_convs\.(\d+)\.conv\.(\w+)", lambda m: f"model.input_proj.{levels + int(m[1])}.0.{m[2]}"),
        (r"neck\.extra_convs\.(\d+)\.gn\.(\w+)", lambda m: f"model.input_proj.{levels + int(m[1])}.1.{m[2]}"),
        (r"bbox_head\.transformer\.level_embeds|level_embed", "model.level_embed"),
        (r"(?:bbox_head\.)?query_embedding\.weight", "model.query_position_embeddings.weight"),
        (r"(?:bbox_head\.transformer\.reference_points|reference_points_fc)\.(\w+)", r"model.reference_points.\1"),
        (r"(?:bbox_head\.transformer\.enc_output|memory_trans_fc)\.(\w+)", r"model.enc_output.\1"),
        (r"(?:bbox_head\.transformer\.enc_output_norm|memory_trans_norm)\.(\w+)", r"model.enc_output_norm.\1"),
        (r"(?:bbox_head\.transformer\.pos_trans|pos_trans_fc)\.(\w+)", r"model.pos_trans.\1"),
        (r"(?:bbox_head\.transformer\.)?pos_trans_norm\.(\w+)", r"model.pos_trans_norm.\1"),
        (_ENCODER + r"(?:attentions\.0|self_attn)\.(\w+\.\w+)", r"model.encoder.layers.\1.self_attn.\2"),
        (_ENCODER + r"norms\.([01])\.(\w+)", lambda m: f"model.encoder.layers.{m[1]}.{_ENCODER_NORMS[int(m[2])]}.{m[3]}"),
        (_ENCODER + _FFN + r"0\.0\.(\w+)", r"model.encoder.layers.\1.mlp.fc1.\2"),
        (_ENCODER + _FFN + r"1\.(\w+)", r"model.encoder.layers.\1.mlp.fc2.\2"),
        (_DECODER + r"(?:attentions\.0|self_attn)\.attn\.(in_proj_\w+)", r"model.decoder.layers.\1.self_attn.\2"),
        (_DECODER + r"(?:attentions\.0|self_attn)\.attn\.out_proj\.(\w+)", r"model.decoder.layers.\1.self_attn.o_proj.\2"),
        (_DECODER + r"(?:attentions\.1|cross_attn)\.(\w+\.\w+)", r"model.decoder.layers.\1.encoder_attn.\2"),
        (_DECODER + r"norms\.([012])\.(\w+)", lambda m: f"model.decoder.layers.{m[1]}.{_DECODER_NORMS[int(m[2])]}.{m[3]}"),
        (_DECODER + _FFN + r"0\.0\.(\w+)", r"model.decoder.layers.\1.mlp.fc1.\2"),
        (_DECODER + _FFN + r"1\.(\w+)", r"model.decoder.layers.\1.mlp.fc2.\2"),
        (r"bbox_head\.cls_branches\.(\d+)\.(\w+)", r"class_embed.\1.\2"),
        (r"bbox_head\.reg_branches\.(\d+)\.([024])\.(\w+)", lambda m: f"bbox_embed.{m[1]}.layers.{int(m[2]) // 2}.{m[3]}"),
    ]
