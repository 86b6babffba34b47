"""Runs of several processes that tests kill, freeze or stop."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tests.conftest import ROOT
from tests.patience import patience
from workbench.store.run import Run, read_lines

TORCHRUN = ("torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0")
WORKBENCH = ("-m", "workbench")


class Together:
    """``workbench run`` in two processes of one run.

    Args:
        folder: a folder for what they say.
        arguments: verb and arguments.
        launcher: module that starts them, and its arguments.
        program: what each of them runs.
        environment: changes to it.
    """

    def __init__(
        self, folder: Path, *arguments: str, launcher: Sequence[str] = TORCHRUN, program: Sequence[str] = WORKBENCH, **environment: str
    ):
        self.run = Run(Path(os.environ["WORKBENCH_RUNS"]) / "two")
        self.said = folder / "said"
        with self.said.open("w") as said:
            self.launcher = psutil.Popen(
                [sys.executable, "-m", *launcher, *program, *arguments, "--device", "cpu", "--plain"],
                cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environment},
                stdout=said, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + patience(120)
        while len(read_lines(self.run.metrics_path)) < step:
            assert self.launcher.poll() is None and time.monotonic() < deadline, self.said.read_text()
            time.sleep(0.05)

    def rank(self, number: int) -> psutil.Process:
        return next(child for child in self.launcher.children() if child.environ().get("RANK") == str(number))

    def end(self) -> str:
        """Waits for all of them, and returns what they said."""
        started = self.launcher.children(recursive=True)
        try:
            self.launcher.wait(patience(90))
        finally:
            for process in [*started, self.launcher]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        return self.said.read_text()


def messages(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("workbench: ")]
