"""AdaMixer computes what its paper says, step by step against loops, and keeps the contract of every detector."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from tests.examples import SPEC, batch_of, images_of
from workbench.datasets.targets import TargetBatch
from workbench.detectors.adamixer import (
    AdaMixer,
    AdaMixerModelConfig,
    AdaptiveMixing,
    PlacedSelfAttention,
    box_to_xyzr,
    intersection_over_foreground,
    position_embedding,
    refine,
    sample_3d,
    xyzr_to_box,
)
from workbench.detectors.detector import InputSpec
from workbench.detectors.output import Level, Queries, QueryOutput
from workbench.detectors.registry import load_detector
from workbench.errors import CheckpointError
from workbench.files import read_json, write_json

SMALL: dict[str, Any] = {
    "backbone": {"stem": 8, "widths": [8, 16], "depths": [1, 1], "levels": [1, 2]},
    "width": 32, "heads": 4, "ffn": 24, "decoder_layers": 3, "queries": 6, "groups": 2, "in_points": 4, "out_points": 5,
}  # fmt: skip
SIZES = ((64, 96), (64, 80), (40, 96))


def small_adamixer(seed: int = 0, spec: InputSpec = SPEC, **changes: Any) -> AdaMixer:
    """In eval mode, every weight and statistic random: a fresh one has heads that leave boxes where they are."""
    torch.manual_seed(seed)
    detector = AdaMixer.build(AdaMixerModelConfig.model_validate(SMALL | changes), spec).eval()
    with torch.no_grad():
        for name, value in detector.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif name == "initial_boxes":
                value.uniform_(0.3, 0.7)
            elif value.is_floating_point():
                value.add_(0.1 * torch.randn_like(value))
    return detector


@pytest.fixture(scope="module")
def detector() -> AdaMixer:
    return small_adamixer()


def random_places(batch: int, count: int, seed: int = 0) -> Tensor:
    """xyzr of boxes of ordinary size and shape in an image of 96 x 64."""
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([0.0, 0.0, 2.0, -1.0]), torch.tensor([96.0, 64.0, 6.0, 1.0])
    return low + (high - low) * torch.rand(batch, count, 4, generator=generator)


# places


def test_a_place_is_centre_log_size_and_log_ratio_of_a_box():
    box = torch.tensor([30.0, 20.0, 8.0, 32.0])
    assert box_to_xyzr(box).tolist() == [30.0, 20.0, 4.0, 2.0]  # sqrt(8 * 32) = 2^4, 32 / 8 = 2^2
    assert xyzr_to_box(torch.tensor([30.0, 20.0, 4.0, 2.0])).tolist() == box.tolist()
    places = random_places(2, 9)
    torch.testing.assert_close(box_to_xyzr(xyzr_to_box(places)), places, atol=1e-5, rtol=1e-5)


def test_a_place_moves_by_multiples_of_its_size_and_by_octaves():
    moved = refine(torch.tensor([10.0, 20.0, 3.0, 0.5]), torch.tensor([0.5, -1.0, 1.0, -0.25]))
    assert moved.tolist() == [14.0, 12.0, 4.0, 0.25]


def test_iof_is_the_share_of_a_box_that_another_covers():
    places = random_places(2, 5)
    found = intersection_over_foreground(places)
    for image in range(2):
        for i in range(5):
            for j in range(5):
                (ax, ay, aw, ah), (bx, by, bw, bh) = xyzr_to_box(places[image, [i, j]]).tolist()
                width = max(0.0, min(ax + aw / 2, bx + bw / 2) - max(ax - aw / 2, bx - bw / 2))
                height = max(0.0, min(ay + ah / 2, by + bh / 2) - max(ay - ah / 2, by - bh / 2))
                assert found[image, i, j].item() == pytest.approx(width * height / (aw * ah), abs=1e-5)


def test_the_position_embedding_is_sine_and_cosine_of_each_coordinate():
    place = torch.tensor([[[300.0, 500.0, 5.0, -0.5]]])
    found = position_embedding(place, 32)[0, 0].tolist()
    for part, value in enumerate((0.3, 0.5, 5.0, -0.5)):
        for channel in range(8):
            angle = value / 10000 ** (2 * (channel // 2) / 8)
            wanted = math.cos(angle) if channel % 2 else math.sin(angle)
            assert found[8 * part + channel] == pytest.approx(wanted, abs=1e-5)


# sampling and mixing


def level_of(stride: int, height: int, width: int, channels: int = 4, seed: int = 0) -> Level:
    generator = torch.Generator().manual_seed(seed)
    return Level(torch.randn(2, channels, height, width, generator=generator), stride, torch.zeros(2, height, width, dtype=torch.bool))


def test_sampling_is_bilinear_in_a_level_and_a_softmax_over_levels():
    levels = [level_of(4, 8, 12), level_of(8, 4, 6, seed=1), level_of(16, 2, 3, seed=2)]
    generator = torch.Generator().manual_seed(3)
    points = torch.rand(2, 3, 2, 5, 3, generator=generator) * torch.tensor([120.0, 90.0, 6.0]) - torch.tensor([12.0, 12.0, 0.0])
    found = sample_3d(levels, points)
    assert found.shape == (2, 3, 2, 5, 2)
    outside = 0
    for image, query, group, point in torch.cartesian_prod(*(torch.arange(n) for n in (2, 3, 2, 5))).tolist():
        x, y, z = points[image, query, group, point].tolist()
        weights = [math.exp(-((z - math.log2(level.stride)) ** 2) / 2) for level in levels]
        for channel in range(2):
            wanted = 0.0
            for level, weight in zip(levels, weights, strict=True):
                cells = level.features[image, 2 * group + channel]
                u, v = x / level.stride - 0.5, y / level.stride - 0.5  # a cell's value stands at its centre
                left, top = math.floor(u), math.floor(v)
                for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
                    if 0 <= row < cells.shape[0] and 0 <= column < cells.shape[1]:
                        share = (1 - abs(u - column)) * (1 - abs(v - row))
                        wanted += weight / sum(weights) * share * cells[row, column].item()
                    else:
                        outside += 1
            assert found[image, query, group, point, channel].item() == pytest.approx(wanted, abs=1e-4)
    assert outside, "some points lay outside of the image"


def test_points_of_a_query_lie_around_its_place_in_units_of_its_sides(detector: AdaMixer):
    layer = detector.layers[0]
    content, places = torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(0)), random_places(1, 2)
    points = layer.sampling_points(content, places)
    offsets = layer.sampling_offsets(content).view(1, 2, 2, 4, 3)
    for query, group, point in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(4)).tolist():
        x, y, z, r = places[0, query].tolist()
        dx, dy, dz = offsets[0, query, group, point].tolist()
        wanted = [x + dx * 2 ** (z - r / 2), y + dy * 2 ** (z + r / 2), z + dz]
        assert points[0, query, group, point].tolist() == pytest.approx(wanted, abs=1e-3)


def test_mixing_multiplies_by_matrices_that_the_query_makes():
    torch.manual_seed(0)
    mixing = AdaptiveMixing(8, groups=2, in_points=3, out_points=5)
    sampled, content = torch.randn(1, 2, 2, 3, 4), torch.randn(1, 2, 8)
    found = mixing(sampled, content)
    for query in range(2):
        made = (mixing.matrices.weight @ content[0, query] + mixing.matrices.bias).view(2, 16 + 15)
        parts = []
        for group in range(2):
            channel, spatial = made[group, :16].view(4, 4), made[group, 16:].view(5, 3)
            x = torch.stack([torch.stack([(sampled[0, query, group, p] * channel[:, c]).sum() for c in range(4)]) for p in range(3)])
            x = ((x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()).clamp(min=0)
            x = torch.stack([torch.stack([(spatial[k] * x[:, c]).sum() for c in range(4)]) for k in range(5)])
            parts.append(((x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()).clamp(min=0).flatten())
        wanted = content[0, query] + mixing.projection.weight @ torch.cat(parts) + mixing.projection.bias
        torch.testing.assert_close(found[0, query], wanted, atol=1e-5, rtol=1e-5)


def test_attention_is_biased_by_the_overlap_of_the_boxes():
    torch.manual_seed(0)
    attention = PlacedSelfAttention(16, heads=2, dropout=0.0)
    with torch.no_grad():
        attention.iof_scale.copy_(torch.tensor([0.5, 2.0]))
    content, places = torch.randn(1, 4, 16), random_places(1, 4)
    found = attention(content, places)
    placed = (content + position_embedding(places, 16))[0]
    query, key, value = attention.in_projection(placed).chunk(3, dim=-1)
    iof = intersection_over_foreground(places)[0]
    heads = []
    for head, scale in ((slice(0, 8), 0.5), (slice(8, 16), 2.0)):
        scores = query[:, head] @ key[:, head].T / math.sqrt(8) + scale * torch.log(iof + 1e-7)
        heads.append(scores.softmax(-1) @ value[:, head])
    torch.testing.assert_close(found[0], placed + attention.out_projection(torch.cat(heads, -1)), atol=1e-5, rtol=1e-5)


# the contract


def test_outputs_have_the_shapes_of_the_contract_and_there_is_no_memory(detector: AdaMixer):
    images, padding = images_of(*SIZES)
    output = detector(images, padding)
    assert output.logits.shape == (3, 3, 6, 3) and output.boxes.shape == (3, 3, 6, 4) and output.states.shape == (3, 3, 6, 32)
    assert output.logits.dtype == output.boxes.dtype == torch.float32 and output.activation == "sigmoid"
    assert output.memory == () and output.aux == () and "memory" not in detector.provides
    assert [level.stride for level in output.neck] == [level.stride for level in output.backbone] == [4, 8]
    assert [level.features.shape[1] for level in output.neck] == [32, 32]
    assert [level.features.shape[1] for level in output.backbone] == [8, 16]
    for level in (*output.neck, *output.backbone):
        assert level.features.shape[-2:] == (64 // level.stride, 96 // level.stride)
        # a cell is padding where the pixel it starts at is
        assert torch.equal(level.padding, padding[:, :: level.stride, :: level.stride])
    assert (detector.num_layers, detector.num_queries, detector.width) == (3, 6, 32)
    assert (output.queries.source == -1).all() and output.queries.position is None


def test_heads_see_the_states_that_are_returned(detector: AdaMixer):
    output = detector(*images_of(*SIZES))
    for layer, scores, state in zip(detector.layers, output.logits, output.states, strict=True):
        assert torch.equal(layer.class_head(state), scores)


def test_boxes_are_the_refined_places_over_the_size_of_the_image_without_padding(detector: AdaMixer):
    output = detector(*images_of(*SIZES))
    place = output.queries.reference
    assert place is not None
    for layer, boxes, state in zip(detector.layers, output.boxes, output.states, strict=True):
        place = refine(place, layer.box_head(state))
        for image, (height, width) in enumerate(SIZES):
            for query in range(6):
                x, y, z, r = place[image, query].tolist()
                wanted = [x / width, y / height, 2 ** (z - r / 2) / width, 2 ** (z + r / 2) / height]
                assert boxes[image, query].tolist() == pytest.approx(wanted, abs=1e-4)


def test_a_fresh_model_starts_at_the_focal_prior_with_boxes_of_the_whole_image():
    torch.manual_seed(0)
    output = AdaMixer.build(AdaMixerModelConfig.model_validate(SMALL), SPEC).eval()(*images_of(*SIZES))
    assert output.queries.reference is not None
    for image, (height, width) in enumerate(SIZES):
        wanted = [width / 2, height / 2, math.log2(math.sqrt(width * height)), math.log2(height / width)]
        assert output.queries.reference[image, 0].tolist() == pytest.approx(wanted, abs=1e-4)
    torch.testing.assert_close(output.boxes, torch.tensor([0.5, 0.5, 1.0, 1.0]).expand_as(output.boxes), atol=1e-5, rtol=0)
    assert output.logits.sigmoid().mean().item() == pytest.approx(0.01, abs=0.01)


@pytest.mark.parametrize("points", [4, 5])
def test_fresh_sampling_points_lie_inside_the_box_an_octave_finer(points: int):
    torch.manual_seed(0)
    layer = AdaMixer.build(AdaMixerModelConfig.model_validate(SMALL | {"in_points": points}), SPEC).layers[0]
    place = torch.tensor([[[50.0, 30.0, 4.0, 0.0]]])
    found = layer.sampling_points(torch.randn(1, 1, 32), place)[0, 0]
    assert (found[..., 0] - 50).abs().max() <= 8 and (found[..., 1] - 30).abs().max() <= 8 and (found[..., 2] == 3).all()
    if points == 4:  # a square number: the centres of a grid
        assert sorted(found[0, :, :2].tolist()) == [[46.0, 26.0], [46.0, 34.0], [54.0, 26.0], [54.0, 34.0]]


def test_permuted_queries_give_permuted_answers(detector: AdaMixer):
    order = [3, 0, 5, 1, 4, 2]
    permuted = copy.deepcopy(detector)
    with torch.no_grad():
        permuted.initial_content.copy_(detector.initial_content[order])
        permuted.initial_boxes.copy_(detector.initial_boxes[order])
    images, padding = images_of(*SIZES)
    one, two = detector(images, padding), permuted(images, padding)
    torch.testing.assert_close(two.logits, one.logits[:, :, order], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(two.boxes, one.boxes[:, :, order], atol=1e-4, rtol=1e-4)


def test_an_image_answers_the_same_alone_and_in_a_batch_of_its_size(detector: AdaMixer):
    images, padding = images_of(*SIZES)
    together = detector(images, padding)
    for index in range(3):
        alone = detector(images[index : index + 1], padding[index : index + 1])
        torch.testing.assert_close(alone.logits[:, 0], together.logits[:, index], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(alone.boxes[:, 0], together.boxes[:, index], atol=1e-4, rtol=1e-4)


def test_beyond_the_features_the_decoder_reads_zero(detector: AdaMixer):
    """So an image in a wider batch differs only by what the convolutions make of the padding."""
    output = detector(*images_of(*SIZES))
    wider = tuple(Level(F.pad(level.features, (0, 3, 0, 2)), level.stride, F.pad(level.padding, (0, 3, 0, 2), value=True))
                  for level in output.neck)  # fmt: skip
    again = detector.decode(output.queries, type(output.context)(wider, output.backbone, output.context.sides))
    torch.testing.assert_close(again.logits, output.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again.boxes, output.boxes, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(65, 65), (40, 200), (33, 129)])
def test_sizes_that_are_no_multiple_of_the_stride_keep_places_in_pixels(detector: AdaMixer, size: tuple[int, int]):
    output = detector(*images_of(size))
    assert [level.stride for level in output.neck] == [4, 8]
    assert output.queries.reference is not None
    boxes = xyzr_to_box(output.queries.reference) / torch.tensor([size[1], size[0], size[1], size[0]])
    torch.testing.assert_close(boxes[0], detector.initial_boxes, atol=1e-5, rtol=1e-5)


# a second call of the decoder


def extra_group(output: QueryOutput, count: int) -> Queries:
    batch, width = output.states.shape[1], output.states.shape[-1]
    content = torch.randn(batch, count, width, generator=torch.Generator().manual_seed(5)).requires_grad_()
    return Queries(content, None, random_places(batch, count).requires_grad_(), torch.full((batch, count), -1))


@pytest.mark.parametrize("training", [False, True])
def test_an_extra_group_leaves_the_own_output_unchanged_to_the_bit(detector: AdaMixer, training: bool):
    detector = copy.deepcopy(detector).train(training)
    images, padding = images_of(*SIZES)
    output = detector(images, padding)
    kept = output.logits.clone(), output.boxes.clone(), output.states.clone()
    group = detector.decode(extra_group(output, 9), output.context)
    assert group.logits.shape == (3, 3, 9, 3) and group.boxes.shape == (3, 3, 9, 4)
    after = detector.decode(output.queries, output.context)
    for found in (output, after):
        assert all(torch.equal(a, b) for a, b in zip((found.logits, found.boxes, found.states), kept, strict=True))
    assert after.neck is output.neck and after.aux == ()


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_an_extra_group_reach_its_queries_and_the_shared_weights(training: bool, dropout: float):
    detector = small_adamixer(dropout=dropout).train(training)
    output = detector(*images_of(*SIZES))
    queries = extra_group(output, 4)
    group = detector.decode(queries, output.context)
    (group.logits.square().sum() + group.boxes.square().sum()).backward()
    for value in (queries.content, queries.reference):
        assert value is not None and value.grad is not None and value.grad.abs().sum() > 0
    assert detector.initial_content.grad is None, "the group has queries of its own"
    parameters = dict(detector.named_parameters())
    for name in ("layers.0.attention.in_projection.weight", "layers.2.class_head.out.weight", "neck.norm.weight",
                 "backbone.model.embedder.embedder.convolution.weight"):  # fmt: skip
        gradient = parameters[name].grad
        assert gradient is not None and gradient.abs().sum() > 0, name


def test_queries_without_a_place_are_refused(detector: AdaMixer):
    output = detector(*images_of((64, 96)))
    for reference in (None, torch.rand(1, 6, 2)):
        with pytest.raises(ValueError, match="xyzr"):
            detector.decode(Queries(output.queries.content, None, reference, output.queries.source), output.context)


def test_a_query_that_only_fills_up_is_seen_by_no_other(detector: AdaMixer):
    output = detector(*images_of(*SIZES))
    queries = extra_group(output, 5)
    assert queries.reference is not None
    valid = torch.tensor([[True, True, True, False, False]] * 3)
    hidden = detector.decode(replace(queries, valid=valid), output.context)
    fewer = Queries(queries.content[:, :3], None, queries.reference[:, :3], queries.source[:, :3])
    alone = detector.decode(fewer, output.context)
    torch.testing.assert_close(hidden.logits[:, :, :3], alone.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(hidden.boxes[:, :, :3], alone.boxes, atol=1e-4, rtol=1e-4)
    none = detector.decode(replace(queries, valid=torch.zeros_like(valid)), output.context)
    assert torch.isfinite(none.logits).all()


def test_queries_of_boxes_are_placed_on_them(detector: AdaMixer):
    output = detector(*images_of(*SIZES))
    boxes = torch.tensor([[[0.5, 0.25, 0.5, 0.25], [0.5, 0.5, 0.0, 0.0]]]).expand(3, -1, -1)
    queries = detector.queries_of_boxes(output, boxes, torch.zeros(3, 2, 32))
    assert queries.reference is not None
    for image, (height, width) in enumerate(SIZES):
        wanted = [0.5 * width, 0.25 * height, 0.5 * width, 0.25 * height]
        assert xyzr_to_box(queries.reference[image, 0]).tolist() == pytest.approx(wanted, abs=1e-3)
    assert torch.isfinite(queries.reference).all(), "a box without area too"
    assert detector.reference_form == "xyzr"


# training


def test_every_parameter_is_trained_and_the_first_places_are_not():
    detector = small_adamixer().train()
    output = detector(*images_of((64, 96), (64, 80)))
    losses = detector.losses(output, batch_of([2, 1], 3), 3.0)
    assert set(losses) == set(detector.loss_weights) == {"class", "bbox", "giou"}
    assert detector.loss_weights == {"class": 2.0, "bbox": 5.0, "giou": 2.0}
    sum(losses.values()).backward()
    assert [name for name, p in detector.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert "initial_boxes" not in dict(detector.named_parameters())


def test_images_without_targets_train_the_class_heads_alone():
    detector = small_adamixer().train()
    output = detector(*images_of((64, 96), (64, 80)))
    losses = detector.losses(output, TargetBatch.of_nothing(2, torch.device("cpu")), 1.0)
    assert losses["bbox"].item() == losses["giou"].item() == 0 and losses["class"].item() > 0
    sum(losses.values()).backward()
    gradient = detector.layers[0].class_head.out.weight.grad
    assert gradient is not None and torch.isfinite(gradient).all() and gradient.abs().sum() > 0


def test_half_precision_keeps_places_in_full():
    detector = small_adamixer().train()
    images, padding = images_of(*SIZES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = detector(images, padding)
    assert output.boxes.dtype == torch.float32 and torch.isfinite(output.boxes).all()
    assert output.queries.reference is not None and output.queries.reference.dtype == torch.float32
    sum(detector.losses(output, batch_of([2, 1, 0], 3), 3.0).values()).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in detector.parameters())


def test_the_same_seed_builds_the_same_model():
    one, two, other = (small_adamixer(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_a_reset_head_knows_the_new_classes_and_keeps_everything_else():
    detector = small_adamixer()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    spec = InputSpec(("cat", "dog", "bird", "cow", "sheep"), SPEC.mean, SPEC.std)
    fresh = detector.reset_classes(spec)
    assert detector.spec == spec and len(fresh) == 6
    for name, value in detector.state_dict().items():
        assert (value.shape[0] == 5) if name in fresh else torch.equal(value, before[name]), name
    assert detector(*images_of((64, 96))).logits.shape == (3, 1, 6, 5)


@pytest.mark.parametrize(("changes", "message"), [
    ({"width": 48}, "multiple of 32"),
    ({"heads": 5}, "not a multiple of heads 5"),
    ({"groups": 3}, "not a multiple of groups 3"),
    ({"encoder_layers": 6}, "Extra inputs"),
    ({"queries": 0}, "greater than or equal to 1"),
])  # fmt: skip
def test_a_configuration_that_cannot_be_honoured_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        AdaMixerModelConfig.model_validate(SMALL | changes)


def test_the_defaults_are_those_of_the_released_r50_model():
    config = AdaMixerModelConfig()
    assert (config.queries, config.decoder_layers, config.width, config.heads, config.ffn) == (100, 6, 256, 8, 2048)
    assert (config.groups, config.in_points, config.out_points, config.dropout) == (4, 32, 128, 0.0)
    assert config.backbone.name == "resnet50" and config.backbone.strides == (4, 8, 16, 32)


# on disk


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_a_saved_detector_loads_with_equal_outputs(norm: str, tmp_path: Any):
    spec = InputSpec(("cat", "<b>dog</b>", "../bird"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), {"height": 64, "width": 96})
    detector = small_adamixer(spec=spec, backbone=SMALL["backbone"] | {"norm": norm})
    detector.save(tmp_path)
    loaded = load_detector(tmp_path).eval()
    assert isinstance(loaded, AdaMixer) and loaded.spec == spec and loaded.config == detector.config
    one, two = detector(*images_of(*SIZES)), loaded(*images_of(*SIZES))
    assert torch.equal(one.logits, two.logits) and torch.equal(one.boxes, two.boxes)
    trained = {name for name, p in detector.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in loaded.named_parameters() if p.requires_grad}


def test_a_reset_head_is_saved_and_loaded(tmp_path: Any):
    detector = small_adamixer()
    detector.reset_classes(InputSpec(("one", "two"), SPEC.mean, SPEC.std))
    detector.save(tmp_path)
    assert load_detector(tmp_path).eval()(*images_of((64, 96))).logits.shape[-1] == 2


def test_a_folder_that_does_not_fit_its_configuration_names_every_key(tmp_path: Any):
    small_adamixer().save(tmp_path)
    values = read_json(tmp_path / "config.json")
    assert values["model_type"] == "adamixer"
    write_json(tmp_path / "config.json", values | {"queries": 7, "decoder_layers": 4})
    with pytest.raises(CheckpointError) as caught:
        load_detector(tmp_path)
    text = str(caught.value)
    assert "shape: initial_content is [6, 32] in the file, [7, 32] in the model" in text
    assert "missing: layers.3.attention.iof_scale" in text and "nothing was loaded" in text
    write_json(tmp_path / "config.json", values | {"depth": 4, "heads": 5})
    with pytest.raises(CheckpointError, match=r"not a usable configuration.*depth"):
        load_detector(tmp_path)
    write_json(tmp_path / "config.json", values)
    (tmp_path / "workbench.json").unlink()
    with pytest.raises(CheckpointError, match=r"workbench\.json is missing"):
        load_detector(tmp_path)
