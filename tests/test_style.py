"""Rules of the tree that a reviewer would otherwise have to check by eye."""

import ast
import gc
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

ROOMS = ("workbench", "app", "benchmarks")


def parsed(text: str) -> ast.AST:
    """The tree of `text`, built with the garbage collector held.

    Until Python 3.11.8 the depth of a tree under construction is counted once per interpreter: a finaliser that runs in between, and lets
    another thread parse, ends in `SystemError: AST constructor recursion depth mismatch`.
    """
    held = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(text)
    finally:
        if held:
            gc.enable()


def sources(*rooms: str) -> list[Path]:
    return [path.relative_to(ROOT) for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level names of what a module imports, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0]


def called(tree: ast.AST) -> Iterator[str]:
    """Dotted names of what is called: `print`, `torch.load`."""
    yield from (ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call))


def faults(path: str, text: str) -> set[str]:
    """What a library file does that it must not."""
    tree = parsed(text)
    imports, calls = set(imported(tree)), set(called(tree))
    found = imports & {"streamlit", "pickle", "dill", "cloudpickle", "joblib"}
    if not path.startswith("workbench/views/fiftyone/"):
        found |= imports & {"fiftyone"}
    if path != "workbench/commands/console.py":
        found |= calls & {"print"}
    if path != "workbench/detectors/pickled_tensors.py":
        found |= calls & {"torch.load", "load"} if "torch" in imports else set()
    return found


@pytest.mark.parametrize(
    ("path", "text", "fault"),
    [
        ("workbench/a.py", "def f():\n    import streamlit.runtime as r", "streamlit"),
        ("workbench/a.py", "from fiftyone.core import view", "fiftyone"),
        ("workbench/a.py", "import pickle", "pickle"),
        ("workbench/a.py", "print(1)", "print"),
        ("workbench/a.py", "import torch\nx = torch.load('f')", "torch.load"),
        ("workbench/a.py", "from torch import load\nx = load('f')", "load"),
    ],
)
def test_each_fault_is_seen_in_a_file_that_has_it(path, text, fault):
    assert faults(path, text) == {fault}


def test_the_exceptions_are_the_named_files_alone():
    assert faults("workbench/views/fiftyone/dataset.py", "import fiftyone") == set()
    assert faults("workbench/commands/console.py", "print(1)") == set()
    assert faults("workbench/detectors/pickled_tensors.py", "import torch\nx = torch.load('f', weights_only=True)") == set()


def test_the_library_imports_no_app_no_pickle_and_prints_nothing():
    found = {str(path): faults(str(path), (ROOT / path).read_text()) for path in sources("workbench")}
    assert {path: what for path, what in found.items() if what} == {}


def test_what_reads_a_pth_reads_weights_only():
    calls = [node for node in ast.walk(parsed((ROOT / "workbench/detectors/pickled_tensors.py").read_text())) if isinstance(node, ast.Call)]
    loads = [call for call in calls if ast.unparse(call.func) == "torch.load"]
    assert loads and all("weights_only=True" in ast.unparse(call) for call in loads)


def test_pages_reach_the_library_through_views_analysis_and_runs_alone():
    heavy = {"torch", "transformers", "scipy", "pycocotools", "hotcoco", "duckdb", "fiftyone"}
    found = {str(path): heavy & set(imported(parsed((ROOT / path).read_text()))) for path in sources("app")}
    assert {path: what for path, what in found.items() if what} == {}


# what a page may ask: which evaluation is meant, which numbers are defined for it, results about it, figures, and which runs there are
# with what people say of them; nothing that computes besides
ASKED = {
    "workbench.analysis.of_run", "workbench.analysis.defined", "workbench.analysis.rows_of_run", "workbench.analysis.results.of_runs",
    "workbench.analysis.report.summary", "workbench.analysis.report.answer", "workbench.store.run", "workbench.teacher_cache.folders",
    "workbench.store.changes", "workbench.store.sets", "workbench.store.trash",
    "workbench.errors",
    "workbench.search.reader", "workbench.search.shown", "workbench.store.searches",
}  # fmt: skip


def unasked(text: str) -> list[str]:
    """Modules of the library that a page imports and must not."""
    nodes = list(ast.walk(parsed(text)))
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    library = [name for name in modules if name.split(".")[0] == "workbench"]
    return [name for name in library if name not in ASKED and not name.startswith("workbench.views")]


@pytest.mark.parametrize("text", ["from workbench.store.queries import read_queries", "def f():\n    import workbench.analysis.derived"])
def test_a_page_that_computes_is_seen(text: str):
    assert len(unasked(text)) == 1


