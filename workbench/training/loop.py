"""The training loop: a pure function of (recipe, seed) that can be interrupted at any step and resumed from a checkpoint."""

import json
import logging
import time
from contextlib import nullcontext
from typing import Any, Protocol

import torch

from workbench.errors import Interrupted, RunError, lacks_memory
from workbench.files import write_text
from workbench.recipe.setup import Setup
from workbench.store.run import GRADIENT_EVERY, Run, append_line, read_lines
from workbench.teacher_cache.read import TeacherCache
from workbench.training.checkpoints import load_checkpoint, prune_checkpoints, save_checkpoint
from workbench.training.evaluation import Evaluator
from workbench.training.learner import Learner
from workbench.training.loader import worker_lost
from workbench.training.monitor import TermMonitor
from workbench.training.processes import Interruption, Stopped, broadcast_from_main, interruptible
from workbench.training.reproducibility import reproducibility
from workbench.training.watch import Unwatched, Watch

logger = logging.getLogger(__name__)


class Listener(Protocol):
    """Receives the progress of a run."""

    def on_step(self, step: int, steps: int, values: dict[str, float]) -> None: ...
    def on_evaluation(self, line: dict[str, Any]) -> None: ...
    def on_message(self, text: str) -> None: ...


class Silent:
    """A listener that ignores everything."""

    def on_step(self, step: int, steps: int, values: dict[str, float]) -> None:
        """Ignores a step."""

    def on_evaluation(self, line: dict[str, Any]) -> None:
        """Ignores an evaluation."""

    def on_message(self, text: str) -> None:
        """Ignores a message."""


