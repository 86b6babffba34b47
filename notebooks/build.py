"""Executes the notebooks and writes each next to its text file: `python -m notebooks.build [NAME...]`, or `make notebooks`.

A figure is stored twice: as data, which JupyterLab draws, and as a picture made in Chromium, which any viewer shows. Times, paths and the
state of widgets are not stored.
"""

import base64
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
PLOTLY, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
SECONDS_A_CELL = 4 * 3600  # the longest trains for 45 quiet minutes
LARGE = 120_000  # bytes; a larger PNG becomes a JPEG
_DRAW = """async figure => {
  const place = document.getElementById("figure");
  figure.layout.paper_bgcolor = "white";
  const size = {width: 900, height: figure.layout.height || 400};
  await Plotly.newPlot(place, figure.data, {...figure.layout, ...size, autosize: false}, {staticPlot: true});
  const address = await Plotly.toImage(place, {format: "png", ...size});
  Plotly.purge(place);
  return address.split(",")[1];
}"""


def names() -> list[str]:
    """Returns the names of all notebooks, in order."""
    return sorted(path.stem for path in FOLDER.glob("[0-9]*.py"))


def execute(name: str, folder: Path, change: Callable[[Any], None] | None = None) -> Any:
    """Runs a notebook from top to bottom in a new kernel, whose current folder is ``folder``, and returns it.

    Args:
        name: the notebook.
        folder: the current folder of its kernel.
        change: changes the notebook before it runs, such as to train for fewer steps.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = jupytext.read(FOLDER / f"{name}.py")
    if change is not None:
        change(notebook)
    notebook.metadata = nbformat.NotebookNode({"kernelspec": KERNEL, "jupytext": {"formats": "ipynb,py:percent"}})
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=SECONDS_A_CELL, kernel_name="python3", resources=resources, store_widget_state=False).execute()
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{index}"  # so that it is the same at every execution
        cell.metadata = nbformat.NotebookNode()
    notebook.metadata = nbformat.NotebookNode({"kernelspec": KERNEL, "jupytext": {"formats": "ipynb,py:percent"}})
    return notebook


def outputs(notebook: Any) -> list[dict[str, Any]]:
    """Returns the outputs of the code cells, each as a mapping of MIME types to contents."""
    return [output["data"] for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs if "data" in output]


def draw(notebook: Any, page: Any) -> None:
    """Adds a picture to every figure and reduces every widget to its picture, which is all that a viewer can show.

    If a picture has two formats, only the smaller one is kept.
    """
    for shown in outputs(notebook):
        if {"image/png", "image/jpeg"} <= set(shown):
            del shown[max(("image/png", "image/jpeg"), key=lambda kind: len(shown[kind]))]
        if PLOTLY in shown:
            kind, content = picture(page.evaluate(_DRAW, shown[PLOTLY]))
            shown[kind] = content
        if shown.pop(WIDGET, None) is not None:
            shown["text/plain"] = "a widget: run the cell to step through it"


def picture(png: str) -> tuple[str, str]:
    """Returns the MIME type and content of a picture of limited size, made from a PNG in base64."""
    content = base64.b64decode(png)
    image, buffer = Image.open(io.BytesIO(content)).convert("RGB"), io.BytesIO()
    kind = "image/png" if len(content) <= LARGE else "image/jpeg"
    if kind == "image/png":
        image.quantize(128).save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=82)
    return kind, base64.b64encode(buffer.getvalue()).decode()


def build(chosen: list[str]) -> None:
    """Executes and writes the chosen notebooks, one after the other."""
    import plotly
    from playwright.sync_api import sync_playwright

    script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")])
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.set_content("<div id='figure'></div>")
        page.add_script_tag(path=script)
        for name in chosen:
            with tempfile.TemporaryDirectory() as folder:
                notebook = execute(name, Path(folder))
            draw(notebook, page)
            nbformat.validate(notebook)
            target = FOLDER / f"{name}.ipynb"
            target.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
            print(f"{target.name}: {target.stat().st_size / 1000:.0f} kB, {len(outputs(notebook))} outputs", flush=True)
        browser.close()


if __name__ == "__main__":
    build(sys.argv[1:] or names())
