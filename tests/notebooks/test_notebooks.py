"""The notebooks run from top to bottom, and what is committed of them is what their text says, small, and free of the machine."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from jupytext import read

from notebooks.build import FOLDER, execute, names, outputs
from tests.conftest import ROOT

# a few steps on a few images; the commit's own outputs are of the schedules that the text names
TINY = [
    "train.steps=12", "train.evaluate_every=6", "train.checkpoint_every=12", "train.batch_size=4",
    "data.options.train=16", "data.options.val=6", "data.options.test=6",
]  # fmt: skip
# every training of a notebook takes these settings too, which the notebook itself does not know
SHORTER = f"""
import workbench.notebook as wb
_train = wb.train
def _shorter(*arguments, overrides=(), **named):
    return _train(*arguments, overrides=[*overrides, *{TINY!r}], **named)
wb.train = _shorter
"""
FEWER = {
    "range(3)": "range(1)", '["detrdistill", "fitnet", "fgd", "kd_detr"]': '["detrdistill"]', "trials=60": "trials=20",
    "seeds=50": "seeds=3", "trials=120": "trials=20",
}  # fmt: skip
PLOTLY = "application/vnd.plotly.v1+json"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all: a run that one notebook trained is opened by the next."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("name", names())
def test_the_notebook_runs_from_top_to_bottom(name: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(runs))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert figures(execute(name, tmp_path, shorten)) == figures(committed(name))


def shorten(notebook: nbformat.NotebookNode) -> None:
    """Makes a notebook train for a few steps, with fewer seeds and methods."""
    for cell in notebook.cells:
        for longer, shorter in FEWER.items():
            cell.source = cell.source.replace(longer, shorter)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SHORTER))


@pytest.mark.parametrize("name", names())
def test_a_notebook_holds_nothing_of_the_tests(name: str):
    source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert "environ" not in source and "test" not in source.split("# %%\n")[1]


def figures(notebook: nbformat.NotebookNode) -> int:
    """How many figures and pictures it shows."""
    return sum(bool({PLOTLY, "image/png", "image/jpeg"} & set(kinds)) for kinds in outputs(notebook))


def committed(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", 4)


@pytest.mark.parametrize("name", names())
def test_text_and_notebook_are_the_same_cells(name: str):
    text = read(FOLDER / f"{name}.py")
    assert [(cell.cell_type, cell.source) for cell in text.cells] == [(cell.cell_type, cell.source) for cell in committed(name).cells], (
        f"notebooks/{name}.py has changed since its notebook was made: make notebooks"
    )


@pytest.mark.parametrize("name", names())
def test_a_saved_notebook_is_small_valid_and_shows_every_figure_to_a_plain_viewer(name: str):
    path, notebook = FOLDER / f"{name}.ipynb", committed(name)
    nbformat.validate(notebook)
    assert path.stat().st_size < 500_000
    assert notebook.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert "widgets" not in notebook.metadata
    assert not [cell for cell in notebook.cells if cell.cell_type == "code" and any(out.output_type == "error" for out in cell.outputs)]
    for kinds in outputs(notebook):
        assert "application/vnd.jupyter.widget-view+json" not in kinds
        if PLOTLY in kinds:
            assert {"image/png", "image/jpeg"} & set(kinds)


@pytest.mark.parametrize("name", names())
def test_a_saved_notebook_says_nothing_of_the_machine_it_ran_on(name: str):
    said = json.dumps([cell.get("outputs", []) for cell in committed(name).cells])
    assert not re.findall(r'(?:^|[\s"\'(=])(?:/(?:home|root|tmp|work|Users|usr|opt|mnt|var)/|[A-Z]:\\\\)[^\s"]*', said)


def test_the_figures_of_the_notebooks_come_from_the_library_alone():
    for name in names():
        source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
        assert not re.search(r"plotly\.(?:graph_objects|express)|matplotlib|add_trace", source), name
