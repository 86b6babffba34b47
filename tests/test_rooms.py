"""The rooms of the code import each other as docs/rooms.toml says, and no module imports in a circle."""

import ast
import tomllib
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

from tests.conftest import ROOT
from tests.test_style import parsed

ROOMS = tomllib.loads((ROOT / "docs" / "rooms.toml").read_text())["room"]
NAMES = [room["name"] for room in ROOMS]


def room_of(module: str) -> str | None:
    """``workbench.methods.fgd`` is in ``methods``; the package itself, which holds the version alone, is in none."""
    parts = module.split(".")
    if parts[0] == "app":
        return ".".join(parts[:2])
    return parts[1] if len(parts) > 1 else None


def module_imports() -> dict[str, set[str]]:
    """Imports between modules of ours: those of the library by grimp, which counts every kind, those of the dashboard by its syntax."""
    graph = grimp.build_graph("workbench")
    found = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    for path in sorted((ROOT / "app").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[module] = {name for node in ast.walk(parsed(path.read_text())) for name in _imported(node, set(graph.modules))}
    return found


def _imported(node: ast.AST, known: set[str]) -> list[str]:
    """Modules of the library or the dashboard that a statement imports; Streamlit puts app/ itself on the path."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        inside = [f"{node.module}.{alias.name}" for alias in node.names]
        names = [name if name in known or node.module == "lib" else node.module for name in inside]
    else:
        return []
    ours = [name if name.split(".")[0] == "workbench" else f"app.{name}" for name in names if name.split(".")[0] in ("workbench", "lib")]
    return [name if name in known or name.startswith("app.") else name.rpartition(".")[0] for name in ours]


def arrows() -> dict[str, set[str]]:
    """Which rooms each room imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, imported in module_imports().items():
        own = room_of(module)
        if own in (None, "__main__", "app.Home", "app.server"):
            continue
        found[own] |= {other for name in imported if (other := room_of(name)) not in (None, own)}
    return dict(found)


@pytest.fixture(scope="module")
def found() -> dict[str, set[str]]:
    return arrows()


def test_every_room_of_the_code_is_in_the_table_and_nothing_else(found: dict[str, set[str]]):
    folders = {path.name if path.is_dir() else path.stem for path in (ROOT / "workbench").iterdir() if path.name[0] not in "_."}
    assert folders | {"app.screens", "app.lib"} == set(NAMES)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room["name"])
def test_a_room_imports_the_rooms_that_the_table_names(room: dict, found: dict[str, set[str]]):
    assert found.get(room["name"], set()) == set(room["uses"])


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room["name"])
def test_a_room_imports_only_rooms_below_it(room: dict):
    assert all(NAMES.index(other) > NAMES.index(room["name"]) for other in room["uses"])


def test_no_module_imports_in_a_circle():
    try:
        TopologicalSorter(module_imports()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_kind_of_import_is_counted(tmp_path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "house"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "a.py").write_text("import house.b\ndef f():\n    from house import c\n")
    (package / "b.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.c import x\n")
    (package / "c.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    graph = grimp.build_graph("house", cache_dir=None)
    assert graph.find_modules_directly_imported_by("house.a") == {"house.b", "house.c"}
    assert graph.find_modules_directly_imported_by("house.b") == {"house.c"}


def test_app_imports_are_counted_by_the_module_they_name():
    known = {"workbench.views", "workbench.views.value", "workbench.store", "workbench.store.run"}
    text = "import workbench.store.run\nfrom workbench.views import value as v\nfrom workbench.store.run import Run\nfrom lib import page\n"
    found = {name for node in ast.walk(ast.parse(text)) for name in _imported(node, known)}
    assert found == {"workbench.store.run", "workbench.views.value", "app.lib.page"}
