"""Skips are counted, and count as failures where they must not happen."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

TESTS = """
import os, pytest, torch

def test_real(shared_data): assert True
def test_threads(): assert torch.get_num_threads() == 1
def test_offline(): assert os.environ["HF_HUB_OFFLINE"] == "1"
def test_runs(tmp_path): assert os.environ["WORKBENCH_RUNS"] == str(tmp_path / "runs")

@pytest.mark.cuda
def test_cuda(): assert torch.cuda.is_available()
"""


def suite(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a small suite under the project's conftest."""
    shutil.copy(ROOT / "tests" / "conftest.py", folder / "conftest.py")
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "test_small.py").write_text(TESTS)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("WORKBENCH_", "PYTEST_"))}
    environment |= {"PYTHONPATH": str(ROOT), "WORKBENCH_SHARED_DATA": str(folder / "absent"), **variables}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_small.py"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("no_skips", "status"), [("0", 0), ("1", 1)])
def test_tests_without_the_real_data_are_skipped_with_a_count_and_fail_only_where_no_skip_is_allowed(tmp_path, no_skips, status):
    done = suite(tmp_path, WORKBENCH_NO_SKIPS=no_skips)
    assert done.returncode == status, done.stdout
    assert "skipped: 1, of which 1 for want of the real data" in done.stdout
    assert ("count as failures" in done.stdout) == bool(status)


def test_with_the_real_data_nothing_is_skipped_and_cuda_tests_are_left_out_not_skipped(tmp_path):
    done = suite(tmp_path, WORKBENCH_NO_SKIPS="1", WORKBENCH_SHARED_DATA=str(tmp_path), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stdout
    assert "4 passed, 1 deselected" in done.stdout and "skipped" not in done.stdout
