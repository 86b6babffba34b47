"""Reads YAML that anybody may have written: plain values only, within bounds on size, depth, aliases and numbers."""

import math
from collections.abc import Iterator
from typing import Any

import yaml
from yaml.representer import SafeRepresenter

from workbench.errors import WorkbenchError

MOST_CHARACTERS = 4_000_000
MOST_DEPTH = 50
MOST_NODES = 200_000  # as if every alias were written out
LARGEST = 2**63  # whole numbers are below it


# mappings that were read from JSON are written like any other
yaml.SafeDumper.add_multi_representer(dict, SafeRepresenter.represent_dict)


class YamlError(WorkbenchError):
    """A text is not YAML, or is beyond a bound; callers name the file."""


class _Loader(yaml.SafeLoader):
    """Reads dates as text, because nothing here has a date."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: str) -> Any:
    """Returns the value of a YAML text, made of mappings, lists, text, finite numbers, booleans and None.

    Raises:
        YamlError: the text is not YAML, or holds something else; it is too long, nested too deeply, grows too large by its aliases, or
            has a number that no 64-bit number can hold.
    """
    if len(text) > MOST_CHARACTERS:
        raise YamlError(f"it has {len(text):,} characters, and at most {MOST_CHARACTERS:,} are read")
    try:
        _check_events(yaml.parse(text, Loader=_Loader))
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise YamlError(" ".join(str(error).split())[:500]) from error
    _check_value(value)
    return value


def _check_events(events: Iterator[Any]) -> None:
    """Counts nodes and depth before anything is built."""
    sizes: dict[str, tuple[int, int]] = {}  # nodes and depth of what each anchor stands for
    open_nodes: list[tuple[str | None, int]] = []  # anchor of each collection that is open, and the number of nodes before it
    deepest: list[int] = []  # deepest node within each open collection
    nodes = 0
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            depth = deepest.pop() - len(open_nodes)
            if anchor is not None:
                sizes[anchor] = (nodes - before, depth)
            continue
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise YamlError(f"the alias *{event.anchor} stands for nothing that is complete before it")
            more, below = sizes[event.anchor]
        elif isinstance(event, yaml.NodeEvent):
            more, below = 1, 1
        else:
            continue
        depth = len(open_nodes) + below
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, nodes))
            deepest.append(depth)
        elif isinstance(event, yaml.ScalarEvent) and event.anchor is not None:
            sizes[event.anchor] = (1, 1)
        nodes += more
        deepest[:] = [max(known, depth) for known in deepest]
        if depth > MOST_DEPTH:
            raise YamlError(f"it is nested more than {MOST_DEPTH} deep")
        if nodes > MOST_NODES:
            raise YamlError(f"with its aliases written out it has more than {MOST_NODES:,} entries")


def _check_value(value: Any) -> None:
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_value(key)
            _check_value(entry)
    elif isinstance(value, list):
        for entry in value:
            _check_value(entry)
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int):
        if not -LARGEST <= value < LARGEST:
            raise YamlError(f"a whole number has {value.bit_length()} bits, and at most 63 are read")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise YamlError("a number is infinite or not a number")
    elif isinstance(value, str):
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise YamlError(f"the text {value[:50]!r} holds half of a letter")
    else:
        raise YamlError(f"a value is a {type(value).__name__}, and only mappings, lists, text, numbers and booleans are read")
