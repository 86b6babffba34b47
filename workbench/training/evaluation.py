"""Evaluation of a detector: detections, COCO AP, and the queries of student and teacher with their matchings."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from workbench.analysis.ap import coco_ap
from workbench.analysis.cost import measure_cost
from workbench.cache.detections import write_detections
from workbench.cache.queries import TEACHER_STEP, QueryWriter, query_writer
from workbench.cache.rows import Mates, query_rows
from workbench.cache.states import write_masks
from workbench.datasets import open_dataset
from workbench.datasets.base import Dataset
from workbench.datasets.loader import Batch, evaluation_batches
from workbench.datasets.transforms import Transform, TransformConfig
from workbench.detectors import Detections, Detector, DetectorOutput, load_detector, probability
from workbench.detectors.criterion import pair_losses
from workbench.errors import IncompatibleError
from workbench.matching import QUERY_COST, TargetBatch, assign, match_targets, query_cost
from workbench.methods import MethodContext
from workbench.methods.detrdistill import DETRDistill, FeaturesConfig, selection_masks
from workbench.methods.selection import selected_queries
from workbench.runs import Run
from workbench.training.checkpoints import result_folder
from workbench.training.setup import FrozenTeacher, Setup, find_detector

BATCH = 16
MASK_IMAGES = 500
DETECTIONS = 300


@dataclass(frozen=True)
class TeacherAnswer:
    """What is kept of the teacher's answer to one evaluation batch: ``[L, B, N, C]`` and ``[L, B, N, 4]``, on the CPU."""

    probability: Tensor
    boxes: Tensor