class Trainer(Learner):
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
        self.run, self.listener = run, listener
        super().__init__(setup, device, cache, trackers, run.path)
        self.main = self.accelerator.is_main_process
        if trackers:
            self.accelerator.init_trackers(setup.recipe.name)
        self.evaluator = Evaluator(setup, run, self.accelerator.device)
        self.seconds = {"cpu": 0.0, "wall": 0.0}
        self.taught: dict[str, bool] = {}
        self.best = (-1.0, -1)
        self.done = 0
        self.watch: Watch | Unwatched = Unwatched()

    def train(self) -> None:
        """Trains to the end.

        Raises:
            Interrupted: a signal asked the run to stop; it has been saved.
            NonFiniteError: NaN or infinity appeared; the last checkpoint is kept.
            RunError: memory is too little, or a process that loads data has ended or hangs.
            SilentTermError: a term had no gradient for a whole epoch.
        """
        with interruptible() as interruption:
            try:
                self._train(interruption)
            except (RuntimeError, MemoryError) as error:
                if isinstance(error, RuntimeError) and (lost := worker_lost(error, self.done)) is not None:
                    raise lost from error
                if (advice := lacks_memory(error)) is not None:
                    raise RunError(f"run '{self.run.name}' has stopped after step {self.done}: {advice}") from error
                raise

    def _train(self, interruption: Interruption) -> None:
        start = self._begin()
        self.done = start
        self.watch.at(start)
        steps = self.config.steps
        epoch_log = max(self.loader.steps_per_epoch, GRADIENT_EVERY * self.config.log_every)
        if start and self._is_due(start) and not self._is_evaluated(start):
            self._evaluate(start, interruption)  # a signal ended this evaluation before
            self._save(start)
            self._stop_if_asked(start, interruption.asked())
        if start < steps:
            batches = self.loader.iterate(start)
            for step in range(start, steps):
                clock = self._clock()
                batch = next(batches).to(self.accelerator.device)
                logged = (step + 1) % self.config.log_every == 0 or step + 1 == steps
                values = self._train_step(batch, step, logged)
                self._add_time(clock, logged or self._is_due(step + 1))
                if values is not None and self.main:
                    append_line(self.run.metrics_path, {"step": step + 1, **values})
                    append_line(self.run.timings_path, {"step": step + 1, **self.seconds})
                    self.accelerator.log(values, step=step + 1)
                if (step + 1) % epoch_log == 0:
                    self.monitor.check(step + 1)
                self.listener.on_step(step + 1, steps, values or {})
                self.done = done = step + 1
                self.watch.at(done)
                if self._is_due(done):
                    self._evaluate(done, interruption)
                stop = interruption.asked()  # asked only once, so that a step reported as saved was saved
                if done % self.config.checkpoint_every == 0 or done == steps or stop or self.best[1] == done:
                    self._save(done)
                self._stop_if_asked(done, stop)
        self._finish(interruption)

    def _is_due(self, step: int) -> bool:
        """True if an evaluation follows this step."""
        return step % self.config.evaluate_every == 0 or step == self.config.steps

    def _is_evaluated(self, step: int) -> bool:
        """True if the evaluation after this step was made, in whatever process."""
        return broadcast_from_main(any(line["step"] == step and line["split"] == "val" for line in read_lines(self.run.evaluations_path)))

    def _stop_if_asked(self, step: int, number: int) -> None:
        """Raises ``Interrupted`` if a signal has this number; 0 is none. The run has been saved at this step."""
        if not number:
            return
        if self.main:
            self.run.update_info(state="interrupted")
        stopped = Interrupted(f"stopped at step {step} and saved. Resume with: workbench run --resume {self.run.name}")
        stopped.exit_code = 128 + number
        raise stopped

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
            kept = info["term_weights"]
            self.term_weights = {name: kept[name] for name in model.term_names if name in kept}  # JSON has them by name
            if self.main:
                self._cut_logs(saved[-1])
            self.listener.on_message(f"resumed at step {saved[-1]} of {self.config.steps}")
        else:
            self.term_weights = self._balance()
            if self.setup.methods:
                said = ", ".join(f"{name} {weight:.4g}" for name, weight in self.term_weights.items())
                self.listener.on_message(f"term weights: {said}")
            if self.main:
                for path in self.run.logs():
                    write_text(path, "")
                self.run.update_info(term_weights=self.term_weights, alignment_start=self.evaluator.alignment())
        if not self.main:  # each process draws its own dropout and noise
            torch.manual_seed(self.setup.recipe.seed + 1_000_003 * self.accelerator.process_index + (saved[-1] if saved else 0))
        self.monitor = TermMonitor(self.setup.methods, self.detection_weights, self.term_weights, self.taught)
        if self.main:
            self.run.update_info(
                state="running",
                device=str(self.accelerator.device),
                processes=self.accelerator.num_processes,
                reproducibility=reproducibility(self.accelerator.device, self.accelerator.num_processes),
            )
        return saved[-1] if saved else 0

    def _cut_logs(self, step: int) -> None:
        """Removes from the logs what a resumed run writes again: everything after the checkpoint, and the result."""
        logs = {path: read() for path, read in self.run.logs().items()}
        self.run.update_info(saved_logs={})
        for path, lines in logs.items():
            kept = [line for line in lines if line["step"] <= step and line.get("split") != "test"]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.run.save_logs()

    def _evaluate(self, step: int, interruption: Interruption) -> None:
        """Evaluates on the validation split and stores its queries, each process its share of the images.

        A signal ends the evaluation. It is then made when the run is resumed.
        """
        self.check_finite()
        if self.main:
            self.run.check_there()  # writing would make the folder again
        random = torch.get_rng_state()
        alone = self.accelerator.num_processes == 1

        def stop_together() -> None:
            if interruption.asked():
                raise Stopped

        # a process that stopped alone would leave the others waiting for its share
        self.evaluator.recorder.between = None if alone else stop_together
        try:
            with self.watch.alone(), self.averaged(), interruption.at_once() if alone else nullcontext():
                epoch = step // self.loader.steps_per_epoch
                line = self.evaluator.evaluate(self.setup.val, "val", step, epoch, states=step == self.config.steps)
        except Stopped:
            torch.set_rng_state(random)
            self.setup.student.train()
            line = None
        if line:
            append_line(self.run.evaluations_path, line)
            ap = line["coco"]["ap"] or 0.0
            if self.config.keep == "best" and ap > self.best[0]:
                self.best = (ap, step)
                self.run.update_info(best_step=step)
            self.listener.on_evaluation(line)
        self.best = broadcast_from_main(self.best)

    def _goes_on_smaller(self, text: str) -> None:
        """See ``Learner``. The run is then no longer equal to the bit to one with more memory."""
        self.listener.on_message(text)
        self.run.update_info(reproducibility=reproducibility(self.accelerator.device, 1, self.passes.count))

    def _save(self, step: int) -> None:
        self.check_finite()
        self.accelerator.wait_for_everyone()
        if not self.main:
            return
        self.run.check_there()
        model = self.accelerator.unwrap_model(self.step_module)
        state = {"seconds": self.seconds, "taught": self.taught, "best": list(self.best)}
        with self.watch.alone():
            save_checkpoint(
                self.run, step, model.student, model.methods, self.optimizer.optimizer, self.average, self.accelerator.scaler, state
            )
            prune_checkpoints(self.run, {step, self.best[1]})
            self.run.save_logs()

    def _finish(self, interruption: Interruption) -> None:
        """Evaluates the run's result once, on the test split, or on the validation split if there is no test split."""
        self.accelerator.wait_for_everyone()
        split = "val" if self.setup.test is None else "test"
        alone = self.accelerator.num_processes == 1
        try:
            with self.watch.alone(), interruption.at_once() if alone else nullcontext():
                line = self.evaluator.evaluate_result(self.setup.val if self.setup.test is None else self.setup.test, split)
        except Stopped:
            self._stop_if_asked(self.config.steps, interruption.number)
            raise
        if self.main:
            append_line(self.run.evaluations_path, line)
            self.listener.on_evaluation(line)
            self.run.finish(seconds=self.seconds)
        self.accelerator.end_training()

    def _clock(self) -> tuple[float, float]:
        return time.process_time(), time.perf_counter()

    def _add_time(self, since: tuple[float, float], exactly: bool) -> None:
        """Adds the process's CPU seconds and wall seconds of training; evaluation and checkpoints are not counted.

        Where it need not be exact, a GPU's rest of the step counts in the next one, which waits for it.
        """
        if exactly and self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        now = self._clock()
        self.seconds = {"cpu": self.seconds["cpu"] + now[0] - since[0], "wall": self.seconds["wall"] + now[1] - since[1]}
