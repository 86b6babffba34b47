"""A checkpoint of the official DINO loads with nothing left over, and then answers with the numbers of the official code."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from workbench.detectors.backbone import BackboneConfig
from workbench.detectors.conversion.dino import convert
from workbench.detectors.detector import InputSpec
from workbench.detectors.dino import Dino, DinoModelConfig
from workbench.detectors.weights import fill_weights
from workbench.errors import CheckpointError
from workbench.files import hash_json

SOURCE = Path("dino.pth")

Shapes = dict[str, tuple[int, ...]]


def official_shapes(config: DinoModelConfig, classes: int, blocks: Sequence[int], channels: Sequence[int], bottleneck: bool) -> Shapes:
    """Names and shapes of the state dict of github.com/IDEA-Research/DINO at faa8520520f81d8a1c17cbc4c8c5f13dbbab8ce1 (heads shared).

    Args:
        config: of the same model here.
        classes: ``num_classes``, which is ``dn_labelbook_size`` too.
        blocks: of each stage of the ResNet.
        channels: after each stage.
        bottleneck: three convolutions a block instead of two.
    """
    width, ffn, samples = config.width, config.ffn, config.heads * config.levels * config.points
    shapes: Shapes = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    def norm(name: str, size: int = width) -> None:
        shapes.update({f"{name}.weight": (size,), f"{name}.bias": (size,)})

    def mlp(name: str, *sizes: int) -> None:
        for index, (inputs, outputs) in enumerate(pairwise(sizes)):
            linear(f"{name}.layers.{index}", inputs, outputs)

    def sampling(name: str) -> None:
        linear(f"{name}.sampling_offsets", width, 2 * samples)
        linear(f"{name}.attention_weights", width, samples)
        linear(f"{name}.value_proj", width, width)
        linear(f"{name}.output_proj", width, width)

    for side, layers, norms in (("encoder", config.encoder_layers, 2), ("decoder", config.decoder_layers, 3)):
        for layer in range(layers):
            name = f"transformer.{side}.layers.{layer}"
            sampling(f"{name}.{'self_attn' if side == 'encoder' else 'cross_attn'}")
            linear(f"{name}.linear1", width, ffn)
            linear(f"{name}.linear2", ffn, width)
            for index in range(norms):
                norm(f"{name}.norm{index + 1}")
            if side == "decoder":
                shapes.update({f"{name}.self_attn.in_proj_weight": (3 * width, width), f"{name}.self_attn.in_proj_bias": (3 * width,)})
                linear(f"{name}.self_attn.out_proj", width, width)
    for owner in ("", "transformer.decoder."):
        for layer in range(config.decoder_layers):
            linear(f"{owner}class_embed.{layer}", width, classes)
            mlp(f"{owner}bbox_embed.{layer}", width, width, width, 4)
    linear("transformer.enc_out_class_embed", width, classes)
    mlp("transformer.enc_out_bbox_embed", width, width, width, 4)
    mlp("transformer.decoder.ref_point_head", 2 * width, width, width)
    norm("transformer.decoder.norm")
    linear("transformer.enc_output", width, width)
    norm("transformer.enc_output_norm")
    shapes.update({
        "transformer.level_embed": (config.levels, width),
        "transformer.tgt_embed.weight": (config.queries, width),
        "label_enc.weight": (classes + 1, width),
    })  # fmt: skip
    inputs = [*channels[1:], channels[-1], *[width] * config.levels][: config.levels]
    for level, size in enumerate(inputs):
        kernel = 1 if level < len(channels) - 1 else 3
        shapes.update({f"input_proj.{level}.0.weight": (width, size, kernel, kernel), f"input_proj.{level}.0.bias": (width,)})
        norm(f"input_proj.{level}.1")
    return shapes | dict(_resnet_shapes(blocks, channels, bottleneck))


def _resnet_shapes(blocks: Sequence[int], channels: Sequence[int], bottleneck: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    def convolution(name: str, norm: str, inputs: int, outputs: int, kernel: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"backbone.0.body.{name}.weight", (outputs, inputs, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"backbone.0.body.{norm}.{part}", (outputs,)

    yield from convolution("conv1", "bn1", 3, 64, 7)
    before = 64
    for stage, (count, size) in enumerate(zip(blocks, channels, strict=True), start=1):
        for block in range(count):
            name, inner = f"layer{stage}.{block}", size // 4 if bottleneck else size
            sizes = [(before, inner, 1), (inner, inner, 3), (inner, size, 1)] if bottleneck else [(before, size, 3), (size, size, 3)]
            for index, (inputs, outputs, kernel) in enumerate(sizes, start=1):
                yield from convolution(f"{name}.conv{index}", f"{name}.bn{index}", inputs, outputs, kernel)
            if block == 0 and (before, 1) != (size, stage):
                yield from convolution(f"{name}.downsample.0", f"{name}.downsample.1", before, size, 1)
            before = size


TINY = DinoModelConfig(
    backbone=BackboneConfig(stem=64, widths=(64, 128, 256, 512), depths=(1, 1, 1, 1), levels=(2, 3, 4), norm="frozen"),
    ffn=48, encoder_layers=2, decoder_layers=3, queries=7,
)  # fmt: skip
SPEC = InputSpec(tuple("abcde"), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def scattered(shape: Sequence[int], start: float) -> Tensor:
    """Numbers in -1..1 without visible order, from a formula, so that the official code can be given the same."""
    count = torch.arange(math.prod(shape), dtype=torch.float64)
    return 2 * (torch.sin(12.9898 * count + start) * 43758.5453).remainder(1).view(*shape) - 1


def tiny_state() -> dict[str, Tensor]:
    """An official state dict of a small model."""
    shapes = official_shapes(TINY, 5, (1, 1, 1, 1), (64, 128, 256, 512), bottleneck=False)
    state: dict[str, Tensor] = {}
    for index, name in enumerate(sorted(shapes)):
        shape = shapes[name]
        value = scattered(shape, index + 0.4)
        if name.endswith("running_var"):
            value = 1 + 0.5 * value
        elif len(shape) == 1:
            value = 0.2 * value + (1 if name.endswith("weight") else 0)
        else:
            value = value * math.sqrt(3 / math.prod(shape[1:]))
        state[name] = value.float()
    for name in state:
        owner, _, rest = name.rpartition("_embed.")
        if owner.endswith(("class", "bbox")) and rest[0].isdigit():
            first = f"{owner.removeprefix('transformer.decoder.')}_embed.0{rest[1:]}"
            state[name] = state[first]
    return state


def tiny_images() -> tuple[Tensor, Tensor]:
    """Two images of 64x96, the second one smaller and padded."""
    images = 2 * scattered((2, 3, 8, 12), 0.5).float().repeat_interleave(8, 2).repeat_interleave(8, 3)
    padding = torch.zeros(2, 64, 96, dtype=torch.bool)
    padding[1, 48:] = True
    padding[1, :, 80:] = True
    return images.masked_fill(padding[:, None], 0.0), padding


def converted(state: dict[str, Tensor]) -> Dino:
    detector = Dino.build(TINY, SPEC).eval()
    fill_weights(detector, convert(state), SOURCE)
    return detector


def test_the_published_resnet_50_checkpoint_has_the_names_and_shapes_of_our_model():
    config = DinoModelConfig(backbone=BackboneConfig(name="resnet50", norm="frozen"))
    official = official_shapes(config, 91, (3, 4, 6, 3), (256, 512, 1024, 2048), bottleneck=True)
    # of the 626 names and shapes that the official model has under DINO_4scale.py
    assert hash_json({name: list(shape) for name, shape in official.items()}) == (
        "4e77abb9b99b247d5aed73db24885da22f0b928f90e4d1810df2670e9b144505"
    )
    with torch.device("meta"):
        detector = Dino.build(config, InputSpec(tuple(f"class {index}" for index in range(91)), (0.0,) * 3, (1.0,) * 3))
    wanted = {name: tuple(value.shape) for name, value in detector.state_dict().items()}
    state = {name: torch.zeros(()).expand(shape) for name, shape in official.items()}
    assert {name: tuple(value.shape) for name, value in convert(state).items()} == wanted
    assert sum(parameter.numel() for parameter in detector.parameters()) == 46_893_182


def test_five_scales_with_four_backbone_levels_fit_too():
    backbone = BackboneConfig(name="resnet50", norm="frozen", levels=(1, 2, 3, 4))
    config = DinoModelConfig(backbone=backbone, levels=5)
    official = official_shapes(config, 91, (3, 4, 6, 3), (256, 512, 1024, 2048), bottleneck=True)
    channels = {0: 256, 1: 512, 2: 1024, 3: 2048, 4: 2048}
    official |= {f"input_proj.{i}.0.weight": (256, size, 3 if i == 4 else 1, 3 if i == 4 else 1) for i, size in channels.items()}
    with torch.device("meta"):
        detector = Dino.build(config, InputSpec(tuple(f"class {index}" for index in range(91)), (0.0,) * 3, (1.0,) * 3))
    state = convert({name: torch.zeros(()).expand(shape) for name, shape in official.items()})
    assert {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in detector.state_dict().items()}


def test_every_layer_gives_the_numbers_of_the_official_code():
    """Golden values of github.com/IDEA-Research/DINO at faa8520520f81d8a1c17cbc4c8c5f13dbbab8ce1, run on a CPU with its own
    ``ms_deform_attn_core_pytorch``, a torchvision ResNet of one basic block a stage, DINO_4scale.py otherwise except for the sizes of
    ``TINY``, and the weights of ``tiny_state``. All logits and boxes agreed within 2e-6, losses and gradients of a training step too.
    """
    with torch.no_grad():
        output = converted(tiny_state())(*tiny_images())
    logits = [
        [-1.941861, 0.885162], [-1.56256, 0.192383], [-1.650631, 0.869821], [-1.645411, 0.015121],
        [-2.093778, -0.790092], [-1.934579, -0.968786], [-2.065776, -0.820022], [-2.259539, -1.216453],
        [-2.055265, 0.455686], [-1.757017, 0.357171], [-1.982763, 0.194865], [-1.770928, 0.05294],
    ]  # fmt: skip
    boxes = [
        [0.688383, 0.805293, 0.039425, 0.022547], [0.264074, 0.397108, 0.086573, 0.033143],
        [0.905753, 0.298627, 0.084817, 0.034656], [0.581922, 0.119851, 0.03406, 0.02029],
        [0.832008, 0.750773, 0.042579, 0.018448], [0.437509, 0.351741, 0.085856, 0.021785],
        [0.955548, 0.257124, 0.085664, 0.022727], [0.773573, 0.112158, 0.026884, 0.013277],
        [0.913312, 0.583654, 0.030067, 0.01218], [0.661859, 0.197839, 0.064324, 0.014602],
        [0.982413, 0.135855, 0.07329, 0.019254], [0.896022, 0.059806, 0.018873, 0.010876],
    ]  # fmt: skip
    # layers x images x first and last query; first and last class
    torch.testing.assert_close(output.logits[:, :, [0, 6]][..., [0, 4]].flatten(0, 2), torch.tensor(logits), atol=1e-4, rtol=0)
    torch.testing.assert_close(output.boxes[:, :, [0, 6]].flatten(0, 2), torch.tensor(boxes), atol=1e-4, rtol=0)
    assert output.logits.double().sum((1, 2, 3)).tolist() == pytest.approx([-4.705711, -5.904016, 22.442733], abs=1e-3)
    assert output.boxes.double().sum((1, 2, 3)).tolist() == pytest.approx([12.051889, 13.985737, 14.593991], abs=1e-3)
    assert output.queries.source.tolist() == [[90, 97, 103, 22, 100, 99, 109], [106, 28, 37, 109, 97, 104, 16]]


def test_every_name_that_no_rule_knows_and_every_tensor_that_is_absent_is_reported():
    state = tiny_state()
    state["transformer.pat_embed"] = torch.zeros(2, 256)
    state["backbone.0.body.fc.weight"] = torch.zeros(2, 2)
    del state["transformer.decoder.layers.1.self_attn.in_proj_weight"], state["backbone.0.body.layer2.0.downsample.1.running_var"]
    state["transformer.tgt_embed.weight"] = torch.zeros(9, 256)
    with pytest.raises(CheckpointError) as caught:
        converted(state)
    lines = {line.strip() for line in str(caught.value).splitlines()}
    assert {
        "unexpected: transformer.pat_embed",
        "unexpected: backbone.model.fc.weight",
        "missing: decoder.1.self_attn.q_proj.weight",
        "missing: decoder.1.self_attn.k_proj.weight",
        "missing: decoder.1.self_attn.v_proj.weight",
        "missing: backbone.model.encoder.stages.1.layers.0.shortcut.normalization.running_var",
        "shape: content.weight is [9, 256] in the file, [7, 256] in the model",
    } < lines


def test_copies_that_the_official_code_shares_must_agree():
    state = tiny_state()
    state["transformer.decoder.class_embed.1.bias"] = state["class_embed.1.bias"] + 1
    with pytest.raises(CheckpointError, match=r"transformer\.decoder\.class_embed\.1\.bias.*'class_embed\.1\.bias'.*different"):
        convert(state)


def test_heads_that_differ_between_layers_do_not_fit_a_model_that_shares_them():
    state = tiny_state()
    for owner in ("", "transformer.decoder."):
        state[f"{owner}class_embed.1.bias"] = state["class_embed.0.bias"] + 1
    with pytest.raises(CheckpointError, match=r"shared: class_heads\.1\.bias differs from class_heads\.0\.bias"):
        converted(state)
    detector = Dino.build(TINY.model_copy(update={"share_heads": False}), SPEC)
    fill_weights(detector, convert(state), SOURCE)
    assert not torch.equal(detector.class_heads[1].bias, detector.class_heads[0].bias)  # pyright: ignore