class Evaluator:
    """Evaluates a run's student; the teacher's queries are computed once per split and written at step -1."""

    def __init__(self, setup: Setup, run: Run, device: torch.device):
        self.setup, self.run, self.device = setup, run, device
        self.answers: dict[str, list[TeacherAnswer]] = {}

    @torch.no_grad()
    def evaluate(self, dataset: Dataset, split: str, step: int, epoch: int = 0) -> dict[str, Any]:
        """Detections, AP and query rows of the student as it is now.

        Returns:
            One line of evaluations.jsonl.
        """
        student = self.setup.student.eval()
        if self.setup.teacher is not None and split not in self.answers:
            self._trace_teacher(dataset, split)
        found: list[tuple[Batch, list[Detections]]] = []
        with query_writer(self.run, split, step) as writer:
            for index, batch in enumerate(evaluation_batches(dataset, self.setup.evaluation_transform, BATCH)):
                output = student(batch.images.to(self.device), batch.padding.to(self.device))
                found.append((batch, student.detections(output, batch.sizes, DETECTIONS)))
                mates = self._mates(output, self.answers[split][index]) if self.setup.teacher is not None else None
                writer.write(_rows(batch, output, "student", epoch, mates))
        student.train()
        detections = collect_detections(dataset, found, student.spec.classes)
        write_detections(self.run, split, step, detections)
        return {"step": step, "split": split, **coco_ap(dataset.coco(), detections).to_json()}

    @torch.no_grad()
    def evaluate_result(self, dataset: Dataset, split: str) -> dict[str, Any]:
        """AP and cost of the run's result, and of its teacher, on a split that nothing was chosen on."""
        folder = result_folder(self.run)
        student = load_detector(folder).to(self.device)
        detections = detect(student, dataset, self.setup.evaluation_transform, self.device)
        step = int(folder.name)
        write_detections(self.run, split, step, detections)
        size = _input_size(dataset, self.setup.evaluation_transform)
        line = {"step": step, "split": split, **coco_ap(dataset.coco(), detections).to_json(), **_cost(student, size)}
        if self.setup.teacher is not None:
            teacher = self.setup.teacher.detector
            answer = detect(self.setup.teacher, dataset, self.setup.evaluation_transform, self.device)
            line["teacher"] = {**coco_ap(dataset.coco(), answer).to_json(), **_cost(teacher, size)}
        return line

    def _trace_teacher(self, dataset: Dataset, split: str) -> None:
        """Writes the teacher's rows and selection masks of a split, and keeps what mates are computed from."""
        self.answers[split] = []
        with query_writer(self.run, split, TEACHER_STEP) as writer:
            write_masks(self.run, split, TEACHER_STEP, self._teacher_pass(dataset, split, writer))

    def _teacher_pass(self, dataset: Dataset, split: str, writer: QueryWriter) -> Iterator[tuple[int, dict[tuple[int, int], np.ndarray]]]:
        """One pass of the teacher over a split: rows go to ``writer``, masks of the sampled images are yielded."""
        assert self.setup.teacher is not None and self.setup.pairing is not None
        method = next((method for method in self.setup.methods if isinstance(method, DETRDistill)), None)
        config = _mask_config(method)
        layers = sorted({t for group in self.setup.pairing.layer_map for t in group})
        masked, position = set(_sample(len(dataset))), 0
        for batch in evaluation_batches(dataset, self.setup.evaluation_transform, BATCH):
            output = self.setup.teacher(batch.images.to(self.device), batch.padding.to(self.device))
            renamed = dataclasses.replace(output, logits=self.setup.pairing.in_student_classes(output.logits, output.activation))
            context = self._context(batch, output)
            selected = None if method is None else selected_queries(method.config.selection, output, context)
            writer.write(_rows(batch, renamed, "teacher", 0, None, selected))
            self.answers[split].append(TeacherAnswer(context.teacher_probability(output).cpu(), output.boxes.cpu()))
            levels = output.memory or output.neck
            masks = [selection_masks(config, output, level, layers, context.targets, context, selected).cpu().numpy() for level in levels]
            # of a padded batch only the cells of the image itself are kept
            sizes = [((~level.padding).any(2).sum(1).tolist(), (~level.padding).any(1).sum(1).tolist()) for level in levels]
            for row, image_id in enumerate(batch.image_ids):
                if position + row in masked:
                    # equation 9 weighs the error by the square of the mask; its root is what looks like the mask
                    yield image_id, {
                        (layer, index): np.sqrt(psi[place, row, :height[row], :width[row]]) if config.mask == "product"
                        else psi[place, row, :height[row], :width[row]]
                        for index, (psi, (height, width)) in enumerate(zip(masks, sizes, strict=True))
                        for place, layer in enumerate(layers)
                    }
            position += len(batch.image_ids)

    def _context(self, batch: Batch, output: DetectorOutput) -> MethodContext:
        assert self.setup.pairing is not None
        targets = TargetBatch.of(batch.targets).to(output.logits.device)
        return MethodContext(self.setup.student, None, self.setup.pairing, targets, 1.0, 0, torch.empty(0))

    def _mates(self, output: DetectorOutput, answer: TeacherAnswer) -> Mates:
        """Full Hungarian assignment between all student and all teacher queries, at the last teacher layer of each group."""
        assert self.setup.pairing is not None
        layers = list(self.setup.pairing.last_layers())
        # the one cost of analysis is over classes alone, so a softmax head counts with its probabilities without no-object
        logits = output.logits if output.activation == "sigmoid" else torch.logit(probability(output), eps=1e-6)
        costs = query_cost(logits.cpu(), output.boxes.cpu(), answer.probability[layers], answer.boxes[layers])
        mate = assign(QUERY_COST.class_ * costs[0] + QUERY_COST.bbox * costs[1] + QUERY_COST.giou * costs[2])
        column = mate.clamp(min=0)[..., None]
        parts = torch.stack([cost.gather(-1, column)[..., 0] for cost in costs], -1)
        return Mates(mate, layers, parts)


def _mask_config(method: DETRDistill | None) -> FeaturesConfig:
    """The mask of the run's own method; without one, the paper's, for comparison."""
    if method is not None and method.config.features is not None and method.config.features.mask != "uniform":
        return method.config.features
    return FeaturesConfig()


