"""Equations of the manual as MathML, which browsers draw themselves: nothing is fetched, and no script runs."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">(?P<open>\\\(|\\\[)(?P<tex>.*?)(?:\\\)|\\\])</(?P=tag)>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Puts MathML in the place of every formula that the Markdown extension marked; called by mkdocs for each page."""
    return _FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    return convert(html.unescape(found["tex"]), display="block" if found["open"] == r"\[" else "inline")
