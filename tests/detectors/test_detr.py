"""DETR: the published weights and costs of a softmax head, and a decoder whose layers hand on what no norm has touched."""

from typing import Any

import torch

from tests.detectors.test_single_level import SIZES, fresh, small
from tests.examples import batch_of, images_of
from workbench.matching import CostWeights, match_targets


def test_the_class_loss_weighs_one_and_the_class_cost_one():
    detector = small("detr")
    assert detector.loss_weights == {"class": 1.0, "bbox": 5.0, "giou": 2.0}
    output = detector(*images_of(*SIZES))
    targets = batch_of([3, 1, 4], 3, torch.Generator().manual_seed(0))
    # so far apart that a class weight of two would pair otherwise
    logits = output.logits * 20
    own = match_targets(logits, output.boxes, targets, "softmax")
    assert torch.equal(own, match_targets(logits, output.boxes, targets, "softmax", CostWeights(1, 5, 2)))
    assert not torch.equal(own, match_targets(logits, output.boxes, targets, "softmax", CostWeights(2, 5, 2)))


def test_own_models_hand_states_on_without_the_norm_as_the_published_code_does():
    detector = small("detr")
    with torch.no_grad():
        output = detector(*images_of((64, 96)))
        arguments, decoder = output.context["arguments"], detector.model.model.decoder
        hidden = arguments["inputs_embeds"]
        for index, layer in enumerate(decoder.layers):
            hidden = layer(hidden, None, arguments["spatial_position_embeddings"], arguments["object_queries_position_embeddings"],
                           arguments["encoder_hidden_states"])  # fmt: skip
            torch.testing.assert_close(output.states[index], decoder.layernorm(hidden), atol=1e-5, rtol=1e-5)


def test_queries_are_positions_with_no_content_and_no_point():
    detector = fresh("detr").eval()
    queries = detector(*images_of(*SIZES)).queries
    assert not queries.content.any() and queries.reference is None
    assert torch.equal(queries.position, detector.model.model.query_position_embeddings.weight.expand(3, -1, -1))
    assert (queries.source == -1).all()
    assert "references" not in detector.provides and {"learned_queries", "attentions", "decode"} <= detector.provides


def test_detections_leave_no_object_out():
    detector = small("detr")
    output = detector(*images_of((64, 96)))
    (found,) = detector.detections(output, torch.tensor([[64, 96]]))
    assert len(found.scores) == 6 * 3 and set(found.labels.tolist()) == {0, 1, 2}
    probability: Any = output.logits[-1, 0].softmax(-1)
    torch.testing.assert_close(found.scores, probability[found.queries, found.labels])