def test_pages_ask_for_results_and_compute_none():
    pages = [path for path in sources("app") if path.name != "server.py"]  # that one serves them, and shows nothing
    found = {str(path): unasked((ROOT / path).read_text()) for path in pages}
    assert {path: what for path, what in found.items() if what} == {}


def test_which_layer_is_the_last_is_asked_of_the_table_in_one_place():
    found = [str(path) for path in sources("workbench", "app") if "read_layers(" in (ROOT / path).read_text()]
    assert found == ["workbench/analysis/rows_of_run.py", "workbench/store/queries.py"]


def test_no_folder_of_the_app_is_called_pages_which_streamlit_would_run_without_the_entry():
    assert not (ROOT / "app" / "pages").exists()


def test_detectors_know_nothing_of_methods_and_analysis_nothing_of_training():
    above = {"training", "analysis", "views"}
    arrows = {"detectors": {"methods", *above}, "methods": above, "analysis": {"training", "views"}}
    wrong = []
    for room, forbidden in arrows.items():
        for path in sources(f"workbench/{room}"):
            nodes = [node for node in ast.walk(parsed((ROOT / path).read_text())) if isinstance(node, ast.ImportFrom)]
            modules = [node.module for node in nodes if node.module]
            wrong += [f"{path} imports {name}" for name in modules if name.startswith("workbench.") and name.split(".")[1] in forbidden]
    assert wrong == []


def unsafe_children(text: str) -> list[str]:
    """Command lines that start a Python which would take modules from the current folder."""
    lists = [node for node in ast.walk(parsed(text)) if isinstance(node, ast.List)]
    commands = [[ast.unparse(one) for one in node.elts] for node in lists]
    python = [words for words in commands if words and (words[0] == "sys.executable" or "'python'" in words[0])]
    return [" ".join(words) for words in python if words[1:2] != ["'-P'"]]


def test_a_python_that_the_workbench_starts_takes_no_module_from_the_current_folder():
    assert unsafe_children("[sys.executable, '-m', 'x']") and unsafe_children("[str(folder / 'python'), '-m', 'x']")
    assert not unsafe_children("[sys.executable, '-P', '-m', 'x']")
    found = {str(path): unsafe_children((ROOT / path).read_text()) for path in sources("workbench")}
    assert {path: what for path, what in found.items() if what} == {}


TAGS = re.compile(r"</?(html|head|body|div|span|table|t[rhd]|p|h[1-6]|[uod]l|li|details|summary|small|script)\b[^<]*>")


def test_html_is_written_in_templates_alone():
    found = {}
    for path in sources("workbench"):
        strings = [node.value for node in ast.walk(parsed((ROOT / path).read_text())) if isinstance(node, ast.Constant)]
        found[str(path)] = [text for text in strings if isinstance(text, str) and TAGS.search(text)]
    assert {path: texts for path, texts in found.items() if texts} == {}
    assert TAGS.search("<td>") and TAGS.search("</div>") and TAGS.search("<p class=note>") and not TAGS.search("a<br>b<extra>c</extra>")


# one thing seen from several rooms has one name in all of them
SAME_THING = {
    "verb and its page": ("runs",),
    "verb and its job": ("compare", "convert", "dashboard", "demo", "diagnose", "doctor", "evaluate", "predict", "record", "report", "run"),
    "page, figures and numbers": (
        "caches_and_runs", "error_types", "image", "lost", "masks", "overview", "search", "slices", "stability", "summary", "training",
        "value",
    ),
    "what is stored and what is made of it": ("detections", "masks", "queries", "states", "targets"),
    "family and its public checkpoints": ("adamixer", "deformable_detr", "dino"),
    "part of a method": ("config", "logits"),
    "table of names": ("registry",),
    "measured in training, read in analysis": ("alignment",),
    "assignment and its figures": ("matching",),
}  # fmt: skip


def test_files_of_one_name_are_the_same_thing_seen_from_several_rooms():
    stems = [path.stem for path in sources("workbench", "app") if path.stem != "__init__"]
    twice = {stem for stem in stems if stems.count(stem) > 1}
    assert twice == {stem for names in SAME_THING.values() for stem in names}


def test_no_file_has_more_than_500_lines():
    lengths = {str(path): len((ROOT / path).read_text().splitlines()) for path in sources(*ROOMS)}
    assert {path: lines for path, lines in lengths.items() if lines > 500} == {}


def test_the_readme_holds_the_two_commands_of_a_new_user():
    text = (ROOT / "README.md").read_text()
    assert "make demo" in text and "make test" in text
