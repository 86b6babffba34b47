"""DAB-DETR: queries are anchor boxes, refined from layer to layer, each with as many contents as there are patterns."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.detectors.test_single_level import SIZES, fresh, small
from tests.examples import images_of
from workbench.detectors.registry import load_detector


def test_queries_are_anchors_with_neither_content_nor_position():
    detector = fresh("dab_detr").eval()
    queries = detector(*images_of(*SIZES)).queries
    assert not queries.content.any() and queries.position is None and queries.reference.shape == (3, 6, 4)
    assert torch.equal(queries.reference, detector.model.model.query_refpoint_embeddings.weight.sigmoid().expand(3, -1, -1))
    assert "references" in detector.provides


def test_a_fresh_model_answers_its_anchors_at_every_layer():
    detector = fresh("dab_detr").eval()
    output = detector(*images_of(*SIZES))
    torch.testing.assert_close(output.boxes, output.queries.reference.expand(3, -1, -1, -1), atol=1e-5, rtol=0)


def test_each_layer_starts_from_the_box_that_the_layer_before_it_made_of_its_unnormed_state():
    detector = small("dab_detr")
    images, padding = images_of(*SIZES)
    states = []
    for layer in detector.model.model.decoder.layers:
        layer.register_forward_hook(lambda module, args, output: states.append(output[0]))
    with torch.no_grad():
        output = detector(images, padding)
        head, anchor = detector.model.bbox_predictor, output.queries.reference
        for index, state in enumerate(states):
            box = (head(output.states[index]) + torch.logit(anchor, eps=1e-5)).sigmoid()
            torch.testing.assert_close(output.boxes[index], box, atol=1e-5, rtol=1e-5)
            anchor = (head(state) + torch.logit(anchor, eps=1e-5)).sigmoid()


def test_given_boxes_are_the_anchors_of_a_group():
    detector = small("dab_detr")
    output = detector(*images_of(*SIZES))
    copied = detector.decode(replace(output.queries, reference=output.queries.reference.clone()), output.context)
    torch.testing.assert_close(copied.logits, output.logits, atol=1e-5, rtol=1e-5)
    fresh_one = fresh("dab_detr").eval()
    own = fresh_one(*images_of(*SIZES))
    boxes = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    group = fresh_one.decode(fresh_one.queries_of_boxes(own, boxes, torch.zeros(3, 4, 32)), own.context)
    torch.testing.assert_close(group.boxes, boxes.expand(3, -1, -1, -1), atol=1e-4, rtol=0)


def test_anchors_on_the_edge_of_the_image_stay_finite():
    detector = small("dab_detr")
    output = detector(*images_of(*SIZES))
    boxes = torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]]).expand(3, -1, -1)
    group = detector.decode(detector.queries_of_boxes(output, boxes, torch.zeros(3, 2, 32)), output.context)
    assert group.boxes.isfinite().all() and group.logits.isfinite().all()


def test_every_pattern_goes_with_every_anchor():
    detector = fresh("dab_detr", patterns=3).eval()
    output = detector(*images_of(*SIZES))
    assert detector.num_queries == output.logits.shape[2] == 18
    patterns = detector.model.model.patterns.weight
    assert torch.equal(output.queries.content[0].view(3, 6, 32), patterns[:, None].expand(-1, 6, -1))
    assert torch.equal(output.queries.reference[0].view(3, 6, 4), output.queries.reference[0, :6].expand(3, -1, -1))
    again = detector.decode(output.queries, output.context)
    assert torch.equal(again.logits, output.logits)


@pytest.mark.parametrize("temperature", [20, 10000])
def test_the_temperature_flattens_the_positions_of_the_memory(temperature: int):
    output = fresh("dab_detr", temperature=temperature).eval()(*images_of((64, 96)))
    embedding = output.context["arguments"]["object_queries"][0, 0]
    # first cell: 1 of 8 rows, 1 of 12 columns; 16 numbers each, the last pair of lowest frequency
    frequency = temperature ** -(14 / 16)
    for half, share in ((embedding[:16], 1 / 8), (embedding[16:], 1 / 12)):
        assert half[14].item() == pytest.approx(float(torch.tensor(2 * torch.pi * share * frequency).sin()), abs=1e-4)


def test_the_folder_carries_transformers_spelling_of_the_family(tmp_path: Path):
    detector = small("dab_detr")
    detector.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "dab-detr"
    assert load_detector(tmp_path).family == "dab_detr"


def test_the_shared_box_head_is_saved_under_the_name_that_transformers_reads_it_from(tmp_path: Path):
    small("dab_detr").save(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert "bbox_predictor.layers.0.weight" in names
    assert not any(name.startswith("model.decoder.bbox_embed") for name in names)