def _rows(
    batch: Batch, output: DetectorOutput, model: Any, epoch: int, mates: Mates | None, selected: Tensor | None = None
) -> pa.Table:
    targets = TargetBatch.of(batch.targets).to(output.logits.device)
    match = match_targets(output.logits, output.boxes, targets, output.activation)
    return query_rows(
        image_ids=batch.image_ids,
        epoch=epoch,
        model=model,
        logits=output.logits,
        boxes=output.boxes,
        activation=output.activation,
        source=output.queries.source,
        match=match,
        targets=targets,
        mates=mates,
        losses=pair_losses(output.logits, output.boxes, match, targets, output.activation),
        selected=selected,
    )


@torch.no_grad()
def detect(
    model: FrozenTeacher | Detector, dataset: Dataset, transform: Transform, device: torch.device | str
) -> pa.Table:
    """Detections of every image of a dataset.

    Args:
        model: a detector, or a teacher that re-normalises its images.
        dataset: images.
        transform: evaluation transform.
        device: to run on.
    """
    detector = model.detector if isinstance(model, FrozenTeacher) else model
    model.eval()
    batches = evaluation_batches(dataset, transform, BATCH)
    found = [(b, detector.detections(model(b.images.to(device), b.padding.to(device)), b.sizes, DETECTIONS)) for b in batches]
    return collect_detections(dataset, found, detector.spec.classes)


def collect_detections(dataset: Dataset, found: Sequence[tuple[Batch, list[Detections]]], classes: Sequence[str]) -> pa.Table:
    """One row per detection with the dataset's own category ids; classes go by name, those the data lacks are dropped."""
    id_of = dict(zip(dataset.classes, dataset.category_ids, strict=True))
    ids = torch.tensor([id_of.get(name, -1) for name in classes])
    image_ids = np.repeat(
        [i for batch, _ in found for i in batch.image_ids], [len(d.scores) for _, items in found for d in items]
    ).astype(np.int64)
    items = [d for _, items in found for d in items]
    category = ids[torch.cat([d.labels for d in items])].numpy()
    boxes = torch.cat([d.boxes for d in items]).numpy()
    table = pa.table({
        "image_id": image_ids,
        "query": torch.cat([d.queries for d in items]).to(torch.int32).numpy(),
        "category_id": category.astype(np.int64),
        "score": torch.cat([d.scores for d in items]).numpy(),
        **{name: boxes[:, k] for k, name in enumerate(("x1", "y1", "x2", "y2"))},
    })
    return table.filter(pa.array(category >= 0))


def evaluate_detector(name: str, data: str, split: str, device: str) -> dict[str, Any]:
    """COCO numbers of any detector on any dataset, in the form of evaluations.jsonl; classes go by name.

    Raises:
        IncompatibleError: the detector knows none of the dataset's classes.
    """
    detector = load_detector(find_detector(name))
    place = torch.device("cuda" if device in ("auto", "cuda") and torch.cuda.is_available() else "cpu")
    dataset = open_dataset(data, split)
    spec = detector.spec
    if not set(spec.classes) & set(dataset.classes):
        raise IncompatibleError(f"'{name}' knows {', '.join(spec.classes)}; the data has {', '.join(dataset.classes)}: no class in common.")
    transform = Transform(TransformConfig.model_validate({"resize": spec.resize, "mean": spec.mean, "std": spec.std}))
    detections = detect(detector.to(place), dataset, transform, place)
    return {"split": split, **coco_ap(dataset.coco(), detections).to_json()}


def _cost(detector: Detector, size: tuple[int, int]) -> dict[str, Any]:
    cost = measure_cost(detector, *size)
    return {"parameters": cost.parameters, "flops": cost.flops, "ms_per_image": cost.ms_per_image}


def _input_size(dataset: Dataset, transform: Transform) -> tuple[int, int]:
    """Height and width of the first image as the detector sees it; what cost is measured at."""
    batch = next(iter(evaluation_batches(dataset, transform, 1, [0])))
    return int(batch.images.shape[-2]), int(batch.images.shape[-1])


def _sample(count: int) -> list[int]:
    """At most 500 images, evenly spread, the same for every run."""
    return sorted(set(np.linspace(0, count - 1, min(count, MASK_IMAGES)).round().astype(int).tolist())) if count else []


__all__ = ["Evaluator", "collect_detections", "detect", "evaluate_detector"]
