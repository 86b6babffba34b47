"""DETR, Conditional DETR and DAB-DETR: every layer is what transformers computes, whatever its flag says, and the decoder answers twice."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.examples import SPEC, batch_of, images_of
from workbench.datasets.targets import TargetBatch
from workbench.detectors.criterion import set_loss
from workbench.detectors.registry import FAMILIES, load_detector
from workbench.matching import match_targets

SMALL: dict[str, Any] = {
    "backbone": {"stem": 8, "widths": [8, 16], "depths": [1, 1], "levels": [2]},
    "width": 32, "heads": 4, "ffn": 48, "encoder_layers": 1, "decoder_layers": 3, "queries": 6, "dropout": 0.0,
}  # fmt: skip
NAMES = ("detr", "conditional_detr", "dab_detr")
SIZES = ((64, 96), (64, 80), (40, 96))
every_family = pytest.mark.parametrize("name", NAMES)


def fresh(name: str, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    return FAMILIES[name].detector.build(FAMILIES[name].config.model_validate(SMALL | changes), SPEC)


def small(name: str, seed: int = 0, **changes: Any) -> Any:
    """In eval mode, with every weight and statistic random: fresh box heads answer 0."""
    detector = fresh(name, seed, **changes).eval()
    with torch.no_grad():
        for key, value in detector.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif value.is_floating_point():
                value.add_(0.1 * torch.randn_like(value))
    return detector


@pytest.fixture(scope="module")
def detectors() -> dict[str, Any]:
    return {name: small(name) for name in NAMES}


def labels_for(images: int) -> tuple[TargetBatch, list[dict[str, Tensor]]]:
    targets = batch_of([2] * images, 3)
    return targets, [{"class_labels": targets.labels[i], "boxes": targets.boxes[i]} for i in range(images)]


def answer(model: Any) -> tuple[Tensor, Tensor]:
    images, padding = images_of(*SIZES)
    with torch.no_grad():
        output = model(images, pixel_mask=(~padding).long())
    return output.logits, output.pred_boxes


@every_family
@pytest.mark.parametrize("flag", [False, True], ids=["auxiliary_loss off", "auxiliary_loss on"])
@pytest.mark.parametrize("training", [False, True])
def test_the_last_layer_is_transformers_own_output_and_the_others_its_auxiliary_outputs(
    detectors: dict[str, Any], name: str, flag: bool, training: bool
):
    detector = copy.deepcopy(detectors[name]).train(training)
    detector.model.config.auxiliary_loss = flag
    images, padding = images_of(*SIZES)
    _, labels = labels_for(len(SIZES))
    with torch.no_grad():
        output = detector(images, padding)
        theirs = detector.model(images, pixel_mask=(~padding).long(), labels=labels)
    columns = 4 if name == "detr" else 3
    assert output.logits.shape == (3, 3, 6, columns) and output.boxes.shape == (3, 3, 6, 4) and output.states.shape == (3, 3, 6, 32)
    assert torch.equal(output.logits[-1], theirs.logits)
    torch.testing.assert_close(output.boxes[-1], theirs.pred_boxes, atol=1e-6, rtol=0)
    if flag:
        assert len(theirs.auxiliary_outputs) == 2
        for layer, other in enumerate(theirs.auxiliary_outputs):
            assert torch.equal(output.logits[layer], other["logits"])
            torch.testing.assert_close(output.boxes[layer], other["pred_boxes"], atol=1e-6, rtol=0)


@every_family
def test_the_logits_of_a_layer_are_the_class_head_on_its_state(detectors: dict[str, Any], name: str):
    detector = detectors[name]
    output = detector(*images_of(*SIZES))
    head = detector.model.class_embed if name == "dab_detr" else detector.model.class_labels_classifier
    assert torch.equal(output.logits, head(output.states))
    assert output.activation == detector.activation == ("softmax" if name == "detr" else "sigmoid")
    assert (detector.num_layers, detector.num_queries, detector.width) == (3, 6, 32)


@pytest.mark.parametrize("name", ["detr", "conditional_detr"])
def test_transformers_flag_changes_the_answers_so_a_checkpoint_keeps_its_own(name: str, detectors: dict[str, Any], tmp_path: Path):
    detector = copy.deepcopy(detectors[name])
    assert detector.model.config.auxiliary_loss is False, "own models do what the published code does"
    without = detector(*images_of(*SIZES))
    detector.model.config.auxiliary_loss = True
    flagged = detector(*images_of(*SIZES))
    assert (flagged.logits[-1] - without.logits[-1]).abs().max() > 1e-2
    assert torch.equal(flagged.logits[0], without.logits[0]), "the first layer has no layer before it"
    detector.save(tmp_path)
    loaded = load_detector(tmp_path).eval()
    assert torch.equal(loaded(*images_of(*SIZES)).logits, flagged.logits)


@every_family
@pytest.mark.parametrize("flag", [False, True], ids=["auxiliary_loss off", "auxiliary_loss on"])
def test_the_gradient_of_the_loss_is_that_of_transformers_own_loss(detectors: dict[str, Any], name: str, flag: bool):
    detector = copy.deepcopy(detectors[name])
    images, padding = images_of((64, 96), (64, 80))
    targets, labels = labels_for(2)
    detector.model.config.auxiliary_loss = flag
    output = detector(images, padding)
    # without the flag transformers' loss sees the last layer only
    rows = slice(None) if flag else slice(-1, None)
    logits, boxes = output.logits[rows], output.boxes[rows]
    match = match_targets(logits, boxes, targets, output.activation)
    loss = set_loss(logits, boxes, match, targets, 4.0, output.activation)
    parameters = [(n, p) for n, p in detector.named_parameters()]
    ours = torch.autograd.grad(loss["class"] + 5 * loss["bbox"] + 2 * loss["giou"], [p for _, p in parameters], allow_unused=True)
    their_loss = detector.model(images, pixel_mask=(~padding).long(), labels=labels).loss
    theirs = torch.autograd.grad(their_loss, [p for _, p in parameters], allow_unused=True)
    for (key, _), a, b in zip(parameters, ours, theirs, strict=True):
        torch.testing.assert_close(
            torch.zeros(()) if a is None else a, torch.zeros(()) if b is None else b, atol=1e-4, rtol=1e-3, msg=lambda m, k=key: f"{k}: {m}"
        )


@every_family
def test_every_parameter_is_trained_and_nothing_is_frozen(name: str):
    detector = fresh(name).train()
    targets = batch_of([2, 1], 3)
    losses = detector.losses(detector(*images_of((64, 96), (64, 80))), targets, 3.0)
    assert set(losses) == set(detector.loss_weights) == {"class", "bbox", "giou"}
    sum(losses.values()).backward()
    assert all(p.requires_grad for p in detector.parameters())
    assert [key for key, p in detector.named_parameters() if p.grad is None] == []


@every_family
def test_a_fresh_model_has_queries_apart_and_matrices_of_xaviers_size(name: str):
    detector = fresh(name, queries=400)
    table = detector.query_table().weight
    assert table.std().item() == pytest.approx(1.0, abs=0.1), "transformers' 0.02 would put all queries in one place"
    layer = detector.model.model.decoder.layers[0]
    weight = layer.mlp.fc1.weight
    assert weight.abs().max().item() == pytest.approx((6 / (32 + 48)) ** 0.5, rel=0.05)
    output = detector.eval()(*images_of((64, 96)))
    if name == "detr":
        return
    assert output.logits.sigmoid().mean().item() == pytest.approx(0.01, abs=0.005)
    assert output.boxes[0, 0, :, :2].std(0).min() > 0.05
    torch.testing.assert_close(output.boxes[0, ..., :2], output.queries.reference[..., :2], atol=1e-4, rtol=0)


@every_family
def test_decoding_the_own_queries_again_gives_the_same_output(detectors: dict[str, Any], name: str):
    for detector in (detectors[name], copy.deepcopy(detectors[name]).train()):
        output = detector(*images_of(*SIZES))
        again = detector.decode(output.queries, output.context)
        assert torch.equal(again.logits, output.logits) and torch.equal(again.boxes, output.boxes)
        assert torch.equal(again.states, output.states)
        assert again.memory is output.memory and again.aux == ()


@every_family
@pytest.mark.parametrize("training", [False, True])
def test_an_extra_group_leaves_the_own_output_unchanged_and_sends_gradients_back(name: str, training: bool):
    detector = small(name, dropout=0.1 if training else 0.0).train(training)
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(1)
    alone = detector(*images_of(*SIZES))
    torch.manual_seed(1)
    output = detector(*images_of(*SIZES))
    group = detector.queries_of_boxes(
        output, torch.rand(3, 9, 4, generator=generator) * 0.5 + 0.2, torch.randn(3, 9, 32, generator=generator)
    )
    inputs = [value.requires_grad_() for value in (group.content, group.position, group.reference) if value is not None]
    extra = detector.decode(group, output.context)
    assert extra.boxes.shape == (3, 3, 9, 4)
    assert torch.equal(output.logits, alone.logits) and torch.equal(output.boxes, alone.boxes)
    (extra.logits.square().sum() + extra.boxes.square().sum()).backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in inputs)
    shared = dict(detector.model.named_parameters())
    for key in ("model.encoder.layers.0.self_attn_layer_norm.weight", "model.decoder.layernorm.weight", "model.input_projection.weight"):
        assert shared[key].grad is not None and shared[key].grad.abs().sum() > 0, key
    torch.manual_seed(1)
    assert torch.equal(detector(*images_of(*SIZES)).logits, alone.logits) or training, "nothing of the group stays behind"


@every_family
def test_a_query_that_is_not_valid_is_seen_by_no_other(detectors: dict[str, Any], name: str):
    detector = detectors[name]
    output = detector(*images_of(*SIZES))
    valid = torch.ones(3, 6, dtype=torch.bool)
    valid[:, 4:] = False
    hidden = detector.decode(replace(output.queries, valid=valid), output.context)
    own = output.queries
    few = replace(own, content=own.content[:, :4], source=own.source[:, :4],
                  position=None if own.position is None else own.position[:, :4],
                  reference=None if own.reference is None else own.reference[:, :4])  # fmt: skip
    wanted = detector.decode(few, output.context)
    torch.testing.assert_close(hidden.logits[:, :, :4], wanted.logits, atol=1e-5, rtol=1e-5)
    assert (hidden.logits[:, :, :4] - output.logits[:, :, :4]).abs().max() > 1e-3


@every_family
def test_attention_maps_are_collected_when_asked_for_and_change_nothing(detectors: dict[str, Any], name: str):
    detector = detectors[name]
    before = detector(*images_of(*SIZES))
    with detector.collecting_attentions():
        output = detector(*images_of(*SIZES))
        again = detector.decode(output.queries, output.context)
    assert before.attentions is None and detector(*images_of(*SIZES)).attentions is None
    assert detector.decode(output.queries, output.context).attentions is None
    torch.testing.assert_close(output.logits, before.logits, atol=1e-5, rtol=1e-5)
    maps = output.attentions
    assert maps.self_attention.shape == (3, 3, 4, 6, 6) and maps.cross_attention.shape == (3, 3, 4, 6, 8 * 12)
    for one in (maps.self_attention, maps.cross_attention):
        torch.testing.assert_close(one.sum(-1), torch.ones(one.shape[:-1]))
    padding = output.memory[0].padding.flatten(1)
    assert padding.any() and maps.cross_attention.sum((0, 2, 3))[padding].abs().max() < 1e-6
    torch.testing.assert_close(again.attentions.cross_attention, maps.cross_attention)
    torch.testing.assert_close(again.attentions.self_attention, maps.self_attention)


@every_family
def test_feature_levels_have_the_stride_shape_and_padding_of_the_images(detectors: dict[str, Any], name: str):
    detector = detectors[name]
    images, padding = images_of(*SIZES)
    output = detector(images, padding)
    for (level,), channels in ((output.memory, 32), (output.neck, 32), (output.backbone, 16)):
        assert level.stride == 8 and level.features.shape == (3, channels, 8, 12)
        assert torch.equal(level.padding, padding[:, ::8, ::8])
    assert torch.equal(output.neck[0].features, detector.model.model.input_projection(output.backbone[0].features))
    theirs = detector.model.model(images, pixel_mask=(~padding).long(), output_hidden_states=True).encoder_last_hidden_state
    assert torch.equal(output.memory[0].features.flatten(2).transpose(1, 2), theirs)


@every_family
def test_what_the_memory_holds_in_padded_cells_does_not_matter(detectors: dict[str, Any], name: str):
    detector = detectors[name]
    output = detector(*images_of(*SIZES))
    arguments = dict(output.context["arguments"])
    padded = output.memory[0].padding.flatten(1)
    assert padded.any()
    arguments["encoder_hidden_states"] = arguments["encoder_hidden_states"].masked_fill(padded[..., None], 1e3)
    again = detector.decode(output.queries, output.context | {"arguments": arguments})
    assert torch.equal(again.logits, output.logits) and torch.equal(again.boxes, output.boxes)
