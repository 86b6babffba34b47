"""Conditional DETR: points are read from the positions unless they are given, and boxes are counted from them."""

import copy
from dataclasses import replace

import torch
from transformers import ConditionalDetrForObjectDetection

from tests.detectors.test_single_level import SIZES, fresh, small
from tests.examples import SPEC, images_of
from workbench.detectors.conditional_detr import ConditionalDetr


def test_points_are_the_models_own_layer_on_the_positions():
    detector = small("conditional_detr")
    queries = detector(*images_of(*SIZES)).queries
    assert (queries.reference.shape == (3, 6, 2) and not queries.content.any()) or queries.position.any()
    assert torch.equal(queries.reference, detector.model.model.decoder.ref_point_head(queries.position).sigmoid())
    assert {"references", "reference_from_position"} <= detector.provides


def test_a_missing_point_is_read_from_the_position_and_handed_back():
    detector = small("conditional_detr")
    output = detector(*images_of(*SIZES))
    again = detector.decode(replace(output.queries, reference=None), output.context)
    assert torch.equal(again.logits, output.logits) and torch.equal(again.queries.reference, output.queries.reference)


def test_a_copied_point_is_the_same_point():
    detector = small("conditional_detr")
    output = detector(*images_of(*SIZES))
    again = detector.decode(replace(output.queries, reference=output.queries.reference.clone()), output.context)
    torch.testing.assert_close(again.logits, output.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again.boxes, output.boxes, atol=1e-6, rtol=1e-5)


def test_given_points_are_where_the_queries_look_and_where_their_boxes_start():
    detector = fresh("conditional_detr").eval()
    output = detector(*images_of(*SIZES))
    boxes = torch.rand(3, 6, 4, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    group = detector.decode(replace(output.queries, reference=boxes), output.context)
    torch.testing.assert_close(group.boxes[..., :2], boxes[..., :2].expand(3, -1, -1, -1), atol=1e-4, rtol=0)
    centres = detector.decode(replace(output.queries, reference=boxes[..., :2]), output.context)
    assert torch.equal(centres.logits, group.logits), "of a box the centre counts"
    assert (group.logits - output.logits).abs().max() > 1e-3, "the points decide where to look"
    after = detector(*images_of(*SIZES))
    assert torch.equal(after.logits, output.logits), "and are forgotten after the call"


def test_gradients_reach_given_points():
    detector = small("conditional_detr")
    output = detector(*images_of(*SIZES))
    points = (torch.rand(3, 6, 2) * 0.8 + 0.1).requires_grad_()
    detector.decode(replace(output.queries, reference=points), output.context).logits.square().sum().backward()
    assert points.grad is not None and points.grad.abs().sum() > 0


def test_every_layer_is_shown_in_training_even_where_a_checkpoint_would_leave_layers_out():
    detector = fresh("conditional_detr")
    config = copy.deepcopy(detector.model.config)
    config.decoder_layerdrop = 1.0
    dropping = ConditionalDetr(ConditionalDetrForObjectDetection(config), SPEC, trainable_norm=False).train()
    assert dropping(*images_of(*SIZES)).logits.shape[0] == 3
