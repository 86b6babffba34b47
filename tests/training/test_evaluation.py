"""What evaluation writes of a teacher that knows other classes, in another order, or has another kind of head."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.examples import SPEC
from tests.families import tiny
from tests.flows import TINY
from workbench.datasets.batches import evaluation_batches
from workbench.detectors.detector import InputSpec
from workbench.recipe.loading import parse_recipe
from workbench.recipe.setup import build
from workbench.store.queries import read_queries
from workbench.store.run import Run
from workbench.training.evaluation import BATCH, Evaluator


@pytest.mark.parametrize("family", ["deformable_detr", "detr"])
def test_the_rows_of_a_teacher_speak_of_the_students_classes_whatever_its_head(family: str, tmp_path: Path):
    names = ("dog", "cross", "circle", "square", "triangle", "cat")
    folder = tmp_path / "teacher"
    folder.mkdir()
    tiny(family, spec=InputSpec(names, SPEC.mean, SPEC.std)).save(folder)
    recipe = parse_recipe({**TINY, "teacher": {"checkpoint": str(folder)}}, "test")
    setup = build(recipe, str(folder))
    assert setup.teacher is not None
    run = Run.create("run", {"recipe": {}}, tmp_path)
    Evaluator(setup, run, torch.device("cpu")).evaluate(setup.val, "val", 1)
    rows = read_queries(run, "val", [-1])
    order = [names.index(name) for name in setup.train.classes]
    for batch in evaluation_batches(setup.val, setup.evaluation_transform, BATCH):
        with torch.no_grad():
            output = setup.teacher(batch.images, batch.padding)
        for row, image_id in enumerate(batch.image_ids):
            logits = output.logits[:, row].double().numpy()
            if family == "detr":
                # no-object takes part in the softmax, classes that the student lacks do not
                kept = np.exp(logits[..., [*order, len(names)]])
                scores = (kept / kept.sum(-1, keepdims=True))[..., :-1]
            else:
                scores = 1 / (1 + np.exp(-logits[..., order]))
            found = rows[rows["image_id"] == image_id].sort_values(["layer", "query"])
            np.testing.assert_allclose(found["score"], scores.max(-1).ravel(), atol=1e-5)
            assert found["label"].tolist() == scores.argmax(-1).ravel().tolist()
