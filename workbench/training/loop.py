"""The training loop: a pure function of (recipe, seed) that can be interrupted at any step and resumed from a checkpoint."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from workbench.errors import Interrupted
from workbench.files import write_text
from workbench.methods.context import Progress, TeacherAnswer
from workbench.recipe.setup import Setup
from workbench.store.run import Run, append_line, read_lines
from workbench.teacher_cache.read import TeacherCache
from workbench.training.balance import balanced_weights, mean_norms, term_gradients
from workbench.training.checkpoints import load_checkpoint, prune_checkpoints, save_checkpoint
from workbench.training.evaluation import Evaluator
from workbench.training.loader import TrainBatch, TrainLoader
from workbench.training.monitor import TermMonitor
from workbench.training.optim import Average, learning_rate, make_optimizer, set_learning_rate
from workbench.training.processes import broadcast_from_main, gathered, init_processes, interruptible
from workbench.training.step import DistillStep, NonFiniteCostError, Terms, explain_non_finite, weighted_sum

logger = logging.getLogger(__name__)

BALANCE_BATCHES = 4
GRADIENT_EVERY = 10


class Listener(Protocol):
    """Receives the progress of a run."""

    def on_step(self, step: int, steps: int, values: dict[str, float]) -> None: ...
    def on_evaluation(self, line: dict[str, Any]) -> None: ...
    def on_message(self, text: str) -> None: ...


class Trainer:
    """Trains one run to its end, from its first step or from its last checkpoint."""

    def __init__(
        self,
        run: Run,
        setup: Setup,
        listener: Listener,
        device: str = "auto",
        trackers: tuple[str, ...] = (),
        cache: TeacherCache | None = None,
    ):
        self.run, self.setup, self.listener = run, setup, listener
        self.config = setup.recipe.train
        processes = init_processes(device)
        self.accelerator = Accelerator(
            mixed_precision="no" if self.config.precision == "fp32" else self.config.precision,
            cpu=str(processes.device) == "cpu",
            log_with=list(trackers) or None,
            project_dir=str(run.path) if trackers else None,
            # a method omits a term for which a process's part of the batch has no target, and then its adapter gets no gradient
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=bool(setup.methods))],
        )
        self.main = self.accelerator.is_main_process
        if trackers:
            self.accelerator.init_trackers(setup.recipe.name)
        # convolutions and pooling are about a fifth faster in this layout, on CPUs and on GPUs
        setup.student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        teacher = setup.teacher.detector if setup.teacher is not None and cache is None else None
        step_module = DistillStep(setup.student, setup.methods, setup.pairing if setup.methods else None, teacher)
        optimizer = make_optimizer(setup.student, step_module.methods, self.config)
        self.step_module, self.optimizer = self.accelerator.prepare(step_module, optimizer)
        self.teacher = setup.teacher.to(self.accelerator.device) if setup.teacher is not None else None
        self.average = Average(setup.student, self.config.ema) if self.config.ema else None
        self.loader = TrainLoader(
            setup.train, setup.transform, self.config.batch_size, setup.recipe.seed, self.config.workers,
            self.accelerator.process_index, self.accelerator.num_processes, setup.variants,
            cache.read if cache is not None else None,
        )  # fmt: skip
        weights, class_weight = setup.student.loss_weights, self.config.class_weight
        self.detection_weights = {k: class_weight if class_weight and k.startswith("class") else v for k, v in weights.items()}
        self.term_weights: dict[str, float] = {}
        self.evaluator = Evaluator(setup, run, self.accelerator.device)
        self.seconds = {"cpu": 0.0, "wall": 0.0}
        self.taught: dict[str, bool] = {}
        self.monitor = TermMonitor([], {}, {}, self.taught)
        self.best = (-1.0, -1)

    def train(self) -> None:
        """Trains to the end.

        Raises:
            Interrupted: the user pressed Ctrl-C; the run has been saved.
            NonFiniteError: NaN or infinity appeared; the last checkpoint is kept.
            SilentTermError: a term had no gradient for a whole epoch.
        """
        start = self._begin()
        steps = self.config.steps
        epoch_log = max(self.loader.steps_per_epoch, GRADIENT_EVERY * self.config.log_every)
        with interruptible() as interrupted:
            batches = self.loader.iterate(start)
            for step in range(start, steps):
                clock = self._clock()
                batch = next(batches).to(self.accelerator.device)
                logged = (step + 1) % self.config.log_every == 0 or step + 1 == steps
                values = self._train_step(batch, step, logged)
                self._add_time(clock)
                if values is not None and self.main:
                    append_line(self.run.metrics_path, {"step": step + 1, **values})
                    append_line(self.run.timings_path, {"step": step + 1, **self.seconds})
                    self.accelerator.log(values, step=step + 1)
                if (step + 1) % epoch_log == 0:
                    self.monitor.check(step + 1)
                self.listener.on_step(step + 1, steps, values or {})
                done = step + 1
                if done % self.config.evaluate_every == 0 or done == steps:
                    self._evaluate(done)
                stop = interrupted()  # asked only once, so that a step reported as saved was saved
                if done % self.config.checkpoint_every == 0 or done == steps or stop or self.best[1] == done:
                    self._save(done)
                if stop and done < steps:
                    if self.main:
                        self.run.update_info(state="interrupted")
                    raise Interrupted(f"stopped at step {done} and saved. Resume with: workbench run --resume {self.run.name}")
        self._finish()

    def _begin(self) -> int:
        """Restores the last checkpoint, or balances the weights of a new run; returns the next step."""
        saved = self.run.checkpoint_steps()
        info = self.run.info()
        if saved:
            model = self.accelerator.unwrap_model(self.step_module)
            state = load_checkpoint(
                self.run, saved[-1], model.student, model.methods, self.optimizer.optimizer, self.average, self.accelerator.scaler
            )
            self.seconds, self.taught, self.best = state["seconds"], state["taught"], tuple(state["best"])
            self.term_weights = info["term_weights"]
            for path in (self.run.metrics_path, self.run.timings_path, self.run.evaluations_path) if self.main else ():
                kept = [line for line in read_lines(path) if line["step"] <= saved[-1] and line.get("split") != "test"]
                write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
            self.listener.on_message(f"resumed at step {saved[-1]} of {self.config.steps}")
        else:
            self.term_weights = self._balance()
            if self.main:
                for path in (self.run.metrics_path, self.run.timings_path, self.run.evaluations_path):
                    write_text(path, "")
                self.run.update_info(term_weights=self.term_weights, alignment_start=self.evaluator.alignment())
        if not self.main:  # each process draws its own dropout and noise
            torch.manual_seed(self.setup.recipe.seed + 1_000_003 * self.accelerator.process_index + (saved[-1] if saved else 0))
        self.monitor = TermMonitor(self.setup.methods, self.detection_weights, self.term_weights, self.taught)
        if self.main:
            self.run.update_info(state="running", device=str(self.accelerator.device), processes=self.accelerator.num_processes)
        return saved[-1] if saved else 0

    def _balance(self) -> dict[str, float]:
        """Returns the terms' weights, measured on the first batches; buffers of the models and random generators stay unchanged."""
        model = self.accelerator.unwrap_model(self.step_module)
        if not self.setup.methods:
            return {}
        measured: list[dict[str, tuple[float, float]]] = []
        if any(method.config.balance is not None for method in self.setup.methods):
            buffers = {name: value.clone() for name, value in model.named_buffers()}
            device = self.accelerator.device
            model.train()
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                for step in range(BALANCE_BATCHES):
                    terms = self._terms(self.loader.batch(step).to(device), 0, model)
                    measured.append(term_gradients(terms, self.detection_weights, self._student_parameters()))
            for name, value in model.named_buffers():
                value.copy_(buffers[name])
        weights = balanced_weights(self.setup.methods, mean_norms(gathered(measured)))
        self.listener.on_message("term weights: " + ", ".join(f"{name} {weight:.4g}" for name, weight in weights.items()))
        return weights

    def _student_parameters(self) -> list[torch.nn.Parameter]:
        return [p for p in self.accelerator.unwrap_model(self.step_module).student.parameters() if p.requires_grad]

    def _terms(self, batch: TrainBatch, step: int, module: torch.nn.Module | None = None) -> Terms:
        """Computes the terms of a batch; ``module`` replaces the prepared module, which expects a backward pass."""
        targets = batch.targets
        count = torch.as_tensor(self.accelerator.reduce(targets.valid.sum().float(), "mean")).clamp(min=1)
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
        """Runs one optimiser step; returns the values to log, or None if this step is not logged."""
        model = self.accelerator.unwrap_model(self.step_module)
        self.step_module.train()
        rate = learning_rate(self.config, step)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad()
        values: dict[str, float] = {}
        terms, total = None, torch.zeros(())
        try:
            for part in _parts(batch, self.config.accumulate):
                terms = self._terms(part, step)
                total = weighted_sum(terms, self.detection_weights, self.term_weights)
                if not torch.isfinite(total):
                    raise explain_non_finite(model.student, part.images, part.padding, part.image_ids, step + 1, terms)
                if logged and terms.distillation and (step + 1) % (GRADIENT_EVERY * self.config.log_every) == 0:
                    values |= self.monitor.measure(terms, self._student_parameters())
                self.accelerator.backward(total / self.config.accumulate)
        except NonFiniteCostError as error:
            raise explain_non_finite(model.student, batch.images, batch.padding, batch.image_ids, step + 1) from error
        norm = self.accelerator.clip_grad_norm_(self.step_module.parameters(), self.config.clip_norm or float("inf"))
        # with a loss scaler such a step is skipped and the scale halved; without one it would make every weight NaN
        if self.accelerator.scaler is None and norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            raise explain_non_finite(model.student, batch.images, batch.padding, batch.image_ids, step + 1)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(model.student, step)
        if not logged:
            return None
        assert terms is not None
        values |= {f"detection/{k}": float(v.detach()) for k, v in terms.detection.items()}
        values |= {f"raw/{k}": float(v.detach()) for k, v in terms.distillation.items()}
        values |= {f"weighted/{k}": float(v.detach()) * self.term_weights[k] for k, v in terms.distillation.items()}
        return {"loss": float(total.detach()), "learning_rate": rate, "gradient_norm": float(norm or 0.0), **values}

    def _evaluate(self, step: int) -> None:
        """Evaluates on the validation split and stores its queries, in the first process only."""
        if self.main:
            with self._averaged():
                epoch = step // self.loader.steps_per_epoch
                line = self.evaluator.evaluate(self.setup.val, "val", step, epoch, states=step == self.config.steps)
            append_line(self.run.evaluations_path, line)
            ap = line["coco"]["ap"] or 0.0
            if self.config.keep == "best" and ap > self.best[0]:
                self.best = (ap, step)
                self.run.update_info(best_step=step)
            self.listener.on_evaluation(line)
        self.best = broadcast_from_main(self.best)

    def _save(self, step: int) -> None:
        self.accelerator.wait_for_everyone()
        if not self.main:
            return
        model = self.accelerator.unwrap_model(self.step_module)
        state = {"seconds": self.seconds, "taught": self.taught, "best": list(self.best)}
        save_checkpoint(
            self.run, step, model.student, model.methods, self.optimizer.optimizer, self.average, self.accelerator.scaler, state
        )
        prune_checkpoints(self.run, {step, self.best[1]})

    def _finish(self) -> None:
        """Evaluates the run's result once, on the test split, or on the validation split if there is no test split."""
        self.accelerator.wait_for_everyone()
        if self.main:
            split = "val" if self.setup.test is None else "test"
            line = self.evaluator.evaluate_result(self.setup.val if self.setup.test is None else self.setup.test, split)
            append_line(self.run.evaluations_path, line)
            self.listener.on_evaluation(line)
            self.run.update_info(state="done", seconds=self.seconds)
        self.accelerator.end_training()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        student = self.accelerator.unwrap_model(self.step_module).student
        if self.average is not None:
            self.average.swap(student)
        try:
            yield
        finally:
            if self.average is not None:
                self.average.swap(student)

    def _clock(self) -> tuple[float, float]:
        return time.process_time(), time.perf_counter()

    def _add_time(self, since: tuple[float, float]) -> None:
        """Adds the process's CPU seconds and wall seconds of training; evaluation and checkpoints are not counted."""
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        now = self._clock()
        self.seconds = {"cpu": self.seconds["cpu"] + now[0] - since[0], "wall": self.seconds["wall"] + now[1] - since[1]}


def _parts(batch: TrainBatch, count: int) -> list[TrainBatch]:
    """Splits the batch into ``count`` parts of equal size."""
    if count == 1:
        return [batch]
    size = len(batch.image_ids) // count
    return [batch.part(i * size, (i + 1) * size) for i in range(count)]
