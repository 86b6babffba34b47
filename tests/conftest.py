"""What every test shares: one thread, no network, a runs folder of its own, the real data and the browser where they are."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before anything imports torch: two busy processes with two threads each are many times slower than with one.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["FIFTYONE_DO_NOT_TRACK"] = "1"

import pytest
from hypothesis import settings

from tests.patience import measure, patience

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = Path(os.environ.get("WORKBENCH_SHARED_DATA") or ROOT.parent / "shared" / "data")
NO_SKIPS = os.environ.get("WORKBENCH_NO_SKIPS") == "1"

settings.register_profile("workbench", deadline=None, derandomize=NO_SKIPS or "CI" in os.environ)
settings.load_profile("workbench")


@pytest.fixture(autouse=True)
def runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test writes into the user's runs."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("WORKBENCH_RUNS", str(folder))
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and oracles, which is no part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data: no folder {SHARED_DATA}; set WORKBENCH_SHARED_DATA")
    return SHARED_DATA


@pytest.fixture(scope="session")
def browser_path() -> Path:
    """A Chromium to drive; a machine without one fails the test."""
    from workbench.services.doctor import HOW_TO_GET_A_BROWSER, find_browser

    browser = find_browser()
    assert browser is not None, HOW_TO_GET_A_BROWSER
    return browser


@pytest.fixture(scope="session")
def chromium(browser_path: Path) -> Iterator[Any]:
    """A running browser of playwright; one for all tests of a process, because playwright allows no second one beside it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(browser_path), args=["--no-sandbox"], timeout=1000 * patience(30))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def mongod() -> Path:
    """FiftyOne's database, fetched as ``workbench inspect --setup`` does where there is none; a machine that cannot fails the test."""
    from workbench.services.mongo import set_up

    return set_up()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Measures the machine before any worker starts; a test may take longer where that is slow or busy."""
    measure()
    if config.getoption("timeout") is None:
        config.option.timeout = patience(float(config.getini("timeout")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves CUDA tests out where there is no CUDA: they are not skipped, which would mean that something is missing."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        items[:] = [item for item in items if item not in marked]
        config.hook.pytest_deselected(items=marked)


def _skipped(config: pytest.Config) -> list[str]:
    """Reasons of the skipped tests, one per test."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter else []
    return [str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr) for report in reports]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With WORKBENCH_NO_SKIPS=1 a skipped test is a failure."""
    if NO_SKIPS and _skipped(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints how many tests were skipped for want of the real data, and whether skips count as failures."""
    reasons = _skipped(config)
    if not reasons:
        return
    absent = sum("real data:" in reason for reason in reasons)
    terminalreporter.write_line(f"skipped: {len(reasons)}, of which {absent} for want of the real data in {SHARED_DATA}")
    if NO_SKIPS:
        terminalreporter.write_line("WORKBENCH_NO_SKIPS=1: skipped tests count as failures", red=True)
