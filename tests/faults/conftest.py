"""Runs that tests damage: copies of those in tests/stored, which need no training."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT
from workbench.store.run import Run

SAVED = ROOT / "tests" / "stored" / "saved"


@pytest.fixture
def saved(runs_folder: Path) -> Path:
    """The folder of runs with copies of ``distilled`` and ``undistilled``."""
    for name in ("distilled", "undistilled"):
        shutil.copytree(SAVED / name, runs_folder / name)
    return runs_folder


@pytest.fixture
def distilled(saved: Path) -> Run:
    return Run(saved / "distilled")
