"""Evaluates a detector: detections, COCO AP, and the queries of student and teacher with their matchings."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from workbench.analysis.detection.ap import coco_ap
from workbench.analysis.detection.mask_ap import coco_mask_ap
from workbench.analysis.detection.tide import error_summary
from workbench.datasets.base import Dataset
from workbench.datasets.batches import Batch, evaluation_batches
from workbench.datasets.transforms import Transform
from workbench.detectors.detector import Detections, Detector
from workbench.detectors.registry import load_detector
from workbench.recipe.setup import FrozenTeacher, Setup
from workbench.store.detections import MASK, write_detections
from workbench.store.run import Run, result_folder
from workbench.training.alignment import FeatureAlignment
from workbench.training.cost import measure_cost
from workbench.training.recording import BATCH, QueryRecorder, Scope
from workbench.training.spread import in_order, is_first, own_chunks, share_buffers

DETECTIONS = 300


class Evaluator:
    """Evaluates a run's student, and records the queries of student and teacher meanwhile."""

    def __init__(self, setup: Setup, run: Run, device: torch.device):
        self.setup, self.run, self.device = setup, run, device
        self.recorder = QueryRecorder(setup, run, device)
        self._recorded: set[str] = set()
        self._alignment: FeatureAlignment | None = None

    def alignment(self) -> dict[str, Any] | None:
        """Returns how similar the student's features are to the teacher's on the first validation images; None without a teacher."""
        if self.setup.teacher is None:
            return None
        self._alignment = self._alignment or FeatureAlignment(self.setup, self.setup.val, self.device)
        return self._alignment.measure()

    @torch.no_grad()
    def evaluate(self, dataset: Dataset, split: str, step: int, epoch: int = 0, states: bool = False) -> dict[str, Any]:
        """Computes and stores detections, AP and query rows of the student as it is now.

        Args:
            dataset: images to evaluate on.
            split: name of the split in the run.
            step: training step of the weights.
            epoch: training epoch of the weights.
            states: also keep the decoder states of sampled images.

        Returns:
            One line of evaluations.jsonl. Of several processes each evaluates its share of the batches; the first one writes, and the
            others return an empty line.
        """
        student = self.setup.student.eval()
        share_buffers(student)
        scope = Scope.of(dataset)
        if self.setup.teacher is not None and split not in self._recorded:
            for _ in self.recorder.teacher(dataset, split, scope):
                pass
            self._recorded.add(split)
        wanted = scope if states else dataclasses.replace(scope, states=frozenset())
        answers = self.recorder.student(dataset, split, step, epoch, wanted)
        classes = student.spec.classes
        found: list[pa.Table] = []
        for batch, output in answers:
            found.append(collect_detections(dataset, [(batch, student.detections(output, batch.sizes, DETECTIONS))], classes))
        student.train()
        tables = in_order(found)
        if not is_first():
            return {}
        detections = pa.concat_tables(tables).combine_chunks()
        write_detections(self.run, split, step, detections)
        line = {"step": step, "split": split, **_numbers(dataset, detections)}
        alignment = self.alignment() if split == "val" else None
        return line if alignment is None else {**line, "alignment": alignment}

    @torch.no_grad()
    def evaluate_result(self, dataset: Dataset, split: str) -> dict[str, Any]:
        """Returns AP and cost of the run's result, and of its teacher, on a split that no choice was based on.

        Of several processes each runs the models on its share of the batches, and all but the first return an empty line.
        """
        folder = result_folder(self.run)
        student = load_detector(folder).to(self.device)
        detections = detect_together(student, dataset, self.setup.evaluation_transform, self.device)
        teacher_detections = None
        if self.setup.teacher is not None:
            teacher_detections = detect_together(self.setup.teacher, dataset, self.setup.evaluation_transform, self.device)
        if detections is None:
            return {}
        step = int(folder.name)
        write_detections(self.run, split, step, detections)
        size = _input_size(dataset, self.setup.evaluation_transform)
        line = {"step": step, "split": split, **_numbers(dataset, detections), **_cost(student, size)}
        if self.setup.teacher is not None and teacher_detections is not None:
            line["teacher"] = {**_numbers(dataset, teacher_detections), **_cost(self.setup.teacher.detector, size)}
        return line


