"""What the benchmark of dense detectors compares does the same work."""

import copy

import pytest
import torch

from benchmarks.dense import bare_step, fcos_recipe, losses_of, suppressions
from workbench.detectors import suppression
from workbench.detectors.fcos import Fcos
from workbench.recipe.setup import build
from workbench.training.loader import TrainLoader


def test_the_bare_loop_minimises_the_loss_that_our_step_minimises_and_trains():
    recipe = fcos_recipe()
    setup = build(recipe, None)
    student = setup.student
    assert isinstance(student, Fcos)
    batch = TrainLoader(setup.train, setup.transform, 4, 0).batch(0)
    own = copy.deepcopy(student).train()
    terms = own.losses(own(batch.images, batch.padding), batch.targets, 1.0)
    ours = sum(own.loss_weights[name] * float(value.detach()) for name, value in terms.items())
    step = bare_step(student, recipe, batch)
    losses = [float(step()) for _ in range(3)]
    assert losses[0] == pytest.approx(ours, rel=1e-4)
    assert losses[2] < losses[0]
    losses_of(own, batch)()


def test_both_suppressions_find_the_same_in_images_with_a_thousand_candidates(monkeypatch: pytest.MonkeyPatch):
    counts: list[int] = []
    real = suppression._without_duplicates
    monkeypatch.setattr(suppression, "_without_duplicates", lambda boxes, *rest: counts.append(len(boxes)) or real(boxes, *rest))
    ours, theirs = suppressions(fcos_recipe(), 3)
    for found, wanted in zip(ours(), theirs(), strict=True):
        assert found["labels"].tolist() == wanted["labels"].tolist() and 30 < len(found["labels"]) <= 300
        torch.testing.assert_close(found["scores"], wanted["scores"])
        torch.testing.assert_close(found["boxes"], wanted["boxes"], atol=1e-2, rtol=0)
    assert counts == pytest.approx([1000] * 3, abs=2)
