"""Records the outputs of a student and its teacher on a split in the run's store: query rows, decoder states, selection masks."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from workbench.datasets.base import Dataset
from workbench.datasets.batches import Batch, evaluation_batches
from workbench.datasets.transforms import fixed_size
from workbench.detectors.criterion import pair_losses
from workbench.detectors.dense_detector import DenseDetector
from workbench.detectors.detector import Detector
from workbench.detectors.output import DetectorOutput, Level, Queries, QueryOutput, probability, query_output
from workbench.files import hash_json
from workbench.matching import QUERY_COST, assign, query_cost
from workbench.methods.context import MethodContext
from workbench.methods.method import Method
from workbench.methods.recorded import drawing_method, recorded_masks, recorded_student_masks, selection_of, sending_method
from workbench.recipe.setup import Setup
from workbench.store.queries import TEACHER_STEP, query_facts, query_writer
from workbench.store.run import Run
from workbench.store.states import states_writer
from workbench.training.candidates import chosen_candidates, of_chosen, sources
from workbench.training.query_rows import NO_EXTRAS, Mates, RowExtras, RowsOf, query_rows
from workbench.training.spread import is_first, own_chunks, to_first

BATCH = 16
STATE_IMAGES = 500
_FAR = 100.0  # coordinate of a box whose L1 cost exceeds any cost difference between two queries inside the image
_KEPT_BYTES = 1 << 29  # limit for keeping the teacher's outputs; beyond it the teacher runs again at every evaluation


@dataclass(frozen=True)
class Scope:
    """The images of a split that are recorded.

    Attributes:
        indices: Positions in the dataset's records, ascending by image id.
        sampled: True if they are fewer than all.
        states: Ids of the images whose decoder states and masks are kept.
    """

    indices: tuple[int, ...]
    sampled: bool
    states: frozenset[int]

    @classmethod
    def of(cls, dataset: Dataset, chosen: list[int] | None = None, states: int = STATE_IMAGES) -> "Scope":
        """Selects all records or the chosen ones, and at most ``states`` of them for states: evenly spread, the same for every run."""
        ids = [record.image_id for record in dataset.records]
        # rows are stored by image id, so that the rows of one image are contiguous
        indices = sorted(range(len(ids)) if chosen is None else chosen, key=ids.__getitem__)
        places = np.linspace(0, len(indices) - 1, min(len(indices), states)).round().astype(int)
        return cls(tuple(indices), len(indices) < len(ids), frozenset(ids[indices[place]] for place in places))


@dataclass(frozen=True)
class _Kept:
    """What is written of one batch.

    Attributes:
        rows: Rows of the query table.
        states: Of sampled images the id, the masks by teacher layer and level, and the decoder states ``[L, N, D]``.
    """

    rows: pa.Table
    states: list[tuple[int, dict[tuple[int, int], np.ndarray] | None, np.ndarray | None]]


class QueryRecorder:
    """Records the outputs of a run's models; the teacher's rows once per split, at step -1.

    Args:
        setup: models, pairing and methods of the run.
        run: the run to write to.
        device: device of student and teacher.
    """

    def __init__(self, setup: Setup, run: Run, device: torch.device):
        self.setup, self.run, self.device = setup, run, device
        self.group = sending_method(setup.methods)
        # candidates of other detectors are too many to be paired one to one, and such a pairing would mean nothing
        self._pairs_queries = setup.teacher is not None and "queries" in setup.student.provides & setup.teacher.detector.provides
        self._answers: dict[str, list[QueryOutput | None]] = {}
        self.between: Callable[[], None] | None = None  # called before each round of batches, where it may stop all processes together

    @torch.no_grad()
    def teacher(self, dataset: Dataset, split: str, scope: Scope) -> Iterator[Batch]:
        """Writes the teacher's rows, masks and states batch by batch, and keeps its outputs up to a size limit to compare students with.

        Yields each batch once its rows are written. The files appear when the iteration ends. Each of several processes
        goes through batches of its own, and the first one writes.
        """
        assert self.setup.teacher is not None and self.setup.pairing is not None
        answers, held = [], 0
        teacher = self.setup.teacher.detector
        with contextlib.ExitStack() as stack:
            keeps = "states" in teacher.provides or drawing_method(self.setup.methods) is not None
            write = self._writing(stack, split, TEACHER_STEP, self._facts(dataset, scope, teacher), keeps)
            for batch in self._batches(dataset, scope):
                if batch is None:
                    write(None)
                    continue
                output = self.setup.teacher(batch.images.to(self.device), batch.padding.to(self.device))
                if self._pairs_queries:
                    answers.append(self._slim_answer(query_output(output)) if held < _KEPT_BYTES else None)
                    held += output.logits.nbytes + output.boxes.nbytes
                    held += 0 if self.group is None else 2 * query_output(output).queries.content.nbytes
                write(self._of_teacher(batch, output, keeps, scope))
                yield batch
        self._answers[split] = answers

    @torch.no_grad()
    def student(self, dataset: Dataset, split: str, step: int, epoch: int, scope: Scope) -> Iterator[tuple[Batch, DetectorOutput]]:
        """Writes the rows of the student as it is now, and the states of ``scope.states``.

        Args:
            dataset: images to record.
            split: name of the split in the run.
            step: training step of the weights.
            epoch: training epoch of the weights.
            scope: which images are recorded.

        Yields:
            Each batch and the student's output. The files appear when the iteration ends.
        """
        student = self.setup.student
        with contextlib.ExitStack() as stack:
            keeps = bool(scope.states) and "states" in student.provides
            write = self._writing(stack, split, step, self._facts(dataset, scope, student), keeps)
            for index, batch in enumerate(self._batches(dataset, scope)):
                if batch is None:
                    write(None)
                    continue
                output = student(batch.images.to(self.device), batch.padding.to(self.device))
                own_rows = RowsOf(batch.image_ids, "student", epoch)
                mates, train_mate, group = None, None, []
                if self._pairs_queries:
                    answer, own = self._answer(split, index, batch), _slim(query_output(output))
                    context = self._context(batch, torch.device("cpu"))
                    mates = self._mates(own, answer, context)
                    found = (method.train_mates(own, answer, context) for method in self.setup.methods)
                    train_mate = next((mate for mate in found if mate is not None), None)
                    group = [] if self.group is None else [self._group_rows(self.group, answer, batch, query_output(output), epoch)]
                # written in one piece, so that the rows of an image are contiguous
                extras = RowExtras(mates=mates, train_mate=train_mate)
                kept = _Kept(pa.concat_tables([_rows(student, batch, output, own_rows, extras), *group]), [])
                if keeps and scope.states & set(batch.image_ids):
                    decoder_states, masks = query_output(output).states, self._student_masks(batch, output)
                    for row, image_id in enumerate(batch.image_ids):
                        if image_id in scope.states:
                            own = None if masks is None else masks(row)
                            kept.states.append((image_id, own, decoder_states[:, row].float().cpu().numpy()))
                write(kept)
                yield batch, output

    def _batches(self, dataset: Dataset, scope: Scope) -> Iterator[Batch | None]:
        """Yields this process's batches; None where it has none left while others do."""
        for chunk in own_chunks(scope.indices, BATCH, self.between):
            yield None if chunk is None else next(evaluation_batches(dataset, self.setup.evaluation_transform, BATCH, chunk))

    def _writing(
        self, stack: contextlib.ExitStack, split: str, step: int, facts: dict[str, object], keeps: bool
    ) -> Callable[["_Kept | None"], None]:
        """Returns what writes the rows and states of a batch of each process, in the order of the batches; the first process does."""
        rows = stack.enter_context(query_writer(self.run, split, step, facts=facts)) if is_first() else None
        states = stack.enter_context(states_writer(self.run, split, step)) if keeps and is_first() else None

        def write(own: _Kept | None) -> None:
            for kept in to_first(own):
                if kept is None or rows is None:
                    continue
                rows.write(kept.rows)
                if states is not None:
                    for image_id, masks, decoded in kept.states:
                        states.write(image_id, masks, decoded)

        return write

    def _facts(self, dataset: Dataset, scope: Scope, detector: Detector) -> dict[str, object]:
        return query_facts(
            len(scope.indices),
            scope.sampled,
            input_key(self.setup, dataset, scope),
            assignment=detector.assignment,
            geometric=detector.geometric,
            rows="all" if detector.assignment == "one" else "top",
            grid=self._grid(dataset, scope, detector),
        )

    def _grid(self, dataset: Dataset, scope: Scope, detector: Detector) -> dict[str, object] | None:
        """Returns what the candidates of a dense detector are; None for other detectors, whose candidates are no cells."""
        if not isinstance(detector, DenseDetector):
            return None
        grid = detector.grid_of(1, 1, torch.device("cpu"))
        differ = _input_size(self.setup, dataset, scope) is None
        return {"strides": list(grid.strides), "sizes_differ": differ, "shapes": grid.shapes, "levels": len(grid.strides)}

    def _of_teacher(self, batch: Batch, output: DetectorOutput, keeps: bool, scope: Scope) -> "_Kept":
        """Returns what is kept of the teacher's output for a batch."""
        assert self.setup.pairing is not None and self.setup.teacher is not None
        layers = sorted({t for group in self.setup.pairing.layer_map for t in group})
        context = self._context(batch, output.logits.device)
        selected = selection_of(self.setup.methods, output, context)
        renamed = dataclasses.replace(output, logits=self.setup.pairing.in_student_classes(output.logits, output.activation))
        said_by = RowsOf(batch.image_ids, "teacher")
        kept = _Kept(_rows(self.setup.teacher.detector, batch, renamed, said_by, RowExtras(selected=selected)), [])
        if not keeps or not scope.states & set(batch.image_ids):
            return kept
        drawn = recorded_masks(drawing_method(self.setup.methods), output, layers, context, selected)
        masks = _masks_by_image(drawn, layers)
        for row, image_id in enumerate(batch.image_ids):
            if image_id in scope.states:
                decoded = output.states[:, row].float().cpu().numpy() if isinstance(output, QueryOutput) else None
                kept.states.append((image_id, masks(row), decoded))
        return kept

    def _student_masks(self, batch: Batch, output: DetectorOutput) -> "Callable[[int], dict[tuple[int, int], np.ndarray]] | None":
        """Returns what gives the masks of one image of a batch by layer and level; None if there are none of a teacher beside them."""
        method = drawing_method(self.setup.methods)
        if self.setup.teacher is None or (method is None and "states" not in self.setup.teacher.detector.provides):
            return None
        drawn = recorded_student_masks(method, output, self._context(batch, output.logits.device))
        return _masks_by_image(drawn, list(range(output.logits.shape[0]))) if drawn else None

    def _answer(self, split: str, index: int, batch: Batch) -> QueryOutput:
        kept = self._answers.get(split, [])
        answer = kept[index] if index < len(kept) else None
        if answer is not None:
            return answer
        assert self.setup.teacher is not None
        return self._slim_answer(query_output(self.setup.teacher(batch.images.to(self.device), batch.padding.to(self.device))))

    def _slim_answer(self, output: QueryOutput) -> QueryOutput:
        """Returns the part of the teacher's output to keep: predictions, and queries if a method decodes them with the student."""
        slim = _slim(output)
        return slim if self.group is None else dataclasses.replace(slim, queries=_moved(output.queries, torch.device("cpu")))

    def _group_rows(self, method: Method, answer: QueryOutput, batch: Batch, output: QueryOutput, epoch: int) -> pa.Table:
        """Returns rows of the teacher's queries as the student decodes them, without those that the method excludes."""
        answer = dataclasses.replace(answer, logits=answer.logits.to(self.device), boxes=answer.boxes.to(self.device),
                                     queries=_moved(answer.queries, self.device))  # fmt: skip
        group_rows = RowsOf(batch.image_ids, "teacher_group", epoch)
        context = self._context(batch, self.device)
        queries = method.teacher_group(answer, context)
        decoded = context.query_student.decode(queries, output.context)
        if queries.valid is None:
            return _rows(self.setup.student, batch, decoded, group_rows)
        # the decoded values of excluded queries mean nothing: their boxes are moved far away, so that they match last, and they get no row
        hidden = ~queries.valid[None, :, :, None]
        decoded = dataclasses.replace(
            decoded, logits=decoded.logits.masked_fill(hidden, 0.0), boxes=decoded.boxes.masked_fill(hidden, _FAR)
        )
        kept = queries.valid[:, None].expand(-1, len(decoded.logits), -1).flatten().cpu().numpy()
        return _rows(self.setup.student, batch, decoded, group_rows).filter(pa.array(kept))

    def _context(self, batch: Batch, device: torch.device) -> MethodContext:
        assert self.setup.pairing is not None
        targets = batch.targets.to(device)
        return MethodContext(student=self.setup.student, pairing=self.setup.pairing, targets=targets)

    def _mates(self, output: QueryOutput, answer: QueryOutput, context: MethodContext) -> Mates:
        """Returns the full Hungarian assignment between all student and all teacher queries, at the last teacher layer of each group."""
        layers = list(context.pairing.last_layers())
        # the analysis's cost is over classes only, so a softmax head enters with its probabilities without the no-object class
        logits = output.logits if output.activation == "sigmoid" else torch.logit(probability(output), eps=1e-6)
        costs = query_cost(logits, output.boxes, context.teacher_probability(answer)[layers], answer.boxes[layers])
        mate = assign(QUERY_COST.class_ * costs[0] + QUERY_COST.bbox * costs[1] + QUERY_COST.giou * costs[2])
        column = mate.clamp(min=0)[..., None]
        parts = torch.stack([cost.gather(-1, column)[..., 0] for cost in costs], -1)
        return Mates(mate, layers, parts)


