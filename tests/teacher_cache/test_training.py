"""Training from the cache: the same numbers as with the live teacher on the same pictures, in the loader's own processes too."""

from typing import Any

import pytest
import torch

from tests.flows import Silent
from tests.teacher_cache.teachers import built, fresh_setup, opened
from workbench.boxes import cxcywh_to_xyxy, iou_and_giou
from workbench.datasets.batches import variant_batch
from workbench.matching import match_targets
from workbench.methods.context import MethodContext
from workbench.methods.query_masks import QueryMask, selection_masks
from workbench.recipe.setup import FrozenTeacher, Setup
from workbench.store.masks import restore
from workbench.store.run import Run, read_lines
from workbench.teacher_cache.read import TeacherCache
from workbench.training.loader import TrainLoader
from workbench.training.loop import Trainer

CHANGES: dict[str, Any] = {
    "methods": [{"method": "detrdistill", "balance": 0.3}], "data": {"options": {"train": 8}}, "train": {"steps": 4, "evaluate_every": 4},
}  # fmt: skip


def train(name: str, setup: Setup, cache: TeacherCache | None = None) -> tuple[list[dict[str, Any]], list[torch.Tensor], int]:
    """Lines of the metrics, the images of every step, and how often a step asked the live teacher."""
    run, images, asked = Run.create(name, {}), [], []
    trainer = Trainer(run, setup, Silent(), "cpu", cache=cache)
    one_step = trainer._train_step

    def step(batch: Any, index: int, logged: bool) -> Any:
        images.append(batch.images)
        with pytest.MonkeyPatch.context() as patch:
            answer = FrozenTeacher.forward
            patch.setattr(FrozenTeacher, "forward", lambda *arguments: asked.append(index) or answer(*arguments))
            return one_step(batch, index, logged)

    trainer._train_step, trainer._evaluate, trainer._finish = step, lambda *_: None, lambda *_: None
    trainer.train()
    return read_lines(run.metrics_path), images, len(asked)


def test_a_run_from_the_cache_logs_what_a_run_with_the_live_teacher_does_and_the_undistilled_one_sees_the_same_pictures():
    live, cached, plain = (fresh_setup(CHANGES, change) for change in ({}, {"train": {"accumulate": 2}}, {"methods": []}))
    built(cached)
    wanted, pictures, asked_live = train("live", live)
    # two parts of a batch and one whole have the same sums only in the first step, before norms saw them
    (first, *_), seen, asked_cached = train("cached", cached, opened(cached))
    assert (asked_live, asked_cached) == (4, 0)
    whole = fresh_setup(CHANGES)
    lines, _, _ = train("whole", whole, opened(whole))
    for line, other in zip(lines, wanted, strict=True):
        assert line.keys() == other.keys()
        assert {key: pytest.approx(value, rel=1e-4, abs=1e-4) for key, value in other.items()} == line
    assert first["step"] == 1 and first.keys() == wanted[0].keys()
    _, undistilled, _ = train("plain", plain)
    for images in (seen, undistilled):
        assert all(torch.equal(a, b) for a, b in zip(images, pictures, strict=True))


def test_processes_that_load_ahead_read_the_same_answers():
    setup = fresh_setup(CHANGES)
    built(setup)
    cache = opened(setup)

    def batches(workers: int) -> list[Any]:
        loader = TrainLoader(setup.train, setup.transform, 4, 0, workers, variants=setup.variants, read_teacher=cache.read)
        stream = loader.iterate(0)
        return [next(stream) for _ in range(3)]

    for own, other in zip(batches(0), batches(1), strict=True):
        assert own.ops == other.ops and torch.equal(own.images, other.images)
        assert own.teacher.rows.keys() == other.teacher.rows.keys() and torch.equal(own.teacher.match, other.teacher.match)
        assert all(torch.equal(value, other.teacher.rows[name]) for name, value in own.teacher.rows.items())


def test_the_stored_matching_quality_and_masks_are_those_of_the_teachers_answer():
    setup = fresh_setup({"data": {"options": {"train": 8}}})
    built(setup)
    cache = opened(setup)
    tensors = cache.tensors("shard-00000.safetensors")
    assert tensors["match"].shape == (16, 4, 20) and tensors["quality"].shape == (16, 4, 20)
    assert setup.variants is not None and setup.pairing is not None
    for row in (0, 3, 13):
        index, number = row % 8, row // 8
        answers = cache.read([index], number, [setup.variants.ops(index, number)])
        output = answers.output()

        targets = variant_batch(setup.variants, [index], [number]).targets
        match = match_targets(output.logits, output.boxes, targets)
        assert torch.equal(answers.teacher_match, match)
        assert ((tensors["quality"][row] > 0) <= (match[:, 0] >= 0)).all()
        for layer, query in (match[:, 0] >= 0).nonzero().tolist():
            target = int(match[layer, 0, query])
            score = float(output.logits[layer, 0, query, targets.labels[0, target]].sigmoid())

            iou, _ = iou_and_giou(cxcywh_to_xyxy(output.boxes[layer, 0, query]), cxcywh_to_xyxy(targets.boxes[0, target]))
            assert float(tensors["quality"][row, layer, query]) == pytest.approx((score * float(iou)) ** 0.5, abs=1e-3)
        context = MethodContext(student=setup.student, pairing=setup.pairing, targets=targets)

        mask = selection_masks(QueryMask(), output, output.memory[0], [3], context).sqrt()[:, 0].numpy()
        kept, ends = tensors["mask/memory/8"][row].numpy(), tensors["mask/memory/8/range"][row].numpy()
        assert kept.dtype == "uint8" and kept.max() in (0, 255)
        assert abs(restore(kept, ends[..., 1], ends[..., 0]) - mask).max() <= ends[..., 1].max() * 0.51 + 1e-6
