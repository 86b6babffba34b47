"""Distillation methods by name: the table below, and plug-ins.

A method of your own is a subclass of ``Method`` with ``name``, ``Config``, ``source`` and ``terms``. In a notebook, ``register(MyMethod)``
makes its name known to recipes; a package names it under the entry point group ``workbench.methods``.
"""

import difflib
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from workbench.detectors import FAMILIES
from workbench.detectors.base import Detector
from workbench.errors import ConfigError
from workbench.methods.base import BaseMethodConfig, ClassTeachingConfig, Method
from workbench.methods.clockdistill import CLoCKDistill
from workbench.methods.context import MethodContext, Pairing, make_pairing
from workbench.methods.cwd import CWD
from workbench.methods.d3etr import D3ETR
from workbench.methods.detrdistill import DETRDistill
from workbench.methods.fgd import FGD
from workbench.methods.fgfi import FGFI
from workbench.methods.fitnet import FitNet
from workbench.methods.fkd import FKD
from workbench.methods.kd_detr import KDDETR
from workbench.methods.ld import LD
from workbench.methods.mgd import MGD
from workbench.methods.pkd import PKD

METHODS: dict[str, type[Method]] = {
    "detrdistill": DETRDistill,
    "clockdistill": CLoCKDistill,
    "fitnet": FitNet,
    "fgd": FGD,
    "mgd": MGD,
    "fkd": FKD,
    "fgfi": FGFI,
    "cwd": CWD,
    "pkd": PKD,
    "ld": LD,
    "kd_detr": KDDETR,
    "d3etr": D3ETR,
}
PLUGINS = "workbench.methods"


def register(method: type[Method]) -> type[Method]:
    """Makes a method known by its name, also as a decorator.

    Raises:
        ConfigError: the name is taken by another method.
    """
    if METHODS.get(method.name, method) is not method:
        raise ConfigError(f"there is a method '{method.name}' already ({METHODS[method.name].__module__}); give yours another name.")
    METHODS[method.name] = method
    return method


def method_names() -> list[str]:
    """Every method that a recipe can name."""
    return [*METHODS, *(name for name in _plugins() if name not in METHODS)]


def find_method(name: str) -> type[Method]:
    """The method of a name; a plug-in is imported when it is first named.

    Raises:
        ConfigError: no such method, or a plug-in that is none.
    """
    if name in METHODS:
        return METHODS[name]
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
    """Rows of methods, columns of families, after a row of names: what a teacher and a student of one family lack of what the method
    needs as published, or ``yes``.
    """
    rows = [["method", *FAMILIES]]
    for name in method_names():
        method = find_method(name)
        provided = [family.detector.provides for family in FAMILIES.values()]
        rows.append([name, *(", ".join(method.lacks(has, has)) or "yes" for has in provided)])
    return rows


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=PLUGINS)}


def _of_registry(values: Any) -> Any:
    """A mapping as the configuration of the method it names."""
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
    """A method with its adapters, from torch's global generator.

    Raises:
        IncompatibleError: the method cannot serve this pair.
    """
    return find_method(config.method)(config, student, teacher, pairing)


__all__ = [
    "METHODS", "BaseMethodConfig", "ClassTeachingConfig", "Method", "MethodConfig", "MethodContext", "Pairing", "build_method",
    "find_method", "make_pairing", "method_matrix", "method_names", "register",
]  # fmt: skip
