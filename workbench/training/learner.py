"""The part of training that changes a student: models and optimiser on their device, weights of the terms, one optimiser step."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor

from workbench.detectors.whole_batch import Parts, over_processes
from workbench.errors import DeviceError
from workbench.methods.context import Progress, TeacherAnswer
from workbench.recipe.setup import Setup
from workbench.store.run import GRADIENT_EVERY
from workbench.teacher_cache.read import TeacherCache
from workbench.training.balance import balanced_weights, mean_norms, term_gradients
from workbench.training.finite import Arriving, Doubtful
from workbench.training.loader import TrainBatch, TrainLoader
from workbench.training.monitor import TermMonitor
from workbench.training.optim import Average, learning_rate, make_optimizer, set_learning_rate
from workbench.training.passes import Passes
from workbench.training.processes import gathered, init_processes
from workbench.training.step import DistillStep, NonFiniteCostError, Terms, explain_non_finite, weighted_sum

logger = logging.getLogger(__name__)

BALANCE_BATCHES = 4


class Learner:
    """Holds a student with its optimiser and changes it step by step; what happens between the steps is up to a subclass.

    Args:
        setup: models and data.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        cache: the teacher's outputs; None asks the live teacher.
        trackers: trackers of accelerate that log the run.
        tracked: folder of what they write.
        positions: positions of the training images to train on; None takes all.
    """

    def __init__(
        self,
        setup: Setup,
        device: str = "auto",
        cache: TeacherCache | None = None,
        trackers: tuple[str, ...] = (),
        tracked: Path | None = None,
        positions: Sequence[int] | None = None,
    ):
        self.setup, self.config = setup, setup.recipe.train
        processes = init_processes(device)
        precision = "no" if self.config.precision == "fp32" else self.config.precision
        # accelerate keeps its first precision for the whole process, and refuses another one
        if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
            AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            mixed_precision=precision,
            cpu=str(processes.device) == "cpu",
            log_with=list(trackers) or None,
            project_dir=str(tracked) if trackers else None,
            # a method omits a term for which a process's part of the batch has no target, and then its adapter gets no gradient
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=bool(setup.methods))],
        )
        # convolutions and pooling are about a fifth faster in this layout, on CPUs and on GPUs
        setup.student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        teacher = setup.teacher.detector if setup.teacher is not None and cache is None else None
        step_module = DistillStep(setup.student, setup.methods, setup.pairing if setup.methods else None, teacher)
        optimizer = make_optimizer(setup.student, step_module.methods, self.config)
        self.step_module, self.optimizer = self.accelerator.prepare(step_module, optimizer)
        # walking through all modules takes a hundredth of a small student's step
        self._all_parameters = list(self.step_module.parameters())
        self.passes = Passes(self.step_module, self.accelerator.device)
        self._doubtful: Doubtful | None = None
        self._student_parameters = [p for p in setup.student.parameters() if p.requires_grad]
        self.teacher = setup.teacher.to(self.accelerator.device) if setup.teacher is not None else None
        self.average = Average(setup.student, self.config.ema) if self.config.ema else None
        self.loader = TrainLoader(
            setup.train, setup.transform, self.config.batch_size, setup.recipe.seed, self.config.workers,
            self.accelerator.process_index, self.accelerator.num_processes, setup.variants,
            cache.read if cache is not None else None, positions,
        )  # fmt: skip
        weights, class_weight = setup.student.loss_weights, self.config.class_weight
        self.detection_weights = {k: class_weight if class_weight and k.startswith("class") else v for k, v in weights.items()}
        self.term_weights: dict[str, float] = {}
        self.monitor = TermMonitor([], {}, {}, {})

    def _balance(self) -> dict[str, float]:
        """Returns the terms' weights, measured on the first batches; buffers of the models and random generators stay unchanged."""
        if not self.setup.methods:
            return {}
        measured: list[dict[str, tuple[float, float]]] = []
        if any(method.config.balance is not None for method in self.setup.methods):
            measured += self._gradients(range(BALANCE_BATCHES))
        return balanced_weights(self.setup.methods, mean_norms(gathered(measured)))

    def _gradients(self, batches: Iterable[int], known: Mapping[int, float] | None = None) -> list[dict[str, tuple[float, float]]]:
        """Returns what ``term_gradients`` measures on some of the first batches; buffers and random generators stay unchanged.

        Args:
            batches: which of the first batches.
            known: norm of the gradient of the detection loss, by batch, where it was measured before.
        """
        model = self.accelerator.unwrap_model(self.step_module)
        buffers = {name: value.clone() for name, value in model.named_buffers()}
        device = self.accelerator.device
        measured: list[dict[str, tuple[float, float]]] = []
        model.train()
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for step in batches:
                terms = self._terms(self.loader.batch(step).to(device), 0, model)
                measured.append(term_gradients(terms, self.detection_weights, self._student_parameters, (known or {}).get(step)))
        for name, value in model.named_buffers():
            value.copy_(buffers[name])
        return measured

    def _terms(self, batch: TrainBatch, step: int, module: torch.nn.Module | None = None) -> Terms:
        """Computes the terms of a batch; ``module`` replaces the prepared module, which expects a backward pass."""
        targets = batch.targets
        count = over_processes(targets.valid.sum().float(), least=1)
        images = batch.images.contiguous(memory_format=torch.channels_last)
        epoch = step // self.loader.steps_per_epoch
        progress, teacher = Progress(step=step, epoch=epoch, num_boxes=count), None
        with self.accelerator.autocast():
            if batch.teacher is not None:
                teacher = batch.teacher.answer()
            elif self.teacher is not None and self.setup.methods:
                teacher = TeacherAnswer(output=self.teacher(images, batch.padding))
            return (module or self.step_module)(images, batch.padding, targets, progress=progress, teacher=teacher)

    def _train_step(self, batch: TrainBatch, step: int, logged: bool) -> dict[str, float] | None:
        """Runs one optimiser step; returns the values to log, or None if this step is not logged.

        A step for which the memory of the device is too small is made again in passes of half as many images, which give the same
        gradient (``whole_batch.Parts``). The other statistics of the images that go through at once, those of batch norms, differ.

        Raises:
            NonFiniteError: this step or the one before was not finite.
            DeviceError: not even one image fits, or the recipe or several processes rule smaller passes out.
        """
        self.step_module.train()
        rate = learning_rate(self.config, step)
        set_learning_rate(self.optimizer, rate)
        again = self.config.on_out_of_memory == "halve" and self.accelerator.num_processes == 1
        if again:
            self.passes.remember()
        while True:
            try:
                values, terms, total = self._gradient(batch, step, logged)
                break
            except torch.OutOfMemoryError:
                if not (again and self.passes.halve(len(batch.image_ids) // self.config.accumulate)):
                    raise self._too_large(step) from None
            # outside of the handler, because the exception holds the tensors of the step that failed
            self.passes.restore()
            images = -(-len(batch.image_ids) // self.config.accumulate // self.passes.count)
            self._goes_on_smaller(f"step {step + 1}: out of memory. The run goes on from this step with {images} of its images at once.")
        norm = self.accelerator.clip_grad_norm_(self._all_parameters, self.config.clip_norm or float("inf"))
        # with a loss scaler such a step is skipped and the scale halved; without one it would make every weight NaN
        gradient = torch.as_tensor(0.0 if norm is None else norm).to(total)
        if self.accelerator.scaler is None:
            finite = torch.isfinite(total) & torch.isfinite(gradient)
            # the device itself leaves the step out, so that nobody has to wait for the answer here
            self.optimizer.optimizer.found_inf = (~finite).float()
            self._doubtful = Doubtful(step, batch, terms, Arriving(finite))
            if logged:
                self.check_finite()
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.accelerator.unwrap_model(self.step_module).student, step)
        if not logged:
            return None
        loss, length, *numbers = torch.stack([total, gradient, *terms.values()]).tolist()
        found = dict(zip(terms, numbers, strict=True))
        values |= {f"detection/{name}": number for name, number in found.items() if name not in self.term_weights}
        values |= {f"raw/{name}": found[name] for name in self.term_weights if name in found}
        values |= {f"weighted/{name}": found[name] * weight for name, weight in self.term_weights.items() if name in found}
        return {"loss": loss, "learning_rate": rate, "gradient_norm": length, **values}

    def _gradient(self, batch: TrainBatch, step: int, logged: bool) -> tuple[dict[str, float], dict[str, Tensor], Tensor]:
        """Leaves the gradient of a batch in the parameters; returns what the monitor measured, the unweighted terms and the loss."""
        student = self.accelerator.unwrap_model(self.step_module).student
        self.optimizer.zero_grad()
        measured = logged and (step + 1) % (GRADIENT_EVERY * self.config.log_every) == 0
        values: dict[str, float] = {}
        sums: dict[str, Tensor] = {}
        whole = torch.zeros((), device=self.accelerator.device)
        try:
            for terms, piece, share in self._pieces_of(batch, step):
                if piece is batch or not sums:
                    self.check_finite()  # the assignment has waited for the device, so that the step before is done
                total = weighted_sum(terms, self.detection_weights, self.term_weights)
                if logged and not torch.isfinite(total):
                    raise explain_non_finite(student, piece.images, piece.padding, piece.image_ids, step + 1, terms)
                if measured and terms.distillation:
                    values |= self.monitor.measure(terms, self._student_parameters)
                self.accelerator.backward(total * share)
                for name, value in (terms.detection | terms.distillation).items():
                    sums[name] = sums.get(name, 0.0) + share * value.detach().float()
                whole = whole + share * total.detach()
        except NonFiniteCostError as error:
            self.check_finite()
            raise explain_non_finite(student, batch.images, batch.padding, batch.image_ids, step + 1) from error
        return values, sums, whole

    def _pieces_of(self, batch: TrainBatch, step: int) -> Iterator[tuple[Terms, TrainBatch, float]]:
        """Yields the terms of everything that goes through at once, its images and its share in the loss."""
        count = self.config.accumulate
        for part in _parts(batch, count):
            pieces = self.passes.cut(part)
            if len(pieces) == 1:
                yield self._terms(part, step), part, 1 / count
                continue
            divided, random = Parts(len(pieces)), Passes(self.step_module, self.accelerator.device)
            random.remember()
            with torch.no_grad():
                for piece in pieces:
                    with divided.noting():
                        self._terms(piece, step)
            random.restore()
            for index, piece in enumerate(pieces):
                with divided.learning(index):
                    terms = self._terms(piece, step)
                yield terms, piece, 1 / (count * len(pieces))

    def check_finite(self) -> None:
        """Raises an error if the last step that was made was not finite. Call it before the weights are used for anything else.

        Raises:
            NonFiniteError: it was not; the message says where.
        """
        doubtful, self._doubtful = self._doubtful, None
        if doubtful is None:
            return
        if not doubtful.finite.read():
            student = self.accelerator.unwrap_model(self.step_module).student
            batch = doubtful.batch
            terms = Terms(doubtful.terms, {})
            raise explain_non_finite(student, batch.images, batch.padding, batch.image_ids, doubtful.step + 1, terms)

    def _too_large(self, step: int) -> DeviceError:
        return DeviceError(
            f"step {step + 1}: the memory of {self.accelerator.device} is too small for {self.config.batch_size} images in "
            f"{self.config.accumulate} parts. The last checkpoint is kept. Set train.accumulate to twice as much or more, a smaller "
            "train.batch_size, or train.precision=bf16."
        )

    def _goes_on_smaller(self, text: str) -> None:
        """Tells whoever watches the run that fewer images go through at once."""
        logger.warning(text)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Gives the student its averaged weights while the block runs, if the recipe averages them."""
        student = self.accelerator.unwrap_model(self.step_module).student
        if self.average is not None:
            self.average.swap(student)
        try:
            yield
        finally:
            if self.average is not None:
                self.average.swap(student)


def _parts(batch: TrainBatch, count: int) -> list[TrainBatch]:
    """Splits the batch into ``count`` parts of equal size."""
    if count == 1:
        return [batch]
    size = len(batch.image_ids) // count
    return [batch.part(i * size, (i + 1) * size) for i in range(count)]
