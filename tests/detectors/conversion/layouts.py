"""State dicts of public checkpoints by name and shape, small, filled by a formula; written from the sources that each function names.

Strict loading into those sources' own modules was tried outside of the tests.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

Shapes = Iterator[tuple[str, tuple[int, ...]]]

WIDTHS = (8, 16, 32, 64)
BACKBONE = {"stem": 8, "widths": list(WIDTHS), "depths": [1, 1, 1, 1]}
COUNTER = "num_batches_tracked"


def pseudo_random(count: int, seed: int) -> Tensor:
    """``[count]`` float32 numbers in -1..1 from whole numbers alone, the same on every machine."""
    index = torch.arange(count, dtype=torch.int64) + 7 * seed
    return ((index * index * 40503 + index * 30011 + seed * 9973) % 65521).float() / 65521 * 2 - 1


def filled(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    """Values of ordinary size for every tensor: norms near 1, variances above 0, weights by their fan-in."""
    state: dict[str, Tensor] = {}
    for seed, (name, shape) in enumerate(shapes):
        if name.endswith(COUNTER):
            state[name] = torch.tensor(5)
            continue
        value = pseudo_random(int(torch.tensor(shape).prod()), seed + 1).reshape(shape)
        if name.endswith("running_var"):
            value = 1 + 0.5 * value
        elif len(shape) > 1:
            value = value * (3 / value[0].numel()) ** 0.5
        else:
            value = 0.2 * value + (1.0 if name.endswith("weight") else 0.0)
        state[name] = value
    return state


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    """``nn.Linear``."""
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def norm(name: str, width: int, statistics: bool = False) -> Shapes:
    """``nn.LayerNorm`` or ``nn.GroupNorm``, or ``nn.BatchNorm2d``."""
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
    if statistics:
        yield f"{name}.running_mean", (width,)
        yield f"{name}.running_var", (width,)
        yield f"{name}.{COUNTER}", ()


def attention(name: str, width: int) -> Shapes:
    """``nn.MultiheadAttention``."""
    yield f"{name}.in_proj_weight", (3 * width, width)
    yield f"{name}.in_proj_bias", (3 * width,)
    yield from linear(f"{name}.out_proj", width, width)


def resnet(widths: Sequence[int] = WIDTHS, stem: int = 8) -> Shapes:
    """mmdet's ResNet (mmdet/models/backbones/resnet.py) with one basic block a stage."""
    yield "backbone.conv1.weight", (stem, 3, 7, 7)
    yield from norm("backbone.bn1", stem, statistics=True)
    before = stem
    for index, width in enumerate(widths):
        block = f"backbone.layer{index + 1}.0"
        yield f"{block}.conv1.weight", (width, before, 3, 3)
        yield from norm(f"{block}.bn1", width, statistics=True)
        yield f"{block}.conv2.weight", (width, width, 3, 3)
        yield from norm(f"{block}.bn2", width, statistics=True)
        if before != width:
            yield f"{block}.downsample.0.weight", (width, before, 1, 1)
            yield from norm(f"{block}.downsample.1", width, statistics=True)
        before = width


def adamixer(classes: int, queries: int, layers: int, width: int, heads: int, ffn: int, groups: int, points: tuple[int, int]) -> Shapes:
    """github.com/MCG-NJU/AdaMixer at a50e33d766c68e0df9ac592913ed40a528914fab.

    mmdet/models/necks/identity_fpn.py, dense_heads/query_generator.py, roi_heads/bbox_heads/adamixer_decoder_stage.py and
    adaptive_mixing_operator.py; mmcv 1.3.3 for attention and FFN.
    """
    yield from resnet()
    for index, channels in enumerate(WIDTHS):
        yield f"neck.lateral_convs.{index}.conv.weight", (width, channels, 1, 1)
        yield f"neck.lateral_convs.{index}.conv.bias", (width,)
    yield from norm("neck.gn_out", width)
    yield "rpn_head.init_proposal_bboxes.weight", (queries, 4)
    yield "rpn_head.init_content_features.weight", (queries, width)
    channels, (sampled, mixed) = width // groups, points
    for index in range(layers):
        stage = f"roi_head.bbox_head.{index}"
        yield f"{stage}.iof_tau", (heads,)
        yield from linear(f"{stage}.fc_cls", width, classes)
        yield from linear(f"{stage}.fc_reg", width, 4)
        yield from attention(f"{stage}.attention.attn", width)
        yield from norm(f"{stage}.attention_norm", width)
        yield from linear(f"{stage}.ffn.layers.0.0", width, ffn)
        yield from linear(f"{stage}.ffn.layers.1", ffn, width)
        yield from norm(f"{stage}.ffn_norm", width)
        for head in ("cls_fcs", "reg_fcs"):
            yield from linear(f"{stage}.{head}.0", width, width)
            yield from norm(f"{stage}.{head}.1", width)
        adaptive = f"{stage}.sampling_n_mixing"
        yield from linear(f"{adaptive}.sampling_offset_generator.0", width, sampled * groups * 3)
        yield from norm(f"{adaptive}.norm", width)
        mixing = f"{adaptive}.adaptive_mixing"
        yield from linear(f"{mixing}.parameter_generator.0", width, groups * (channels**2 + sampled * mixed))
        yield from linear(f"{mixing}.out_proj", channels * mixed * groups, width)


