"""Records the queries of any checkpoint of a run on any of its splits: query table, decoder states and masks."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import nn

from workbench.datasets.base import Dataset
from workbench.datasets.transforms import size_after
from workbench.detectors.dense_detector import DenseDetector
from workbench.detectors.detector import Detector
from workbench.detectors.output import QueryOutput
from workbench.detectors.registry import load_detector
from workbench.device import resolve_device
from workbench.errors import ConfigError, RunError
from workbench.methods.recorded import sending_method
from workbench.recipe.loading import stored_recipe
from workbench.recipe.setup import Setup, build, stored_teacher
from workbench.remote import is_remote
from workbench.store.queries import TEACHER_STEP, complete_steps, read_facts
from workbench.store.run import Run, result_folder
from workbench.training.candidates import best_count
from workbench.training.checkpoints import load_methods
from workbench.training.recording import STATE_IMAGES, QueryRecorder, Scope

SPLITS = ("train", "val", "test")
_BYTES_PER_ROW = 64  # as Parquet; slightly more than random numbers take


@dataclass(frozen=True)
class Sizes:
    """Size of a recording.

    Attributes:
        images: Number of images that are recorded.
        of: Number of images in the split.
        student_rows: Rows of the student in the query table.
        group_rows: Rows of the teacher's queries as the student decodes them, if a method does that. This is an upper limit, because the
            method may select some of them.
        teacher_rows: Rows of the teacher; 0 if they exist already or there is no teacher.
        state_images: Number of images whose decoder states are kept.
        bytes: Slight overestimate of the total size; selection masks are not counted.
    """

    images: int
    of: int
    student_rows: int
    group_rows: int
    teacher_rows: int
    state_images: int
    bytes: int


class QueryRecording:
    """Records the queries of a checkpoint; creating it checks all arguments before anything is written.

    Args:
        run: the run that the checkpoint belongs to.
        checkpoint: step of one of its checkpoints; None uses its result (best or last).
        split: train, val or test of its recipe.
        images: number of images to record, stratified by class; None records all.
        device: auto, cpu, cuda or cuda:N.

    Attributes:
        step: Training step of the recorded weights.
        sizes: Size of what will be written.

    Raises:
        RunError: there is no such checkpoint, the data or teacher differ from the run's, the disk is too small, or a sample would
            replace a whole table.
        ConfigError: there is no such split, or ``images`` is below one.
        DeviceError: this machine does not have the device.
    """

    def __init__(self, run: Run, checkpoint: int | None = None, split: str = "val", images: int | None = None, device: str = "auto"):
        self._device = resolve_device(device)
        if split not in SPLITS:
            raise ConfigError(f"--split {split}: there is no such split. Choose from {', '.join(SPLITS)}.")
        if images is not None and images < 1:
            raise ConfigError(f"--images {images}: the number must be at least 1. Leave it out to record all images.")
        self.run, self.split = run, split
        if is_remote(self.run.path):
            raise RunError(
                f"{self.run.path} is not a local folder, and checkpoints can only be read locally. Copy the run, record it, and copy "
                "it back."
            )
        self.step = int((result_folder(run) if checkpoint is None else run.complete_checkpoint(checkpoint)).name)
        if self._device.type == "cpu":
            torch.set_num_threads(1)  # as in training: sums in another order differ in their last digits
        self._setup = _setup_of(self.run)
        self._dataset = self._data()
        self.scope = Scope.of(self._dataset, None if images is None else stratified(self._dataset, images))
        self._setup.student = load_detector(self.run.checkpoint_path(self.step)).to(self._device).eval()
        self._setup.student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - as in training
        if self._setup.teacher is not None:
            self._setup.teacher.to(self._device)
            methods = nn.ModuleList(self._setup.methods)
            load_methods(self.run, self.step, methods)
            methods.to(self._device)
        self._teacher_wanted = self._setup.teacher is not None and self._needs_teacher_rows()
        self.sizes = self._sizes()
        self._check()

    def write(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Writes the tables; each appears as a whole when it is done.

        Args:
            progress: called with the number of images done and the total; the teacher's images count too.

        Raises:
            RunError: the run is being trained.
            WorkbenchError: a file cannot be written.
        """
        total, done = self.sizes.images * (1 + self._teacher_wanted), 0

        def tell(images: int) -> None:
            nonlocal done
            done += images
            if progress is not None:
                progress(done, total)

        with self.run.locked():
            recorder = QueryRecorder(self._setup, self.run, self._device)
            if self._teacher_wanted:
                for batch in recorder.teacher(self._dataset, self.split, self.scope):
                    tell(len(batch.image_ids))
            epoch = self.step // _steps_per_epoch(self._setup, self.run)
            for batch, _ in recorder.student(self._dataset, self.split, self.step, epoch, self.scope):
                tell(len(batch.image_ids))

    def _data(self) -> Dataset:
        found = {"train": self._setup.train, "val": self._setup.val, "test": self._setup.test}[self.split]
        if found is None:
            raise ConfigError(f"run '{self.run.name}' has no test split. Choose another --split.")
        return found

    def _needs_teacher_rows(self) -> bool:
        if TEACHER_STEP not in complete_steps(self.run, self.split):
            return True
        facts = read_facts(self.run, self.split, TEACHER_STEP)
        return facts["sampled"] and facts["images"] != len(self.scope.indices)

    def _sizes(self) -> Sizes:
        images = len(self.scope.indices)
        layers, queries, width = self._row_counts(self._setup.student)
        rows, state_bytes = images * layers * queries, 2 * layers * queries * width
        group_rows = teacher_rows = 0
        if self._setup.teacher is not None:
            depth, queries, width = self._row_counts(self._setup.teacher.detector)
            if sending_method(self._setup.methods) is not None:
                group_rows = images * layers * queries
            if self._teacher_wanted:
                teacher_rows, state_bytes = images * depth * queries, state_bytes + 2 * depth * queries * width
        kept = len(self.scope.states) if state_bytes else 0
        size = kept * state_bytes + _BYTES_PER_ROW * (rows + group_rows + teacher_rows)
        return Sizes(images, len(self._dataset), rows, group_rows, teacher_rows, kept, size)

    def _row_counts(self, detector: Detector) -> tuple[int, int, int]:
        """Returns the stages, the candidates that get a row in each, and the width of their decoder states, 0 where there are none.

        Positives of a detector that is no DETR are not counted: most of them are among those with the best scores.
        """
        output = detector.blank_output()
        if isinstance(output, QueryOutput):
            layers, _, queries, width = output.states.shape
            return layers, queries, width
        candidates = output.boxes.shape[2]
        if isinstance(detector, DenseDetector):
            candidates = len(detector.grid_of(*self._largest(), output.boxes.device).cell)
        return len(output.boxes), best_count(candidates), 0

    def _largest(self) -> tuple[int, int]:
        """Returns height and width of the largest images as the detectors see them."""
        sizes = {(self._dataset.records[index].width, self._dataset.records[index].height) for index in self.scope.indices}
        seen = [reduce(lambda size, op: size_after(op, *size), self._setup.evaluation_transform.evaluation_ops(*s), s) for s in sizes]
        return max(height for _, height in seen), max(width for width, _ in seen)

    def _check(self) -> None:
        whole = self.step in complete_steps(self.run, self.split) and not read_facts(self.run, self.split, self.step)["sampled"]
        if self.scope.sampled and whole:
            raise RunError(
                f"run '{self.run.name}' already has the queries of all images of split '{self.split}' at step {self.step}, and a sample "
                "would replace them. Leave --images out to record all images again."
            )
        free = shutil.disk_usage(self.run.path).free
        if free < 1.1 * self.sizes.bytes:
            raise RunError(
                f"recording needs {self.sizes.bytes / 1e9:.1f} GB, but {self.run.path} has {free / 1e9:.1f} GB free. Free some space, or "
                "record fewer images with --images."
            )


