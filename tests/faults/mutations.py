"""Structured mutations: a valid value in which a few entries are replaced, removed, repeated or nested, drawn by hypothesis."""

import copy
import math
import os
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

USUAL = 150
EXAMPLES = int(os.environ.get("WORKBENCH_FUZZ") or USUAL)
# the same cases each time, unless more are asked for
FUZZED = settings(max_examples=EXAMPLES, derandomize=EXAMPLES == USUAL, deadline=None)
ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    2**31,
    2**62,
    2**63,
    2**64,
    -(2**63) - 1,
    10**400,
    math.inf,
    -math.inf,
    math.nan,
    1e308,
    "",
    " ",
    "x",
    "²",
    "٣",
    "1",
    "-1",
    "nan",
    "1e400",
    "x" * 300,
    "../x",
    "/etc/passwd",
    "a\0b",
    "a\nb",
    "\udcff",
    "\ud800",
    "=1+1",
    [],
    {},
    [[]],
    [None],
    {"a": {}},
    [1, 2, 3],
    [1, 2, 3, 4, 5],
    "1234",
    ["1", "2", "3", "4"],
    {"id": 1},
    10**4000,
)

_WORDS = [
    str(odd) for odd in ODD if not isinstance(odd, int) or odd < 10**400 if not any("\ud800" <= letter <= "\udfff" for letter in str(odd))
]


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every entry below a value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: list[tuple[Any, ...]] = []
    for key, entry in entries:
        found += [(*at, key), *places(entry, (*at, key))]
    return found


@st.composite
def mutated(draw: st.DrawFn, valid: Any) -> Any:
    """One to four mutations of a valid value."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 4))):
        known = places(value)
        if not known:
            return draw(st.sampled_from(ODD))
        *outer, last = draw(st.sampled_from(known))
        inner = value
        for key in outer:
            inner = inner[key]
        change = draw(st.sampled_from(("replace", "replace", "remove", "repeat", "nest", "text")))
        if change == "remove":
            del inner[last]
        elif change == "repeat" and isinstance(inner, list):
            inner.insert(last, copy.deepcopy(inner[last]))
        elif change == "nest":
            inner[last] = [inner[last]]
        elif change == "text":
            inner[last] = str(inner[last])
        else:
            inner[last] = copy.deepcopy(draw(st.sampled_from(ODD)))
    return value


@st.composite
def mutated_lines(draw: st.DrawFn, valid: str) -> str:
    """A valid text in which words are replaced, lines repeated, cut and removed."""
    lines = [line.split(" ") for line in valid.splitlines()]
    for _ in range(draw(st.integers(1, 4))):
        line = draw(st.sampled_from(lines))
        index = draw(st.integers(0, len(line) - 1))
        change = draw(st.sampled_from(("word", "word", "remove", "repeat", "cut")))
        if change == "word":
            line[index] = draw(st.sampled_from(_WORDS))
        elif change == "remove":
            del line[index]
            if not line:
                line.append("")
        elif change == "repeat":
            line.insert(index, line[index])
        else:
            line[index] = line[index][: len(line[index]) // 2]
    return "\n".join(" ".join(line) for line in lines) + "\n"