def deformable_detr(
    classes: int, queries: int, width: int, heads: int, ffn: int, encoder: int, decoder: int, version: int = 2, two_stage: bool = False
) -> Shapes:
    """Deformable DETR over strides 8, 16 and 32 and one level more, 4 points.

    ``version`` 2: github.com/BIVLab-USTC/DETRDistill at b5ee33d79f8ebc87d8f4dee335a163fae0642536, which carries mmdet 2.24.1:
    deformdetr_project/mmdet/models/necks/channel_mapper.py, dense_heads/deformable_detr_head.py, utils/transformer.py, with mmcv
    1.4.0. ``version`` 3: github.com/open-mmlab/mmdetection, mmdet/models/detectors/deformable_detr.py at 013e541 and
    layers/transformer/deformable_detr_layers.py at 19bceba.
    """
    old = version == 2
    inside = "bbox_head.transformer." if old else ""
    yield from resnet()
    for index, channels in enumerate(WIDTHS[1:]):
        yield f"neck.convs.{index}.conv.weight", (width, channels, 1, 1)
        yield from norm(f"neck.convs.{index}.gn", width)
    yield "neck.extra_convs.0.conv.weight", (width, WIDTHS[-1], 3, 3)
    yield from norm("neck.extra_convs.0.gn", width)
    yield "bbox_head.transformer.level_embeds" if old else "level_embed", (4, width)
    if two_stage:
        yield from linear(f"{inside}enc_output" if old else "memory_trans_fc", width, width)
        yield from norm(f"{inside}enc_output_norm" if old else "memory_trans_norm", width)
        yield from linear(f"{inside}pos_trans" if old else "pos_trans_fc", 2 * width, 2 * width)
        yield from norm(f"{inside}pos_trans_norm", 2 * width)
    else:
        yield from linear(f"{inside}reference_points" if old else "reference_points_fc", width, 2)
        yield f"{'bbox_head.' if old else ''}query_embedding.weight", (queries, 2 * width)
    for side, count in (("encoder", encoder), ("decoder", decoder)):
        for index in range(count):
            layer = f"{inside}{side}.layers.{index}"
            if side == "decoder":
                yield from attention(f"{layer}.attentions.0.attn" if old else f"{layer}.self_attn.attn", width)
            cross = f"{layer}.attentions.{1 if side == 'decoder' else 0}"
            sampling = cross if old else f"{layer}.{'cross_attn' if side == 'decoder' else 'self_attn'}"
            yield from linear(f"{sampling}.sampling_offsets", width, heads * 4 * 4 * 2)
            yield from linear(f"{sampling}.attention_weights", width, heads * 4 * 4)
            yield from linear(f"{sampling}.value_proj", width, width)
            yield from linear(f"{sampling}.output_proj", width, width)
            yield from linear(f"{layer}.{'ffns.0' if old else 'ffn'}.layers.0.0", width, ffn)
            yield from linear(f"{layer}.{'ffns.0' if old else 'ffn'}.layers.1", ffn, width)
            for number in range(3 if side == "decoder" else 2):
                yield from norm(f"{layer}.norms.{number}", width)
    for index in range(decoder + two_stage):
        yield from linear(f"bbox_head.cls_branches.{index}", width, classes)
        for number, outputs in ((0, width), (2, width), (4, 4)):
            yield from linear(f"bbox_head.reg_branches.{index}.{number}", width, outputs)


def images() -> tuple[Tensor, Tensor]:
    """Two images, 64 x 96 and 48 x 64, in a batch, and the padding mask."""
    batch, padding = torch.zeros(2, 3, 64, 96), torch.ones(2, 64, 96, dtype=torch.bool)
    for index, (height, width) in enumerate(((64, 96), (48, 64))):
        batch[index, :, :height, :width] = 1.7 * pseudo_random(3 * height * width, 100 + index).reshape(3, height, width)
        padding[index, :height, :width] = False
    return batch, padding