def input_key(setup: Setup, dataset: Dataset, scope: Scope) -> str:
    """Returns a hash of what determines the input size; encoder cells of two tables are the same places if their hashes are equal."""
    resize = setup.evaluation_transform.config.model_dump(mode="json").get("resize")
    if _input_size(setup, dataset, scope) is not None:
        return hash_json([resize])[:16]
    # images are padded to the largest one of their batch
    return hash_json([resize, BATCH, [dataset.records[index].image_id for index in scope.indices]])[:16]


def _input_size(setup: Setup, dataset: Dataset, scope: Scope) -> tuple[int, int] | None:
    """Returns (width, height) of every image as the detectors see it; None if they differ."""
    sizes = ((dataset.records[index].width, dataset.records[index].height) for index in scope.indices)
    return fixed_size(setup.evaluation_transform.config, sizes, training=False)


def _masks_by_image(
    drawn: Sequence[tuple[Level, torch.Tensor]], layers: Sequence[int]
) -> Callable[[int], dict[tuple[int, int], np.ndarray]]:
    """Returns a function of an image's row in the batch, which gives its masks by layer and level, without the cells of the padding."""
    maps = [(level.padding.cpu().numpy(), psi.float().cpu().numpy()) for level, psi in drawn]

    def of(row: int) -> dict[tuple[int, int], np.ndarray]:
        return {
            (layer, index): psi[place, row, ~padding[row].all(1)][:, ~padding[row].all(0)]
            for index, (padding, psi) in enumerate(maps)
            for place, layer in enumerate(layers)
        }

    return of


