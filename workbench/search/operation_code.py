"""Says in which file and function each operation of a formula is computed."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import RunError
from workbench.methods.detkds import distances, operations
from workbench.methods.detkds.genotype import FEATURES, Genotype, Mode
from workbench.methods.detkds.ssim import ssim

_FIRST: Mapping[str, Callable[..., Any]] = {
    "no": operations.unchanged, "satt": operations.spatial_attention, "natt": operations.batch_attention,
    "catt": operations.channel_attention, "mask": operations.random_cells,
}  # fmt: skip
_SECOND: Mapping[str, Callable[..., Any]] = {
    "no": operations.unchanged, "scale_r1": operations.unchanged, "scale_r2": operations.pooled, "multi_scale_r4": operations.pooled,
    "local_s1": operations.patches, "local_s2": operations.patches, "local_s4": operations.patches, "scale": operations.halved,
}  # fmt: skip
_MADE: Mapping[str, Callable[..., Any]] = {
    "norm": operations.norm_over, "softmax": operations.softmax_over, "logsoftmax": operations.softmax_over,
}  # fmt: skip
_CORRECTED: Mapping[str, Callable[..., Any]] = {
    "cos": distances.cosine, "pear": distances.pearson, "cor": distances.batch_correlation, "ssim": ssim,
}  # fmt: skip
_RELEASED: Mapping[str, Callable[..., Any]] = {"pear": distances.pearson_released, "cor": distances.correlation_released}


@dataclass(frozen=True)
class Place:
    """Where an operation is computed.

    Attributes:
        input: Input of the formula.
        position: ``t1``, ``t2``, ``t3`` or ``distance``.
        choice: The operation.
        does: What it does, in a sentence.
        function: Its function.
        file: File of the function, from the root of the code.
        line: Line at which the function begins.
    """

    input: str
    position: str
    choice: str
    does: str
    function: str
    file: str
    line: int


def code_of(genotype: Genotype, mode: Mode) -> list[Place]:
    """Returns the place of each operation of a formula, in the order in which they are applied.

    Raises:
        RunError: this version has no such operation.
    """
    found: list[tuple[str, str, Callable[..., Any]]] = []
    try:
        if genotype.input in FEATURES:
            found += [("t1", genotype.t1, _FIRST[genotype.t1]), ("t2", genotype.t2, _SECOND[genotype.t2])]
        found += [("t3", genotype.t3, _third(genotype.t3)), ("distance", genotype.distance, _distance(genotype.distance, mode))]
    except KeyError as error:
        raise RunError(f"this version has no operation {error}, which '{genotype}' has. Open it with the version it is of.") from error
    return [_place(genotype.input, *one) for one in found]


def _third(name: str) -> Callable[..., Any]:
    function = operations.THIRD[name]  # pyright: ignore[reportArgumentType] - an unknown name is a KeyError
    return _MADE[name.partition("_")[0]] if "<locals>" in function.__qualname__ else function


def _distance(name: str, mode: Mode) -> Callable[..., Any]:
    known = distances.RELEASED if mode == "official" else {**distances.CORRECTED, "kl": distances.formula_loss}
    known[name]  # pyright: ignore[reportArgumentType] - an unknown name is a KeyError
    return (_RELEASED if mode == "official" else _CORRECTED).get(name, distances.formula_loss)


def _place(input: str, position: str, choice: str, function: Callable[..., Any]) -> Place:
    import workbench

    path, root = Path(inspect.getfile(function)), Path(next(iter(workbench.__path__))).parent
    does = (inspect.getdoc(function) or "").split("\n")[0].replace("``", "")
    return Place(input, position, choice, does, function.__name__, path.relative_to(root).as_posix(), inspect.getsourcelines(function)[1])
