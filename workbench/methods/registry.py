"""Finds distillation methods by name: those in the table below, methods registered in a notebook, and plug-ins.

To add a method, write a subclass of ``Method`` with ``name``, ``Config``, ``citation`` and ``terms``. In a notebook,
``register(MyMethod)`` makes its name known to recipes. A package declares it under the entry point group ``workbench.methods``.
"""

import difflib
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from itertools import product
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, SerializeAsAny

from workbench.detectors.detector import Detector, Kind, kind_of
from workbench.detectors.registry import FAMILIES
from workbench.errors import ConfigError
from workbench.methods.context import Pairing
from workbench.methods.method import BaseMethodConfig, Method

# name -> module of this package and class; a method is imported when it is first used
METHODS: Mapping[str, tuple[str, str]] = {
    "detrdistill": ("detrdistill.detrdistill", "DETRDistill"),
    "clockdistill": ("clockdistill.clockdistill", "CLoCKDistill"),
    "fitnet": ("fitnet", "FitNet"),
    "fgd": ("fgd", "FGD"),
    "mgd": ("mgd", "MGD"),
    "fkd": ("fkd", "FKD"),
    "fgfi": ("fgfi", "FGFI"),
    "cwd": ("cwd", "CWD"),
    "pkd": ("pkd", "PKD"),
    "ld": ("ld", "LD"),
    "kd_detr": ("kd_detr", "KDDETR"),
    "d3etr": ("d3etr", "D3ETR"),
    "detkds": ("detkds.detkds", "DetKDS"),
}
PLUGINS = "workbench.methods"
YES, ALONE = "yes", " alone"  # what a cell of a matrix says, or ends in, where a method serves
_registered: dict[str, type[Method]] = {}


def register(method: type[Method]) -> type[Method]:
    """Makes a method known to recipes by its name. It can be used as a decorator.

    Example:
        >>> @register
        ... class Copy(Method):  # as in the docstring of ``Method``
        ...     name, Config, terms, citation = "copy", CopyConfig, "boxes", "an example"
        >>> find_method("copy")
        <class '__main__.Copy'>

        A recipe can now say ``methods: [{method: copy}]``.

    A method that was registered earlier under this name is replaced, so that a cell of a notebook can be run again.

    Raises:
        ConfigError: a built-in method has this name.
    """
    if method.name in METHODS and find_method(method.name) is not method:
        raise ConfigError(f"'{method.name}' is a built-in method ({find_method(method.name).__module__}); give yours another name.")
    _registered[method.name] = method
    return method


def method_names() -> list[str]:
    """Lists every method that a recipe can name: built-in, registered and from plug-ins."""
    return list(dict.fromkeys([*METHODS, *_registered, *_plugins()]))


def find_method(name: str) -> type[Method]:
    """Returns the method with this name; imports it on first use.

    Raises:
        ConfigError: no method has this name, or the plug-in of that name does not provide one.
    """
    if name in METHODS:
        module, class_name = METHODS[name]
        return getattr(import_module(f"{__package__}.{module}"), class_name)
    if name in _registered:
        return _registered[name]
    plugin = _plugins().get(name)
    if plugin is None:
        near = difflib.get_close_matches(name, method_names(), n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"unknown method '{name}'; {hint}Methods: {', '.join(method_names())}.")
    try:
        found = plugin.load()
    except Exception as error:
        raise ConfigError(f"method '{name}' of {plugin.value} cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Method)) or found.name != name:
        raise ConfigError(f"{plugin.value} is no Method with the name '{name}'")
    return register(found)


def method_matrix() -> list[list[str]]:
    """Returns a table of which method can serve a teacher and a student of which family.

    Returns:
        A header row ``["method", *families]``, then one row per method. A cell is ``yes``; ``features alone`` if only a part of the method
        serves them (``BaseMethodConfig.alone``); or lists what the family does not provide although the method needs it with its
        published settings.
    """
    rows = [["method", *FAMILIES]]
    for name in method_names():
        method = find_method(name)
        provided = [family.detector.provides for family in FAMILIES.values()]
        rows.append([name, *(_served(method, has, has) for has in provided)])
    return rows


def pair_matrix() -> list[list[str]]:
    """Returns a table of which method can serve which kinds of teacher and student, over all families of these kinds.

    Returns:
        A header row ``["method", "teacher → student", ...]``, then one row per method. A cell is ``yes`` if the method serves every pair of
        these kinds, ``some`` if it serves some of them, ``features alone`` if a part of it serves every pair, or lists what every pair
        lacks.
    """
    kinds: dict[Kind, list[frozenset[str]]] = {}
    for family in FAMILIES.values():
        kinds.setdefault(kind_of(family.detector.provides), []).append(family.detector.provides)
    there: list[Kind] = [kind for kind in get_args(Kind) if kind in kinds]
    sides = list(product(there, there))
    rows = [["method", *(f"{teacher} → {student}" for teacher, student in sides)]]
    for name in method_names():
        method = find_method(name)
        rows.append([name, *(_served_by_kind(method, kinds[teacher], kinds[student]) for teacher, student in sides)])
    return rows


def served_names(names: Sequence[str], cells: Sequence[str]) -> str:
    """Lists the names whose cell of a matrix says that they are served, with the part that serves them in brackets; ``all`` or ``none``."""
    able = [name if cell == YES else f"{name} ({cell})" for name, cell in zip(names, cells, strict=True) if _serves(cell)]
    return "all" if set(cells) == {YES} else ", ".join(able) or "none"


def _serves(cell: str) -> bool:
    return cell == YES or cell.endswith(ALONE)


def _served(method: type[Method], student: frozenset[str], teacher: frozenset[str]) -> str:
    """Returns ``yes``, the first part of a method that serves the pair, or what the pair lacks for the whole of it."""
    lacks = method.lacks(student, teacher)
    parts = [part for part in method.Config.alone if not method.lacks(student, teacher, part)]
    return YES if not lacks else f"{parts[0]}{ALONE}" if parts else ", ".join(lacks)


def _served_by_kind(method: type[Method], teachers: list[frozenset[str]], students: list[frozenset[str]]) -> str:
    pairs = list(product(students, teachers))
    cells = {_served(method, *pair) for pair in pairs}
    if len(cells) == 1:
        return cells.pop()
    if any(map(_serves, cells)):
        return "some"
    return ", ".join(sorted(set.intersection(*(set(method.lacks(*pair)) for pair in pairs))))


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=PLUGINS)}


def _of_registry(values: Any) -> Any:
    """Turns a mapping into the configuration of the method it names."""
    if not isinstance(values, dict):
        return values
    if not isinstance(values.get("method"), str):
        raise ValueError(f"say which method: 'method:' is one of {', '.join(method_names())}")
    try:
        method = find_method(values["method"])
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return method.Config.model_validate(values)


MethodConfig = Annotated[SerializeAsAny[BaseMethodConfig], BeforeValidator(_of_registry)]


def build_method(config: BaseMethodConfig, student: Detector, teacher: Detector, pairing: Pairing) -> Method:
    """Builds a method with its adapters, whose weights come from torch's global generator.

    Raises:
        IncompatibleError: the method cannot serve this pair.
    """
    return find_method(config.method)(config, student, teacher, pairing)