def _moved(queries: Queries, device: torch.device) -> Queries:
    values = (getattr(queries, field.name) for field in dataclasses.fields(queries))
    return Queries(*(None if value is None else value.to(device) for value in values))  # pyright: ignore[reportArgumentType] - same types


def _slim(output: QueryOutput) -> QueryOutput:
    """Returns only the predictions, on the CPU."""
    none = torch.empty(0)
    return QueryOutput(logits=output.logits.float().cpu(), boxes=output.boxes.float().cpu(), activation=output.activation,
                       states=none, queries=Queries(none, None, None, none))  # fmt: skip


def _rows(detector: Detector, batch: Batch, output: DetectorOutput, said_by: RowsOf, extras: RowExtras = NO_EXTRAS) -> pa.Table:
    """Returns the rows of a batch with the detector's own assignment and with the detection losses of every candidate that gets a row."""
    targets, source = batch.targets.to(output.logits.device), sources(output)
    match = detector.assign(output, targets)
    chosen = chosen_candidates(output, match)
    if chosen is not None:
        output, match = of_chosen(output, chosen), chosen.of(match)
        extras = dataclasses.replace(extras, query=chosen.index)
        source = source.to(chosen.index.device)[chosen.index]
    losses = pair_losses(output.logits, output.boxes, match, targets, output.activation)
    rows = query_rows(output, source, targets, match, said_by, dataclasses.replace(extras, losses=losses))
    if chosen is None:
        return rows
    return rows.filter(pa.array(chosen.kept[:, None].expand(-1, len(output.logits), -1).flatten().cpu().numpy()))
