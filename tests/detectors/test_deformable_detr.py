"""The adapter shows what transformers' model computes, layer by layer, and its decoder can be called again."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.examples import SMALL, SPEC, batch_of, images_of, small_detector
from workbench.datasets.targets import TargetBatch
from workbench.detectors.criterion import set_loss
from workbench.detectors.deformable_detr import DeformableDetr, DeformableDetrModelConfig
from workbench.detectors.detector import InputSpec
from workbench.detectors.output import Queries, QueryOutput
from workbench.matching import match_targets

TWO_LEVELS = {"levels": 2, "backbone": SMALL["backbone"] | {"levels": [1, 2]}}
VARIANTS: dict[str, dict[str, Any]] = {
    "refined": {},
    "plain": {"box_refine": False},
    "extra level": {"levels": 2},
    "two levels, plain": TWO_LEVELS | {"box_refine": False},
    "two-stage": TWO_LEVELS | {"two_stage": True},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)
SIZES = ((64, 96), (64, 80), (40, 96))


@pytest.fixture(scope="module")
def detectors() -> dict[str, DeformableDetr]:
    return {name: small_detector(**changes) for name, changes in VARIANTS.items()}


def labels_for(images: int) -> tuple[TargetBatch, list[dict[str, Tensor]]]:
    targets = batch_of([2] * images, 3)
    return targets, [{"class_labels": targets.labels[i], "boxes": targets.boxes[i]} for i in range(images)]


@every_variant
@pytest.mark.parametrize("training", [False, True])
def test_every_layer_equals_transformers_own_outputs(detectors: dict[str, DeformableDetr], variant: str, training: bool):
    detector = copy.deepcopy(detectors[variant]).train(training)
    images, padding = images_of(*SIZES)
    _, labels = labels_for(len(SIZES))
    with torch.no_grad():
        output = detector(images, padding)
        theirs = detector.model(images, pixel_mask=(~padding).long(), labels=labels)
    assert output.logits.shape == (2, 3, 6, 3) and output.boxes.shape == (2, 3, 6, 4) and output.states.shape == (2, 3, 6, 32)
    assert torch.equal(output.logits[-1], theirs.logits)
    torch.testing.assert_close(output.boxes[-1], theirs.pred_boxes, atol=1e-6, rtol=0)
    assert len(theirs.auxiliary_outputs) == 1
    assert torch.equal(output.logits[0], theirs.auxiliary_outputs[0]["logits"])
    torch.testing.assert_close(output.boxes[0], theirs.auxiliary_outputs[0]["pred_boxes"], atol=1e-6, rtol=0)
    assert torch.equal(output.states[-1], theirs.last_hidden_state)


@every_variant
def test_the_gradient_of_the_loss_equals_transformers_own(detectors: dict[str, DeformableDetr], variant: str):
    detector = copy.deepcopy(detectors[variant])
    images, padding = images_of((64, 96), (64, 80))
    targets, labels = labels_for(2)
    output = detector(images, padding)
    loss = set_loss(output.logits, output.boxes, match_targets(output.logits, output.boxes, targets), targets, 4.0)
    ours = torch.autograd.grad(loss["class"] + 5 * loss["bbox"] + 2 * loss["giou"], list(detector.parameters()), allow_unused=True)
    detector.model.config.class_cost = 2
    their_loss = detector.model(images, pixel_mask=(~padding).long(), labels=labels).loss
    theirs = torch.autograd.grad(their_loss, list(detector.parameters()), allow_unused=True)
    for (name, _), a, b in zip(detector.named_parameters(), ours, theirs, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3, msg=name)


@every_variant
def test_decoding_the_own_queries_again_gives_the_same_output(detectors: dict[str, DeformableDetr], variant: str):
    images, padding = images_of(*SIZES)
    for detector in (detectors[variant], copy.deepcopy(detectors[variant]).train()):
        with torch.no_grad():
            output = detector(images, padding)
            again = detector.decode(output.queries, output.context)
        assert torch.equal(again.logits, output.logits)
        assert torch.equal(again.boxes, output.boxes)
        assert torch.equal(again.states, output.states)
        assert again.memory is output.memory and again.aux == ()


def extra_group(output: QueryOutput, count: int, coordinates: int) -> Queries:
    generator = torch.Generator().manual_seed(5)
    batch, width = output.states.shape[1], output.states.shape[-1]
    return Queries(
        torch.randn(batch, count, width, generator=generator, requires_grad=True),
        torch.randn(batch, count, width, generator=generator, requires_grad=True),
        torch.rand(batch, count, coordinates, generator=generator).mul(0.8).add(0.1).requires_grad_(),
        torch.full((batch, count), -1),
    )


@every_variant
@pytest.mark.parametrize("coordinates", [2, 4])
def test_an_extra_group_leaves_the_own_output_unchanged_to_the_bit(detectors: dict[str, DeformableDetr], variant: str, coordinates: int):
    if coordinates == 2 and variant == "two-stage":
        coordinates = 4
    detector = detectors[variant]
    images, padding = images_of(*SIZES)
    alone = detector(images, padding)
    output = detector(images, padding)
    group = detector.decode(extra_group(output, 9, coordinates), output.context)
    assert group.logits.shape == (2, 3, 9, 3) and group.boxes.shape == (2, 3, 9, 4)
    assert torch.equal(output.logits, alone.logits) and torch.equal(output.boxes, alone.boxes)
    after = detector.decode(output.queries, output.context)
    assert torch.equal(after.logits, alone.logits), "the group leaves nothing behind in the context"


@every_variant
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradients_of_an_extra_group_reach_its_queries_and_the_shared_weights(variant: str, dropout: float):
    detector = small_detector(**VARIANTS[variant] | {"dropout": dropout}).train()
    images, padding = images_of(*SIZES)
    output = detector(images, padding)
    queries = extra_group(output, 4, 4)
    group = detector.decode(queries, output.context)
    (group.logits.square().sum() + group.boxes.square().sum()).backward()
    for value in (queries.content, queries.position, queries.reference):
        assert value is not None and value.grad is not None and value.grad.abs().sum() > 0
    for name in ("class_embed.0.weight", "model.decoder.layers.0.self_attn.q_proj.weight", "model.encoder.layers.0.mlp.fc1.weight"):
        gradient = dict(detector.model.named_parameters(remove_duplicate=False))[name].grad
        assert gradient is not None and gradient.abs().sum() > 0, name


@every_variant
def test_feature_levels_have_the_strides_shapes_and_padding_of_the_images(detectors: dict[str, DeformableDetr], variant: str):
    images, padding = images_of(*SIZES)
    output = detectors[variant](images, padding)
    strides = {"refined": [8], "plain": [8], "extra level": [8, 16], "two levels, plain": [4, 8], "two-stage": [4, 8]}[variant]
    for levels in (output.memory, output.neck):
        assert [level.stride for level in levels] == strides
        for level in levels:
            assert level.features.shape == (3, 32, 64 // level.stride, 96 // level.stride)
            # a cell is padding where the pixel it starts at is
            assert torch.equal(level.padding, padding[:, :: level.stride, :: level.stride])
    assert [level.stride for level in output.backbone] == [s for s in strides if s < 16]
    assert [level.features.shape[1] for level in output.backbone] == [{4: 8, 8: 16}[s] for s in strides if s < 16]
    neck = detectors[variant].model.model.input_proj[0](output.backbone[0].features)
    assert torch.equal(output.neck[0].features, neck)


@pytest.mark.parametrize("size", [(65, 65), (40, 200), (200, 40), (33, 129), (96, 96)])
def test_strides_are_right_for_sizes_that_are_no_multiple_of_them(size: tuple[int, int]):
    detector = small_detector(**TWO_LEVELS | {"levels": 4})
    output = detector(*images_of(size))
    assert [level.stride for level in output.memory] == [4, 8, 16, 32]


@every_variant
def test_what_the_memory_holds_in_padded_cells_does_not_matter(detectors: dict[str, DeformableDetr], variant: str):
    detector = detectors[variant]
    output = detector(*images_of(*SIZES))
    arguments = dict(output.context["arguments"])
    padded = ~arguments["encoder_attention_mask"].bool()
    assert padded.any()
    arguments["encoder_hidden_states"] = arguments["encoder_hidden_states"].masked_fill(padded[..., None], 1e3)
    again = detector.decode(output.queries, output.context | {"arguments": arguments})
    assert torch.equal(again.logits, output.logits) and torch.equal(again.boxes, output.boxes)


@every_variant
def test_an_image_answers_the_same_alone_and_in_a_batch_of_its_size(detectors: dict[str, DeformableDetr], variant: str):
    images, padding = images_of((64, 96), (64, 96), (64, 96))
    together = detectors[variant](images, padding)
    for index in range(3):
        alone = detectors[variant](images[index : index + 1], padding[index : index + 1])
        torch.testing.assert_close(alone.logits[:, 0], together.logits[:, index], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.boxes[:, 0], together.boxes[:, index], atol=1e-5, rtol=1e-5)


def test_learned_queries_have_no_source_and_selected_ones_name_their_encoder_cell(detectors: dict[str, DeformableDetr]):
    images, padding = images_of(*SIZES)
    learned = detectors["refined"](images, padding).queries
    assert (learned.source == -1).all() and "learned_queries" in detectors["refined"].provides
    detector = detectors["two-stage"]
    assert "learned_queries" not in detector.provides and "learned_queries" in DeformableDetr.provides
    output = detector(images, padding)
    inner = detector.model.model(images, pixel_mask=(~padding).long())
    proposed = inner.enc_outputs_coord_logits.sigmoid().gather(1, output.queries.source[..., None].expand(-1, -1, 4))
    assert output.queries.reference is not None
    assert torch.equal(output.queries.reference, proposed)


def test_two_stage_proposals_are_trained_to_tell_objects_from_background():
    detector = small_detector(**VARIANTS["two-stage"]).train()
    images, padding = images_of(*SIZES)
    targets = batch_of([2, 0, 1], 3)
    output = detector(images, padding, targets)
    (group,) = output.aux
    cells = sum(level.features.shape[2] * level.features.shape[3] for level in output.memory)
    assert group.logits.shape == (1, 3, cells, 3)
    losses = detector.losses(output, targets, 3.0)
    assert set(losses) == set(detector.loss_weights) == {f"{term}{end}" for term in ("class", "bbox", "giou") for end in ("", "_encoder")}
    any_class = TargetBatch(targets.boxes, torch.zeros_like(targets.labels), targets.valid)
    wanted = set_loss(group.logits, group.boxes, match_targets(group.logits, group.boxes, any_class), any_class, 3.0)
    for name, value in wanted.items():
        assert torch.equal(losses[f"{name}_encoder"], value)
    sum(losses.values()).backward()
    weight = detector.model.model.enc_output.weight
    assert weight.grad is not None and weight.grad.abs().sum() > 0, "without it the selection would stay random"
    unused = [name for name, p in detector.named_parameters() if p.grad is None]
    assert not unused, "every parameter is trained"
    assert detector.eval()(images, padding).aux == ()


def test_every_parameter_is_trained_and_nothing_is_frozen():
    detector = small_detector().train()
    targets = batch_of([2, 1], 3)
    output = detector(*images_of((64, 96), (64, 80)))
    sum(detector.losses(output, targets, 3.0).values()).backward()
    assert all(p.requires_grad for p in detector.parameters())
    # the last layer moves no reference of a layer behind it, so every gradient must come from the heads
    assert [name for name, p in detector.named_parameters() if p.grad is None] == []


def test_a_fresh_model_starts_at_the_focal_prior_with_small_boxes_at_their_reference():
    torch.manual_seed(0)
    detector = DeformableDetr.build(DeformableDetrModelConfig.model_validate(SMALL), SPEC).eval()
    output = detector(*images_of((64, 96)))
    assert output.logits.sigmoid().mean().item() == pytest.approx(0.01, abs=0.005)
    assert output.queries.reference is not None
    torch.testing.assert_close(output.boxes[0, 0, :, :2], output.queries.reference[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(output.boxes[0, 0, :, 2:], torch.full((6, 2), -2.0).sigmoid(), atol=1e-4, rtol=0)


def test_the_same_seed_builds_the_same_model():
    one, two, other = (small_detector(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_a_deep_copy_answers_for_itself(detectors: dict[str, DeformableDetr]):
    clone = copy.deepcopy(detectors["refined"])
    images, padding = images_of((64, 96))
    before = detectors["refined"](images, padding)
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.add_(0.1)
    changed = clone(images, padding)
    assert not torch.equal(changed.neck[0].features, before.neck[0].features)
    assert torch.equal(detectors["refined"](images, padding).logits, before.logits)


@pytest.mark.parametrize("variant", ["refined", "plain", "two-stage"])
def test_a_reset_head_knows_the_new_classes_and_keeps_everything_else(variant: str):
    detector = small_detector(**VARIANTS[variant])
    before = {name: value.clone() for name, value in detector.model.state_dict().items()}
    spec = InputSpec(("cat", "dog", "bird", "cow", "sheep"), SPEC.mean, SPEC.std)
    fresh = detector.reset_classes(spec)
    assert detector.spec == spec and detector.model.config.num_labels == 5
    after = detector.model.state_dict()
    assert fresh and set(fresh) <= set(after)
    for name, value in after.items():
        if "class_embed" in name:
            assert value.shape[0] == 5
        else:
            assert torch.equal(value, before[name]), name
    output = detector(*images_of((64, 96)))
    assert output.logits.shape == (2, 1, 6, 5)
    assert output.logits.sigmoid().mean().item() == pytest.approx(0.01, abs=0.01)
    heads = {id(p) for name, p in detector.model.named_parameters(remove_duplicate=False) if "class_embed" in name}
    alone = small_detector(spec=spec, **VARIANTS[variant])
    wanted = {id(p) for name, p in alone.model.named_parameters(remove_duplicate=False) if "class_embed" in name}
    assert len(heads) == len(wanted), "heads that shared a weight still share it"


@pytest.mark.parametrize(("changes", "message"), [
    ({"two_stage": True, "box_refine": False}, "two_stage needs box_refine"),
    ({"width": 48}, "multiple of 32"),
    ({"heads": 5}, "not a multiple of heads"),
    ({"levels": 1, "backbone": SMALL["backbone"] | {"levels": [1, 2]}}, "less than the backbone's 2"),
    ({"backbone": SMALL["backbone"] | {"levels": [3]}}, "ascending stages between 1 and 2"),
    ({"backbone": SMALL["backbone"] | {"levels": [2, 1]}}, "ascending stages"),
    ({"backbone": {"name": "resnet18", "widths": [1, 2, 3, 4]}}, "fixes widths"),
    ({"backbone": {"name": "resnet18", "stem": 16}}, "fixes stem"),
    ({"backbone": {"name": "resnet18", "block": "bottleneck"}}, "fixes block"),
    ({"backbone": {"name": "resnet18"}}, "less than the backbone's 3"),
    ({"backbone": {"widths": [8, 16], "depths": [1]}}, "same length"),
])  # fmt: skip
def test_an_architecture_that_cannot_be_built_is_refused_with_the_reason(changes: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        DeformableDetrModelConfig.model_validate(SMALL | changes)


def test_detections_are_the_best_query_class_pairs_in_pixels(detectors: dict[str, DeformableDetr]):
    detector = detectors["refined"]
    output = detector(*images_of((64, 96), (64, 80)))
    sizes = torch.tensor([[480, 640], [100, 50]])
    for k in (1, 5, 18, 300):
        found = detector.detections(output, sizes, k)
        for image in range(2):
            scores = output.logits[-1, image].detach().double().sigmoid()
            pairs = sorted(((float(scores[q, c]), q, c) for q in range(6) for c in range(3)), reverse=True)[:k]
            assert found[image].scores.tolist() == pytest.approx([score for score, _, _ in pairs], rel=1e-5)
            assert list(zip(found[image].queries.tolist(), found[image].labels.tolist(), strict=True)) == [(q, c) for _, q, c in pairs]
            height, width = sizes[image].tolist()
            for query, box in zip(found[image].queries, found[image].boxes, strict=True):
                x, y, w, h = output.boxes[-1, image, query].tolist()
                wanted = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
                limits = [width, height, width, height]
                assert box.tolist() == pytest.approx([min(max(v, 0.0), limit) for v, limit in zip(wanted, limits, strict=True)], abs=1e-2)


def test_detections_of_a_softmax_head_leave_no_object_out(detectors: dict[str, DeformableDetr]):
    output = replace(detectors["refined"](*images_of((64, 96))), activation="softmax")
    (found,) = detectors["refined"].detections(output, torch.tensor([[64, 96]]))
    assert len(found.scores) == 12 and set(found.labels.tolist()) == {0, 1}
    probability = output.logits[-1, 0].softmax(-1)
    torch.testing.assert_close(found.scores, probability[found.queries, found.labels])


def test_equal_scores_keep_the_order_of_query_and_class(detectors: dict[str, DeformableDetr]):
    output = detectors["refined"](*images_of((64, 96)))
    output = replace(output, logits=torch.zeros_like(output.logits))
    (found,) = detectors["refined"].detections(output, torch.tensor([[64, 96]]), 7)
    assert found.queries.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