def stratified(dataset: Dataset, count: int) -> list[int]:
    """Returns the indices of ``count`` records whose classes are distributed as in the dataset.

    An image belongs to the rarest of its classes (of those with an object that may be matched), or to the group without classes. Each
    group gives its share by largest remainder, at least one image if ``count`` allows it, evenly spread over the group in file order.
    """
    if count >= len(dataset):
        return list(range(len(dataset)))
    present = [set(record.labels[record.trainable].tolist()) for record in dataset.records]
    frequency = np.bincount([label for labels in present for label in labels], minlength=len(dataset.classes))
    group = np.array([min(labels, key=lambda label: (frequency[label], label), default=-1) for labels in present])
    names, sizes = np.unique(group, return_counts=True)
    share = _shares(sizes, count)
    chosen = [np.flatnonzero(group == name)[np.linspace(0, size - 1, number).round().astype(int)]
              for name, size, number in zip(names, sizes, share, strict=True)]  # fmt: skip
    return sorted(int(index) for part in chosen for index in part)


def _shares(sizes: np.ndarray, count: int) -> np.ndarray:
    """Returns integers near ``count * sizes / sum`` with the sum ``count``; each is at least 1 if ``count`` is large enough."""
    exact = sizes * count / sizes.sum()
    share = np.floor(exact).astype(int)
    if count >= len(sizes):
        share = np.maximum(share, 1)
    order = np.argsort(share - exact, kind="stable")
    while share.sum() < count:
        for place in order[: count - share.sum()]:
            share[place] += share[place] < sizes[place]
    while share.sum() > count:
        share[np.argmax(np.where(share > 1, share - exact, -np.inf))] -= 1
    return share


def _setup_of(run: Run) -> Setup:
    """Builds the objects that a run was made of.

    Raises:
        RunError: the data or the teacher has changed.
    """
    info = run.info()
    setup = build(stored_recipe(info["recipe"], str(run.info_path)), stored_teacher(run))
    for key, now in (("dataset_hash", setup.train.hash()), ("teacher_hash", setup.teacher_hash)):
        if info.get(key) != now:
            raise RunError(
                f"run '{run.name}' was made with another {key.removesuffix('_hash')} ({info.get(key)}, now {now}). Restore it to "
                "record the run."
            )
    return setup


def _steps_per_epoch(setup: Setup, run: Run) -> int:
    per_step = setup.recipe.train.batch_size * int(run.info().get("processes", 1))
    return -(-len(setup.train) // per_step)


__all__ = ["SPLITS", "STATE_IMAGES", "QueryRecording", "Sizes", "stratified"]
