"""Names from files are text wherever they are shown: in terminals of any encoding, and in spreadsheets."""

import contextlib
import csv
import io
import sys
from pathlib import Path

import pandas as pd
import pytest
from rich.text import Text

from tests.faults.damages import make_run
from workbench import cli
from workbench.commands.console import console
from workbench.commands.terminal import printable
from workbench.datasets.coco import write_coco
from workbench.datasets.shapes import ShapesConfig, generate_shapes
from workbench.views.csv_text import csv_text

NAMES = ("Öl–Ampel", "信号", "🚦", "red\x1b[31m\x07", "a\u202eb")


def said(encoding: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[object, str]:
    """Exit code, and what a terminal of an encoding gets; an encoding that lacks a letter raises an error where nobody takes care."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "argv", ["workbench", *arguments])
    code: object = 0
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    return code, raw.getvalue().decode(encoding)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    file = write_coco(generate_shapes(ShapesConfig(train=4, val=4), "train"), folder)
    text = file.read_text()
    for old, new in zip(("circle", "square", "triangle", "cross"), NAMES, strict=False):
        text = text.replace(f'"{old}"', '"' + new.encode("unicode_escape").decode().replace("\\x", "\\u00") + '"')
    file.write_text(text.replace("\\U0001f6a6", "\\ud83d\\udea6"))
    return folder


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_class_names_and_paths_are_printed_in_every_encoding(
    encoding: str, data: Path, tmp_path: Path, runs_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    code, out = said(encoding, monkeypatch, "data", "check", str(data))
    assert code in (0, 1) and "Traceback" not in out, out
    assert "\x1b" not in out and "\x07" not in out and "red\\x1b[31m" in out
    assert ("信号" if encoding == "utf-8" else "\\u4fe1\\u53f7") in out
    code, out = said(encoding, monkeypatch, "runs", "show", "Öl/信号🚦\x1b[2J")
    assert code == 5 and ("信号" in out) == (encoding == "utf-8") and "\x1b" not in out
    run = make_run(runs_folder / "distilled")
    run.update_info(classes=list(NAMES[:4]), state="failed", error="信号 \x1b[2J")
    code, out = said(encoding, monkeypatch, "runs", "list")
    assert code == 0 and "distilled" in out
    code, out = said(encoding, monkeypatch, "diagnose", "distilled")
    assert "Traceback" not in out and "\x1b" not in out


def test_a_control_character_is_printed_as_an_escape_and_styles_are_not():
    assert printable("a\x1b[31mb\tc\nd\x9b") == "a\\x1b[31mb\tc\nd\\x9b"
    with console.capture() as caught:
        console.print(Text("a\x1b]0;title\x07b", style="bold"))
    assert "\x1b]" not in caught.get() and "\\x1b]0;title" in caught.get()


def test_a_cell_of_an_exported_table_is_no_formula():
    names = ["=1+1", "+a", "-a", "@a", "\tx", " =x", "\n=x", "＝1", "＋1", "－1", "＠a", "plain", "a=b", '=HYPERLINK("x")']
    frame = pd.DataFrame({"class": names, "@value": [-1.5, 2.0] + [0.0] * 12, "n": range(-1, 13)})
    heading, *rows = csv.reader(io.StringIO(csv_text(frame)))
    assert heading == ["class", "'@value", "n"]
    assert [row[0] for row in rows] == [*(f"'{name}" for name in names[:11]), "plain", "a=b", "'" + names[13]]
    assert [row[1] for row in rows][:2] == ["-1.5", "2.0"] and rows[0][2] == "-1", "numbers stay numbers"
    mixed = pd.DataFrame({"cell": pd.Series(["=x", 1, None], dtype=object), "kind": pd.Categorical(["=a", "b", "b"])})
    assert csv_text(mixed).splitlines()[1:] == ["'=x,'=a", "1,b", ",b"]
    assert list(mixed["cell"])[:2] == ["=x", 1], "the table of the page stays as it is"