@torch.no_grad()
def detect(
    model: FrozenTeacher | Detector,
    dataset: Dataset,
    transform: Transform,
    device: torch.device | str,
    batches: Iterable[Batch] | None = None,
) -> pa.Table:
    """Returns the detections of every image of a dataset.

    Args:
        model: a detector, or a teacher that re-normalises its images.
        dataset: images to detect objects in.
        transform: the evaluation transform.
        device: device to run on.
        batches: batches of the dataset that were made before; None makes them.
    """
    detector = model.detector if isinstance(model, FrozenTeacher) else model
    model.eval()
    batches = evaluation_batches(dataset, transform, BATCH) if batches is None else batches
    found = [(b, detector.detections(model(b.images.to(device), b.padding.to(device)), b.sizes, DETECTIONS)) for b in batches]
    return collect_detections(dataset, found, detector.spec.classes)


def detect_together(model: FrozenTeacher | Detector, dataset: Dataset, transform: Transform, device: torch.device) -> pa.Table | None:
    """Returns the detections of every image in the first process of a run, each process having its share; None in the others."""
    found: list[pa.Table] = []
    for chunk in own_chunks(range(len(dataset)), BATCH):
        if chunk is not None:
            found.append(detect(model, dataset, transform, device, evaluation_batches(dataset, transform, BATCH, chunk)))
    tables = in_order(found)
    return pa.concat_tables(tables).combine_chunks() if tables else None


def collect_detections(dataset: Dataset, found: Sequence[tuple[Batch, list[Detections]]], classes: Sequence[str]) -> pa.Table:
    """Returns one row per detection with the dataset's own category ids; classes are matched by name, unknown ones are dropped.

    Detections of a detector of masks have a column ``mask``.
    """
    id_of = dict(zip(dataset.classes, dataset.category_ids, strict=True))
    ids = torch.tensor([id_of.get(name, -1) for name in classes])
    image_ids = np.repeat([i for batch, _ in found for i in batch.image_ids], [len(d.scores) for _, items in found for d in items]).astype(
        np.int64
    )
    items = [d for _, items in found for d in items]
    category = ids[torch.cat([d.labels for d in items])].numpy()
    boxes = torch.cat([d.boxes for d in items]).numpy()
    masks = [mask.decode("ascii") for d in items for mask in d.masks or ()]
    own_masks = {MASK.name: pa.array(masks, MASK.type)} if all(d.masks is not None for d in items) else {}
    table = pa.table(
        {
            "image_id": image_ids,
            "query": torch.cat([d.queries for d in items]).to(torch.int32).numpy(),
            "category_id": category.astype(np.int64),
            "score": torch.cat([d.scores for d in items]).numpy(),
            **{name: boxes[:, k] for k, name in enumerate(("x1", "y1", "x2", "y2"))},
            **own_masks,
        }
    )
    return table.filter(pa.array(category >= 0))


def _numbers(dataset: Dataset, detections: pa.Table) -> dict[str, Any]:
    """Returns the part of a line of evaluations.jsonl that is about detections."""
    truth = dataset.coco()
    numbers = {**coco_ap(truth, detections).to_json(), "errors": error_summary(truth, detections)}
    if not (dataset.has_masks and MASK.name in detections.column_names):
        return numbers
    return {**numbers, "masks": coco_mask_ap(truth, detections).to_json()}


def _cost(detector: Detector, size: tuple[int, int]) -> dict[str, Any]:
    cost = measure_cost(detector, *size)
    return {"parameters": cost.parameters, "flops": cost.flops, "ms_per_image": cost.ms_per_image}


def _input_size(dataset: Dataset, transform: Transform) -> tuple[int, int]:
    """Returns height and width of the first image as the detector sees it; cost is measured at this size."""
    batch = next(iter(evaluation_batches(dataset, transform, 1, [0])))
    return int(batch.images.shape[-2]), int(batch.images.shape[-1])


__all__ = ["BATCH", "Evaluator", "collect_detections", "detect"]
