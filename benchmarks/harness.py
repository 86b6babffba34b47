"""Provides interleaved measurements, ratios within one run, and the line that a benchmark prints."""

import contextlib
import operator
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from workbench.resources import code_commit

_COMPARISONS = {"<=": operator.le, ">=": operator.ge}
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        name: phrase that says what was measured.
        value: median of the measurements, unless ``name`` says otherwise.
        unit: unit of ``value``; "x" for a ratio.
        target: ``">= 50"`` or ``"<= 1.1"``; None for a figure that is only reported.
        interval: 95 % interval of ``value``.
        repeats: number of measurements behind ``value``.
    """

    name: str
    value: float
    unit: str
    target: str | None = None
    interval: tuple[float, float] | None = None
    repeats: int | None = None

    @property
    def holds(self) -> bool | None:
        """True if the target is met; None if there is no target. A value that is not finite never meets a target."""
        if self.target is None:
            return None
        comparison, bound = self.target.split()
        return bool(np.isfinite(self.value)) and _COMPARISONS[comparison](self.value, float(bound))

    def line(self) -> dict[str, Any]:
        """Returns the figure and the machine as values that JSON can hold."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "target": self.target,
            "holds": self.holds,
            "interval": self.interval,
            "repeats": self.repeats,
            "machine": machine(),
        }


@dataclass(frozen=True)
class Ratio:
    """A ratio of two times and its 95 % interval."""

    value: float
    low: float
    high: float


def interleaved(
    functions: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1, clock: Callable[[], float] = time.perf_counter
) -> dict[str, np.ndarray]:
    """Measures functions in turns, so that other load on the machine affects all of them equally.

    Every second round runs backwards, so that no function always follows the same one.

    Args:
        functions: functions by name; each call is one measurement.
        repeats: number of rounds that count.
        warmup: number of rounds before them.
        clock: function that returns seconds.

    Returns:
        Seconds of each round, ``[repeats]`` float64, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(-warmup, repeats):
        for name in list(functions)[:: 1 if round_number % 2 == 0 else -1]:
            start = clock()
            functions[name]()
            if round_number >= 0:
                seconds[name].append(clock() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def median_ratio(numerator: np.ndarray, denominator: np.ndarray, seed: int = 0) -> Ratio:
    """Returns the median over rounds of ``numerator / denominator``, with its interval from a percentile bootstrap over rounds.

    Args:
        numerator: ``[R]`` seconds of each round.
        denominator: ``[R]`` seconds of the same rounds.
        seed: seed of the resampling.
    """
    ratios = numerator / denominator
    picks = np.random.default_rng(seed).integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[picks], axis=1), [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high))


@contextlib.contextmanager
def temporary_runs() -> Iterator[Path]:
    """Sets the folder of runs to a temporary one, so that a benchmark does not write its caches into the user's."""
    before = os.environ.get("WORKBENCH_RUNS")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WORKBENCH_RUNS"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("WORKBENCH_RUNS") if before is None else os.environ.update(WORKBENCH_RUNS=before)


@cache
def machine() -> dict[str, Any]:
    """Returns what a figure was measured on: processor, cores, accelerator, versions and commit."""
    import torch

    return {
        "cpu": _processor(),
        "cores": psutil.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "commit": code_commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
