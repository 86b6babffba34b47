"""The manual is built without a warning, shows its equations, and fetches nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from workbench.methods.registry import METHODS


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as ``make docs`` does, where any warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr, built.stderr
    return folder


def test_nothing_on_a_page_is_fetched_from_elsewhere(site: Path):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)="((?:https?:)?//[^"]+)"', text)
        # the address of the page itself is a link element too, and is not fetched
        assert not fetched, f"{page.name}: {fetched}"


def test_every_equation_is_mathml_and_none_is_left_as_source(site: Path):
    source = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8")
    text = (site / "equations.html").read_text(encoding="utf-8")
    blocks = text.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block"')
    assert blocks == len(re.findall(r"^\$\$ ", source, re.MULTILINE)) > 20
    assert "arithmatex" not in text and "\\frac" not in text


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_equations_and_its_page_of_switches(name: str, site: Path):
    assert f'<h2 id="{name}">' in (site / "equations.html").read_text(encoding="utf-8")
    assert f'id="workbench.methods.{name}' in (site / "api" / "methods.html").read_text(encoding="utf-8")


def test_the_example_of_a_docstring_is_shown_as_code(site: Path):
    """As text, its prompts would be quotations."""
    pages = list((site / "api").glob("*.html"))
    assert pages and [page.name for page in pages if "<blockquote>" in page.read_text(encoding="utf-8")] == []
