"""A process that loads data ends without a word, or takes its time."""

import multiprocessing
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest

from workbench.datasets.base import Dataset, Record
from workbench.datasets.transforms import Transform, TransformConfig
from workbench.training import loader
from workbench.training.loader import TrainBatch, TrainLoader, worker_lost


class Slow(TrainLoader):
    """Takes a while for a batch."""

    seconds = 0.0

    def batch(self, step: int) -> TrainBatch:
        time.sleep(self.seconds)
        return super().batch(step)


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> Slow:
    """A loader that looks often whether its process lives."""
    monkeypatch.setattr(loader, "LOOK_SECONDS", 0.2)
    none, box = np.zeros(1, bool), np.array([[2.0, 3.0, 9.0, 8.0]])
    records = [Record(number, "a.png", 20, 10, box, np.zeros(1, np.int64), none, none, np.arange(1), np.ones(1)) for number in range(4)]
    data = Dataset("pictures", "train", ("thing",), (1,), records, [np.zeros((10, 20, 3), np.uint8)] * 4)
    return Slow(data, Transform(TransformConfig()), 2, 0, workers=1)


def batches_until_it_fails(batches: Iterator[TrainBatch]) -> RuntimeError:
    with pytest.raises(RuntimeError) as raised:
        for _ in range(20):  # some were made before
            next(batches)
    return raised.value


def test_a_process_that_loads_data_is_missed_although_nobody_sees_the_error_of_its_end(loading: Slow):
    before = {child.pid for child in multiprocessing.active_children()}
    batches = loading.iterate(0)
    next(batches)
    (process,) = [child for child in multiprocessing.active_children() if child.pid not in before]
    torchs = signal.signal(signal.SIGCHLD, lambda number, frame: None)  # as if it were raised in a destructor
    try:
        process.kill()
        lost = worker_lost(batches_until_it_fails(batches), 7)
    finally:
        signal.signal(signal.SIGCHLD, torchs)
    assert lost is not None and "after step 7 a process that loads data has ended: DataLoader" in str(lost)


def test_a_process_that_loads_data_may_be_slow_and_has_its_time_to_make_a_batch(loading: Slow, monkeypatch: pytest.MonkeyPatch):
    loading.seconds = 1.0
    batches = loading.iterate(0)
    assert len(next(batches).image_ids) == 2
    monkeypatch.setattr(loader, "BATCH_SECONDS", 1)
    loading.seconds = 3600
    lost = worker_lost(batches_until_it_fails(loading.iterate(0)), 7)
    assert lost is not None and "has made no batch for 1 s" in str(lost)
