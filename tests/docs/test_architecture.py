"""Every file, function, argument and field that the page of the architecture names is one of the code."""

import ast
import re

import pytest

from tests.conftest import ROOT
from tests.docs.code_names import Code

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TEXT = BLOCK.sub("", PAGE)
SPANS = sorted(set(re.findall(r"`([^`\n]+)`", TEXT)))
FILE_ENDINGS = ("json", "jsonl", "toml", "yaml", "md", "py")
OTHER = {"functools.lru_cache", "st.fragment", "cache.top_k"}  # names of other libraries, and a key of a recipe
CODE = Code.of(ROOT, "workbench", "app")


def paths(spans: list[str]) -> list[str]:
    return [span for span in spans if re.fullmatch(r"(workbench|app)/[\w/]+\.py(:[\w.]+)?", span)]


def names(spans: list[str]) -> list[str]:
    """Spans like ``module.function``, ``Class.method(argument)`` or ``Class(argument)``, but for folders, files and other things."""
    written = [span for span in spans if re.fullmatch(r"[A-Za-z]\w*(\.\w+)*(\([^()]*\))?", span) and re.search(r"\w[.(]\w", span)]
    own = [name for name in written if name not in OTHER and name.rpartition(".")[2] not in FILE_ENDINGS]
    return [name for name in own if not (ROOT / name.replace(".", "/")).is_dir()]


def blocks() -> list[ast.ClassDef]:
    """The classes of the page, each with the fields and methods that it says there are."""
    return [node for text in BLOCK.findall(PAGE) for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]


@pytest.mark.parametrize("path", paths(SPANS))
def test_a_file_and_function_of_a_walk_is_there(path: str):
    file, _, name = path.partition(":")
    assert file in CODE.modules
    assert not name or CODE.follow(CODE.modules[file], name.split(".")) is not None


@pytest.mark.parametrize("name", names(SPANS))
def test_a_name_of_the_page_is_one_of_the_code_and_takes_these_arguments(name: str):
    dotted, _, rest = name.partition("(")
    found = CODE.find(dotted)
    assert found, f"no module or class has {dotted}"
    wanted = [part.strip() for part in rest.rstrip(")").split(",") if part.strip()]
    known = [own for node in found if (own := CODE.parameters(node)) is not None]
    assert not wanted or any([own for own in taken if own in wanted] == wanted for taken in known), f"{dotted} takes {known}"


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.name)
def test_a_class_of_the_page_has_these_fields_with_these_types_and_these_methods(block: ast.ClassDef):
    there = CODE.classes(block.name)
    assert len(there) == 1
    own, fields = there[0], CODE.fields(there[0])
    shown = {node.target.id: ast.unparse(node.annotation) for node in block.body if isinstance(node, ast.AnnAssign)}
    assert shown == {name: text for name, text in fields.items() if name in shown}
    for method in (node for node in block.body if isinstance(node, ast.FunctionDef)):
        found = CODE.member(own, method.name)
        assert found is not None, method.name
        taken, said = CODE.parameters(found), CODE.parameters(method)
        assert taken is not None and [name for name in taken if name in said] == said, method.name


def test_the_page_has_five_walks_and_six_files_to_read_first():
    walks = re.findall(r"^### Walk \d.*?(?=^##)", PAGE, re.DOTALL | re.MULTILINE)
    assert len(walks) == 5
    assert all(len(re.findall(r"^\d+\. ", walk, re.MULTILINE)) >= 5 and paths(re.findall(r"`([^`\n]+)`", walk)) for walk in walks)
    first = PAGE.split("### The six files to read first")[1].split("\n## ")[0]
    assert len(re.findall(r"^\d\. `workbench/[\w/]+\.py` ", first, re.MULTILINE)) == 6


def test_a_name_that_the_code_does_not_have_is_found():
    assert not CODE.find("tide.no_such_function") and not CODE.find("Method.no_such_method")
    assert CODE.find("tide.find_errors") and CODE.find("Results.error_costs"), "a method of a parent class counts"
    assert names(["gone.find_errors(errors)", "run.json", "make test"]) == ["gone.find_errors(errors)"], "nothing is left out unseen"
