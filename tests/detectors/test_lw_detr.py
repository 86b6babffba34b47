"""LW-DETR and RF-DETR: groups of queries train with transformers' own loss, and only the first is an output."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.examples import SPEC, batch_of, images_of
from tests.families import tiny, tiny_config
from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import InputSpec
from workbench.detectors.lw_detr import LwDetr, ViTConfig
from workbench.detectors.output import Queries
from workbench.detectors.registry import family

FAMILIES = ("lw_detr", "rf_detr")
every_family = pytest.mark.parametrize("name", FAMILIES)
IMAGES, PADDING = images_of((64, 96), (64, 80), (48, 96))


def grouped(name: str, **changes: Any) -> LwDetr:
    detector = tiny(name, **changes)
    assert isinstance(detector, LwDetr)
    return detector


def some_targets() -> tuple[TargetBatch, list[dict[str, Tensor]]]:
    """Two, none and three targets; the second of the third image may not be matched."""
    torch.manual_seed(1)
    targets = batch_of([2, 0, 3], 3)
    targets.valid[2, 1] = False
    rows = zip(targets.labels, targets.boxes, targets.valid, strict=True)
    return targets, [{"class_labels": label[valid], "boxes": box[valid]} for label, box, valid in rows]


@every_family
@pytest.mark.parametrize("training", [False, True])
def test_every_layer_of_the_first_group_equals_transformers_own_outputs(name: str, training: bool):
    detector, (_, labels) = grouped(name).train(training), some_targets()
    output = detector(IMAGES, PADDING)
    theirs = detector.model(IMAGES, pixel_mask=(~PADDING).long(), labels=labels)
    assert output.logits.shape == (2, 3, 6, 3) and output.boxes.shape == (2, 3, 6, 4) and output.states.shape == (2, 3, 6, 32)
    assert theirs.logits.shape[1] == (18 if training else 6)
    torch.testing.assert_close(output.logits[-1], theirs.logits[:, :6])
    torch.testing.assert_close(output.boxes[-1], theirs.pred_boxes[:, :6])
    torch.testing.assert_close(output.logits[0], theirs.auxiliary_outputs[0]["logits"][:, :6])
    torch.testing.assert_close(output.boxes[0], theirs.auxiliary_outputs[0]["pred_boxes"][:, :6])
    assert torch.equal(output.states[-1], theirs.last_hidden_state[:, :6])


@every_family
def test_weighted_losses_and_gradients_equal_transformers_own(name: str):
    detector, (targets, labels) = grouped(name).train(), some_targets()
    terms = detector.losses(detector(IMAGES, PADDING), targets, 4.0)
    assert set(terms) == set(detector.loss_weights)
    ours = torch.stack([detector.loss_weights[key] * value for key, value in terms.items()]).sum()
    theirs = detector.model(IMAGES, pixel_mask=(~PADDING).long(), labels=labels).loss
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    named = [(key, value) for key, value in detector.named_parameters() if value.requires_grad]
    parameters = [value for _, value in named]
    for (key, _), a, b in zip(named, torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3, msg=key)


@every_family
def test_groups_beyond_the_first_are_seen_in_training_only(name: str):
    detector = grouped(name).train()
    aux = {group.name: group.logits.shape for group in detector(IMAGES, PADDING).aux}
    assert aux == {"encoder": (3, 3, 6, 3), "groups": (4, 3, 6, 3)}, "three groups; two of them, of two layers, beyond the first"
    assert detector.eval()(IMAGES, PADDING).aux == ()
    alone = grouped(name, groups=1).train()
    assert [group.name for group in alone(IMAGES, PADDING).aux] == ["encoder"]
    assert set(alone.loss_weights) == {f"{term}{end}" for term in ("class", "bbox", "giou") for end in ("", "_encoder")}


@every_family
def test_an_extra_group_is_one_group_in_training_too_and_leaves_the_own_output_alone(name: str):
    detector = grouped(name)
    alone = copy.deepcopy(detector).train()(IMAGES, PADDING)
    evaluated = detector(IMAGES, PADDING)
    content = torch.randn(3, 7, 32, requires_grad=True)
    reference = torch.rand(3, 7, 4).mul(0.8).add(0.1).requires_grad_()
    queries = Queries(content, None, reference, torch.full((3, 7), -1))
    expected = detector.decode(queries, evaluated.context)
    output = detector.train()(IMAGES, PADDING)
    # the same memory as in eval mode: there is no dropout, and what BatchNorm does lies before the context
    group = detector.decode(queries, evaluated.context)
    torch.testing.assert_close(group.logits, expected.logits)
    assert torch.equal(output.logits, alone.logits) and torch.equal(output.boxes, alone.boxes)
    assert detector.model.config.group_detr == 3
    (group.logits.sum() + group.boxes.sum()).backward()
    for value in (content, reference, detector.model.model.decoder.layers[0].self_attn.q_proj.weight):
        assert value.grad is not None and value.grad.abs().sum() > 0


@every_family
@pytest.mark.parametrize("attentions", [False, True])
def test_queries_that_fill_up_a_group_are_hidden_from_the_others(name: str, attentions: bool):
    detector = grouped(name)
    output = detector(IMAGES, PADDING)
    queries = output.queries
    valid = torch.ones(3, 6, dtype=torch.bool)
    valid[:, 4:] = False
    assert queries.reference is not None
    fewer = Queries(queries.content[:, :4], None, queries.reference[:, :4], queries.source[:, :4])
    with detector.collecting_attentions(attentions):
        hidden, wanted = detector.decode(replace(queries, valid=valid), output.context), detector.decode(fewer, output.context)
    torch.testing.assert_close(hidden.logits[:, :, :4], wanted.logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(output.logits[:, :, :4], wanted.logits, atol=1e-3)
    if attentions:
        assert hidden.attentions is not None and hidden.attentions.self_attention[..., 4:].max() < 1e-6


@every_family
def test_queries_name_the_cell_they_start_from(name: str):
    detector = grouped(name)
    output = detector(IMAGES, PADDING)
    inner = detector.model.model(IMAGES, pixel_mask=(~PADDING).long())
    cells = torch.cat([level.features.flatten(2) for level in output.neck], 2).transpose(1, 2)
    features = detector.model.model.enc_output_norm[0](detector.model.model.enc_output[0](cells))
    chosen = features.gather(1, output.queries.source[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(chosen, inner.enc_outputs_class)
    padded = torch.cat([level.padding.flatten(1) for level in output.neck], 1)
    assert not padded.gather(1, output.queries.source).any()
    assert output.memory == () and "memory" not in detector.provides and detector.side_multiple == 16


def test_a_projector_without_levels_which_transformers_allows_and_fails_on_cannot_be_configured():
    with pytest.raises(ValidationError, match="scales"):
        family("lw_detr").config.model_validate(tiny_config("lw_detr", scales=[]))


@pytest.mark.parametrize(("changes", "message"), [
    ({"side": 72}, "multiple of patch times windows"),
    ({"levels": [3, 1]}, "ascending layers between 1 and 3"),
    ({"levels": [4]}, "ascending layers between 1 and 3"),
    ({"heads": 5}, "not a multiple of heads"),
])  # fmt: skip
def test_a_vit_that_cannot_be_built_is_refused_with_the_reason(changes: dict[str, Any], message: str):
    vit = {"side": 64, "patch": 8, "width": 32, "heads": 4, "depth": 3, "windows": 2, "levels": [1, 3]}
    with pytest.raises(ValidationError, match=message):
        ViTConfig.model_validate(vit | changes)


@every_family
def test_strides_are_those_of_the_patches(name: str):
    vit = {"side": 56, "patch": 14, "width": 32, "heads": 4, "depth": 3, "windows": 2, "levels": [1, 3]}
    output = grouped(name, backbone=vit)(*images_of((56, 84)))
    assert [level.stride for level in output.neck] == ([7, 14] if name == "lw_detr" else [14])
    assert [level.stride for level in output.backbone] == [14]
    for level in (*output.neck, *output.backbone):
        assert (level.features.shape[2] * level.stride, level.features.shape[3] * level.stride) == (56, 84)


@every_family
def test_new_classes_reach_every_group(name: str):
    detector = grouped(name)
    detector.reset_classes(InputSpec(("a", "b"), SPEC.mean, SPEC.std))
    output = detector.train()(IMAGES, PADDING)
    assert {output.logits.shape[-1], *(group.logits.shape[-1] for group in output.aux)} == {2}
