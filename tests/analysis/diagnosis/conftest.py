from pathlib import Path

import pytest

from tests.analysis.diagnosis.small_runs import small_run
from tests.shared_runs import shared_copy
from workbench.store.run import Run

FITNET = [{"method": "fitnet", "balance": {"features": 1.0}}]


@pytest.fixture(scope="session")
def healthy_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Three runs in which nothing is wrong: distilled by two methods, and undistilled beside the same teacher."""

    def train(root: Path) -> None:
        small_run(root, "undistilled", {"methods": []})
        small_run(root, "detrdistill", {"seed": 1})
        small_run(root, "fitnet", {"seed": 2, "methods": FITNET})

    root = shared_copy(tmp_path_factory, "healthy", train)
    return [Run(root / name) for name in ("undistilled", "detrdistill", "fitnet")]
