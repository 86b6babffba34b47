"""The widget in a real JupyterLab, in the browser."""

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.app.example_runs import make_stepped_run
from tests.conftest import ROOT
from tests.patience import patience, patient, wait_until
from tests.shared_runs import shared_copy

LAB_SECONDS = 120  # what a quiet machine takes at most for anything in the Lab
CELLS = ["import workbench.notebook as wb\nwb.stepper(wb.Run.open('stepped'), 2)"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address of a Lab with one notebook, and the file of that, on a free port of this machine; stopped afterwards."""
    folder = tmp_path_factory.mktemp("lab")
    runs = shared_copy(tmp_path_factory, "stepped", make_stepped_run)
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    (folder / "one.ipynb").write_text(nbformat.writes(notebook))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    environment = {**os.environ, **home, "WORKBENCH_RUNS": str(runs), "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token=once",
        "--ServerApp.allow_root=True", f"--ServerApp.root_dir={folder}", "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    server = subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert server.poll() is None, "JupyterLab ended"
            try:
                return urllib.request.urlopen(f"{address}/api/status?token=once", timeout=patience(5)).status == 200
            except (urllib.error.URLError, OSError):
                return False

        wait_until(answers, what=lambda: "an answer of JupyterLab")
        yield f"{address}/lab/tree/one.ipynb?token=once", folder / "one.ipynb"
    finally:
        server.terminate()
        server.wait(patience(30))


@pytest.mark.browser
def test_the_widget_draws_in_lab_follows_its_sliders_and_leaves_no_state_in_the_saved_notebook(lab: tuple[str, Path], chromium: Any):
    from playwright.sync_api import expect

    address, notebook = lab
    context = patient(chromium.new_context(viewport={"width": 1200, "height": 1100}), LAB_SECONDS)
    page = context.new_page()
    page.goto(address)
    page.get_by_text("| Idle").wait_for()  # a kernel that is not there yet is not asked
    page.locator(".jp-CodeCell").first.click()
    page.keyboard.press("Shift+Enter")
    image = page.locator(".stepper-image")
    expect(image).to_be_visible(timeout=1000 * patience(LAB_SECONDS))
    boxes = page.locator(".stepper-image rect[data-model=student]")
    page.get_by_label("least score").fill("0")
    everything = boxes.count()
    assert everything == 20  # every query of the student
    before = boxes.first.get_attribute("x")
    page.get_by_label("step", exact=True).fill("0")
    assert page.locator(".stepper output").first.text_content() == "6"
    assert boxes.first.get_attribute("x") != before
    page.get_by_label("layer").fill("0")
    assert page.locator(".stepper output").nth(1).text_content() == "0 of 1"
    page.get_by_label("least score").fill("19")
    assert boxes.count() < everything
    page.keyboard.press("Control+s")
    wait_until(lambda: saved_cell(notebook)["outputs"], what=lambda: "the saved notebook")
    context.close()
    saved = json.loads(notebook.read_text())
    assert len(json.dumps(saved)) < 500_000 and "widgets" not in saved["metadata"]


def saved_cell(notebook: Path) -> dict[str, Any]:
    """The first cell as the file has it; none of its output while the file is being written."""
    try:
        return json.loads(notebook.read_text())["cells"][0]
    except json.JSONDecodeError:
        return {"outputs": []}
