"""Shows the ``Example:`` of a docstring as code in the manual: griffe knows the section by its plural alone and would show it as text."""

import re
from typing import Any

import griffe


class DocstringExamples(griffe.Extension):
    """Gives the section the name that griffe knows."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
