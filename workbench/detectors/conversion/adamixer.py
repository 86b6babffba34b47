"""Converts AdaMixer's released checkpoints (github.com/MCG-NJU/AdaMixer at a50e33d, in mmdet 2) to our ``AdaMixer``."""

from torch import Tensor

from workbench.detectors.conversion.names import Rule, rename
from workbench.detectors.pretrained import resnet_name

_LAYER = r"roi_head\.bbox_head\.(\d+)\."
_HEADS = {"cls": "class_head", "reg": "box_head"}
_RULES: list[Rule] = [
    (r"backbone\.(.+)", lambda m: f"backbone.model.{resnet_name(m[1])}"),
    (r"neck\.lateral_convs\.(\d+)\.conv\.(\w+)", r"neck.projections.\1.\2"),
    (r"neck\.gn_out\.(\w+)", r"neck.norm.\1"),
    (r"rpn_head\.init_proposal_bboxes\.weight", "initial_boxes"),
    (r"rpn_head\.init_content_features\.weight", "initial_content"),
    (_LAYER + r"iof_tau", r"layers.\1.attention.iof_scale"),
    (_LAYER + r"attention\.attn\.in_proj_(\w+)", r"layers.\1.attention.in_projection.\2"),
    (_LAYER + r"attention\.attn\.out_proj\.(\w+)", r"layers.\1.attention.out_projection.\2"),
    (_LAYER + r"(attention_norm|ffn_norm)\.(\w+)", r"layers.\1.\2.\3"),
    (_LAYER + r"sampling_n_mixing\.sampling_offset_generator\.0\.(\w+)", r"layers.\1.sampling_offsets.\2"),
    (_LAYER + r"sampling_n_mixing\.adaptive_mixing\.parameter_generator\.0\.(\w+)", r"layers.\1.mixing.matrices.\2"),
    (_LAYER + r"sampling_n_mixing\.adaptive_mixing\.out_proj\.(\w+)", r"layers.\1.mixing.projection.\2"),
    (_LAYER + r"sampling_n_mixing\.norm\.(\w+)", r"layers.\1.mixing_norm.\2"),
    (_LAYER + r"ffn\.layers\.0\.0\.(\w+)", r"layers.\1.ffn.0.\2"),
    (_LAYER + r"ffn\.layers\.1\.(\w+)", r"layers.\1.ffn.3.\2"),
    (_LAYER + r"(cls|reg)_fcs\.0\.(\w+)", lambda m: f"layers.{m[1]}.{_HEADS[m[2]]}.hidden.{m[3]}"),
    (_LAYER + r"(cls|reg)_fcs\.1\.(\w+)", lambda m: f"layers.{m[1]}.{_HEADS[m[2]]}.norm.{m[3]}"),
    (_LAYER + r"fc_(cls|reg)\.(\w+)", lambda m: f"layers.{m[1]}.{_HEADS[m[2]]}.out.{m[3]}"),
]


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors without changing them. Names that belong to no AdaMixer are kept, so that loading reports them."""
    return rename(state, _RULES)
