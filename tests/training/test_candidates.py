"""Which candidates of a detector without queries get rows: the positives and the best, and never one that does not exist."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.examples import SPEC, batch_of, images_of, random_boxes, random_output
from tests.families import DENSE_NAMES, TWO_STAGE_NAMES, tiny
from workbench.detectors.output import DetectorOutput, scores
from workbench.training import candidates
from workbench.training.candidates import best_count, chosen_candidates, of_chosen
from workbench.training.query_rows import RowExtras, RowsOf, query_rows

IMAGES, COUNT, CLASSES = 4, 40, 3


def made_up(seed: int) -> tuple[DetectorOutput, Tensor]:
    """An output without queries and an assignment: image 0 has no positive, image 1 few candidates, image 2 many positives."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, IMAGES, COUNT, CLASSES, generator=generator)
    valid = torch.rand(IMAGES, COUNT, generator=generator) < torch.tensor([1.0, 0.1, 0.9, 0.5])[:, None]
    valid[1, 7] = True
    match = torch.randint(-2, 5, (1, IMAGES, COUNT), generator=generator)
    rare = torch.rand(1, IMAGES, COUNT, generator=generator) < torch.tensor([0.0, 0.5, 0.9, 0.1])[:, None]
    match = torch.where((match >= 0) & ~rare, -1, match).masked_fill(~valid, -2)
    return DetectorOutput(logits=logits, boxes=random_boxes(1, IMAGES, COUNT, generator=generator), valid=valid), match


@pytest.mark.parametrize("seed", range(5))
def test_the_rows_of_an_image_are_its_positives_and_its_best_candidates(seed: int, monkeypatch: pytest.MonkeyPatch):
    best = 6
    monkeypatch.setattr(candidates, "BEST", best)
    output, match = made_up(seed)
    chosen = chosen_candidates(output, match)
    assert chosen is not None and output.valid is not None
    for image in range(IMAGES):
        real = [n for n in range(COUNT) if output.valid[image, n]]
        ranked = sorted(real, key=lambda n: -float(output.logits[0, image, n].max()))
        wanted = sorted({*ranked[:best], *(n for n in real if match[0, image, n] >= 0)})
        assert chosen.index[image][chosen.kept[image]].tolist() == wanted
        assert chosen.kept[image].tolist() == sorted(chosen.kept[image].tolist(), reverse=True), "the filling lies behind"
    assert chosen.kept.any(0).all(), "no column is only filling"


def test_a_candidate_that_training_ignores_has_a_row_only_for_its_score(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(candidates, "BEST", 2)
    logits = torch.tensor([5.0, 4.0, 3.0, 2.0, 6.0])[None, None, :, None]
    output = DetectorOutput(logits=logits, boxes=torch.rand(1, 1, 5, 4), valid=torch.tensor([[True, True, True, True, False]]))
    chosen = chosen_candidates(output, torch.tensor([[[-2, -1, -2, 0, -2]]]))
    assert chosen is not None and chosen.index.tolist() == [[0, 1, 3]]


def test_small_images_keep_a_hundred_and_those_of_published_size_a_thousand():
    assert [best_count(number) for number in (57, 100, 1_701, 10_000, 10_001, 201_600)] == [57, 100, 100, 100, 1000, 1000]


def test_every_query_of_a_detr_has_a_row():
    assert chosen_candidates(random_output(2, (2, 6)), torch.zeros(2, 2, 6, dtype=torch.int64)) is None


@pytest.mark.parametrize("name", DENSE_NAMES + TWO_STAGE_NAMES)
def test_the_rows_of_the_chosen_are_those_that_all_candidates_would_have(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(candidates, "BEST", 20)
    detector = tiny(name)
    with torch.no_grad():
        output = detector(*images_of((64, 96), (48, 80), (40, 44)))
    targets = batch_of((3, 0, 2), len(SPEC.classes), torch.Generator().manual_seed(2))
    match = detector.assign(output, targets)
    count = output.logits.shape[2]
    everything = query_rows(output, torch.arange(count), targets, match, RowsOf((5, 6, 7), "student")).to_pandas()
    chosen = chosen_candidates(output, match)
    assert chosen is not None and output.valid is not None
    few, kept = of_chosen(output, chosen), chosen.kept.flatten().numpy()
    torch.testing.assert_close(scores(few), chosen.of(scores(output)))
    rows = query_rows(few, chosen.index, targets, chosen.of(match), RowsOf((5, 6, 7), "student"), RowExtras(query=chosen.index)).to_pandas()
    rows = rows[kept].reset_index(drop=True)
    wanted = everything.merge(rows[["image_id", "query"]], on=["image_id", "query"])
    assert len(rows) == len(wanted) > 0 and (rows["source"] == rows["query"]).all()
    for column in ("match", "best_target", "label"):
        np.testing.assert_array_equal(rows[column], wanted[column])
    for column in ("score", "cx", "cy", "w", "h", "match_iou", "best_iou", "quality"):
        np.testing.assert_allclose(rows[column], wanted[column], atol=1e-6)
    positive = everything[everything["match"] >= 0]
    assert len(positive.merge(rows, on=["image_id", "query"])) == len(positive)
    there = {(image, int(n)) for image, valid in zip((5, 6, 7), output.valid, strict=True) for n in valid.nonzero()[:, 0]}
    assert set(zip(rows["image_id"], rows["query"], strict=True)) <= there


def test_scores_of_the_chosen_hold_what_their_scores_are_scaled_by():
    detector = tiny("fcos")
    with torch.no_grad():
        output = detector(*images_of((64, 96)))
    plain = replace(output, quality=None)
    match = detector.assign(output, batch_of((2,), len(SPEC.classes)))
    for one in (output, plain):
        chosen = chosen_candidates(one, match)
        assert chosen is not None
        torch.testing.assert_close(scores(of_chosen(one, chosen)), chosen.of(scores(one)))
    assert not torch.allclose(scores(output), scores(plain))
