"""Files, modules, verbs and options that any document names are there."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.conftest import ROOT
from tests.docs.code_names import Code
from workbench.cli import app

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = "app|benchmarks|data|docs|notebooks|recipes|tests|workbench"
CODE = Code.of(ROOT, "workbench")
COMMANDS: Any = typer.main.get_command(app)


def spans(document: Path) -> set[str]:
    """What stands between backticks, outside of blocks."""
    return set(
        re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE))
    )


def commands(document: Path) -> list[str]:
    """Calls of the command line, in blocks and between backticks, without what is said of them."""
    text = document.read_text(encoding="utf-8")
    called = [*re.findall(r"^workbench .*", text, re.MULTILINE), *(span for span in spans(document) if span.startswith("workbench "))]
    return [re.split(r" {2,}| #", call)[0] for call in called]


def unknown(call: str) -> list[str]:
    """Words of a call that its verb does not know: the verb itself, a verb of its own, options."""
    words = call.split()[1:]
    command, place = COMMANDS, 0
    while hasattr(command, "commands") and place < len(words) and not words[place].startswith("--"):
        if words[place] not in command.commands:
            default = getattr(command, "default", None)
            if default is None or not (words[place].isupper() or (ROOT / "recipes" / "search" / f"{words[place]}.yaml").is_file()):
                return [words[place]]
            command = command.commands[default]
            break
        command, place = command.commands[words[place]], place + 1
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    return [word for word in words[place:] if word.startswith("--") and word not in known]


def is_there(dotted: str) -> bool:
    """Whether ``workbench.a.b`` is a package, a module, or something in a module."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        path, rest = "/".join(parts[:end]), parts[end:]
        if (ROOT / path).is_dir():
            return not rest
        if f"{path}.py" in CODE.modules:
            return CODE.follow(CODE.modules[f"{path}.py"], rest) is not None
    return False


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_that_a_document_names_is_there(document: Path):
    named = {span.partition(":")[0] for span in spans(document) if re.fullmatch(rf"({FOLDERS})/[\w./-]*(:[\w.]+)?", span)}
    there = {path for path in named if (ROOT / path).exists() or (ROOT / f"{path}.py").exists()}
    assert {path for path in named - there if "NAME" not in path} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_or_function_of_the_library_that_a_document_names_is_there(document: Path):
    named = {found[1] for span in spans(document) if (found := re.fullmatch(r"(workbench(?:\.\w+)+)(\(.*\))?", span))}
    blocks = re.findall(r"^::: ([\w.]+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for name in {*named, *blocks} if not name.endswith(".json") and not is_there(name)} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_call_of_the_command_line_that_a_document_shows_has_this_verb_and_these_options(document: Path):
    assert {call: words for call in commands(document) if (words := unknown(call))} == {}


def test_a_name_that_is_gone_is_seen():
    assert is_there("workbench.store.run.Run.create") and is_there("workbench.methods")
    assert not is_there("workbench.runs.Run") and not is_there("workbench.store.run.Run.queries")
    assert unknown("workbench cache make R") == ["make"] and unknown("workbench run R --tracks") == ["--tracks"]
    assert unknown("workbench recipe show R --arm A") == []
